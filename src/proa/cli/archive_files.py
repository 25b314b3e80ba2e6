# SPDX-License-Identifier: Apache-2.0
"""Archives between the daemon and a file, or a standard stream."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import click

from proa.cli.progress import bar
from proa.client.connection import Response

_PIECE_BYTES = 1024 * 1024


def refuse_terminal(output: str | None) -> None:
    """Raise click.ClickException when an archive would go to a terminal."""
    if output is None and sys.stdout.isatty():
        raise click.ClickException("cowardly refusing to save to a terminal. Use the -o flag or redirect")


def write_archive(
    response: Response, output: str | None, *, failed: str, title: str = "", private: bool = False
) -> None:
    """Write what comes to a file, which appears when it is whole; to standard output when that is None.

    :param failed: the error's words, with ``{error}`` (an OSError) and ``{output}``.
    :param title: of a bar; none without.
    :param private: the file is for its owner alone.
    :raises click.ClickException: the file cannot be written.
    """
    if output is None:
        for piece in response.iter_bytes():
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    partial = Path(f"{output}.part-{os.getpid()}")
    flags, mode = (os.O_EXCL, 0o600) if private else (os.O_TRUNC, 0o666)
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | flags, mode)
        with os.fdopen(descriptor, "wb") as file, bar(title, None, quiet=not title) as advance:
            for piece in response.iter_bytes():
                file.write(piece)
                advance(len(piece))
        partial.replace(output)
    except OSError as error:
        raise click.ClickException(failed.format(error=error, output=output)) from error
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def open_archive(source: str | None) -> Iterator[tuple[BinaryIO, int | None]]:
    """Yield a file and its size; standard input, of unknown size, for None. Raises click.ClickException."""
    if source is None:
        yield sys.stdin.buffer, None
        return
    try:
        file = Path(source).open("rb")  # noqa: SIM115 - closed by the with below
    except OSError as error:
        raise click.ClickException(f"open {source}: {error.strerror}") from error
    with file:
        yield file, os.fstat(file.fileno()).st_size


def pieces_of(file: BinaryIO, advance: Callable[[int], None] = lambda _: None) -> Iterator[bytes]:
    """Yield a file as the body of a request, and tell how much has gone."""
    while piece := file.read(_PIECE_BYTES):
        yield piece
        advance(len(piece))

# SPDX-License-Identifier: Apache-2.0
"""Mounts in a private place that last for the start of a container, which takes a copy along.

What is mounted here is the very thing that was found, alone if so wished: nobody can put another in its place
before the container has it, and a runtime that always takes along what is mounted below finds nothing there.

    ROOT/.pinned-<hex>    one of them; a daemon that was killed may leave it, ``unpin`` takes it away

Source: open_tree(2), move_mount(2).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from proa.host.mount import Resolve, copy_mount, ensure_unmounted, move_mount, openat2
from proa.model.errors import InvalidParameter
from proa.storage.overlay import attach_merged

PREFIX = ".pinned-"


def find_below(directory: Path, subpath: str) -> int:
    """Open what lies at a path inside a directory; the caller closes it.

    :raises InvalidParameter: it is not there, or a link leads out of the directory.
    """
    root = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return openat2(root, subpath, os.O_PATH, resolve=Resolve.BENEATH | Resolve.NO_MAGICLINKS)
    except OSError as error:
        raise InvalidParameter(
            f"cannot access path {directory / subpath}: {(error.strerror or '').lower()}"
        ) from error
    finally:
        os.close(root)


@contextlib.contextmanager
def pin(found: int, root: Path, *, recursive: bool = True) -> Iterator[Path]:
    """Give a path of what a descriptor refers to, good for the span of the block.

    :param found: is closed.
    :param recursive: with what is mounted below it.
    """
    place = root / f"{PREFIX}{secrets.token_hex(8)}"
    with contextlib.ExitStack() as undo:
        undo.callback(unpin, place)
        try:
            _make_like(found, place)
            tree = copy_mount(found, recursive=recursive)
        finally:
            os.close(found)
        try:
            move_mount(tree, place)
        finally:
            os.close(tree)
        yield place


@contextlib.contextmanager
def pin_alone(source: Path, root: Path) -> Iterator[Path]:
    """Give a path at which ``source`` is without what is mounted below it. Raises InvalidParameter."""
    try:
        found = os.open(source, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidParameter(
            f'invalid mount config for type "bind": bind source path does not exist: {source}'
        ) from error
    with pin(found, root, recursive=False) as place:
        yield place


@contextlib.contextmanager
def pin_merged(lowers: Sequence[Path], root: Path, *, empty: Path, subpath: str) -> Iterator[Path]:
    """Give a path at which the read-only stack of ``lowers`` (topmost first) is, or what it has at a subpath.

    :param empty: an empty directory.
    :raises InvalidParameter: there is nothing at the subpath, or a link leads out.
    """
    place = root / f"{PREFIX}{secrets.token_hex(8)}"
    with contextlib.ExitStack() as undo:
        undo.callback(unpin, place)
        place.mkdir(mode=0o700)
        attach_merged(lowers or [empty], empty=empty, target=place)
        if subpath:
            place = undo.enter_context(pin(find_below(place, subpath), root))
        yield place


def unpin(place: Path) -> None:
    """Take a pin away. Idempotent."""
    ensure_unmounted(place)
    with contextlib.suppress(FileNotFoundError):
        if place.is_dir():
            place.rmdir()
        else:
            place.unlink()


def _make_like(found: int, place: Path) -> None:
    """A directory is mounted on a directory, anything else on a file."""
    if stat.S_ISDIR(os.fstat(found).st_mode):
        place.mkdir(mode=0o700)
    else:
        place.touch(mode=0o600)

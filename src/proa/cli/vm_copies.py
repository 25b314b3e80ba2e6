# SPDX-License-Identifier: Apache-2.0
"""``proa vm fork``, ``export``, ``import`` and ``prune``. Source: docs/reference/vm.md."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import click

from proa.cli.context import get_client
from proa.cli.progress import bar
from proa.cli.times import format_size
from proa.wire import vm_routes as routes
from proa.wire.vms import VmCreated, VmPruned

_PIECE_BYTES = 1024 * 1024


@click.command()
@click.option("--start", is_flag=True, help="Start it as well")
@click.argument("name")
@click.argument("new_name")
@click.pass_context
def fork(ctx: click.Context, name: str, new_name: str, start: bool) -> None:
    """Make another machine of the disks of NAME, which may be running, as they are now."""
    client = get_client(ctx)
    made = client.call(routes.VM_FORK, query={"name": new_name}, returns=VmCreated, id=name)
    if start:
        client.do(routes.VM_START, id=made.id)
    click.echo(made.name)


@click.command()
@click.option("-o", "--output", metavar="FILE", help="Write to a file, instead of STDOUT")
@click.argument("name")
@click.pass_context
def export(ctx: click.Context, name: str, output: str | None) -> None:
    """Write a machine, which may be running, as it is now, to one file."""
    if output is None and sys.stdout.isatty():
        raise click.ClickException("cowardly refusing to save to a terminal. Use the -o flag or redirect")
    with get_client(ctx).stream(routes.VM_EXPORT, id=name) as answer:
        if output is None:
            for piece in answer.iter_bytes():
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        partial = Path(f"{output}.part-{os.getpid()}")
        try:
            # What is in it is as secret as the machine.
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file, bar("Exporting", None) as advance:
                for piece in answer.iter_bytes():
                    file.write(piece)
                    advance(len(piece))
            partial.replace(output)
        except OSError as error:
            raise click.ClickException(f"write {output}: {error.strerror}") from error
        finally:
            partial.unlink(missing_ok=True)


@click.command("import")
@click.option("--name", default="", help="Name of the machine [the one it had]")
@click.argument("file")
@click.pass_context
def import_(ctx: click.Context, file: str, name: str) -> None:
    """Make a machine of FILE, which ``export`` has written; - is the standard input."""
    client = get_client(ctx)
    try:
        source = sys.stdin.buffer if file == "-" else Path(file).open("rb")  # noqa: SIM115 - by the with below
    except OSError as error:
        raise click.ClickException(f"open {file}: {error.strerror}") from error
    size = None if file == "-" else os.fstat(source.fileno()).st_size
    with source, bar("Importing", size) as advance:
        body = _pieces(source, advance)
        made = client.call(routes.VM_IMPORT, query={"name": name}, body=body, returns=VmCreated)
    click.echo(made.name)


@click.command()
@click.pass_context
def prune(ctx: click.Context) -> None:
    """Remove the images that were fetched by address; machines that were made of them stay."""
    done = get_client(ctx).call(routes.VM_PRUNE, returns=VmPruned)
    click.echo(f"Total reclaimed space: {format_size(done.space_reclaimed)}")


def _pieces(file: BinaryIO, advance: Callable[[int], None]) -> Iterator[bytes]:
    while piece := file.read(_PIECE_BYTES):
        yield piece
        advance(len(piece))


COMMANDS = (fork, export, import_, prune)

# SPDX-License-Identifier: Apache-2.0
"""``proa vm fork``, ``export``, ``import`` and ``prune``. Source: docs/reference/vm.md."""

from __future__ import annotations

import click

from proa.cli.archive_files import open_archive, pieces_of, refuse_terminal, write_archive
from proa.cli.context import get_client
from proa.cli.progress import bar
from proa.cli.times import format_size
from proa.wire import vm_routes as routes
from proa.wire.vms import VmCreated, VmPruned


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
    refuse_terminal(output)
    with get_client(ctx).stream(routes.VM_EXPORT, id=name) as answer:
        # What is in it is as secret as the machine.
        failed = "write {output}: {error.strerror}"
        write_archive(answer, output, failed=failed, title="Exporting", private=True)


@click.command("import")
@click.option("--name", default="", help="Name of the machine [the one it had]")
@click.argument("file")
@click.pass_context
def import_(ctx: click.Context, file: str, name: str) -> None:
    """Make a machine of FILE, which ``export`` has written; - is the standard input."""
    client = get_client(ctx)
    with open_archive(None if file == "-" else file) as (source, size), bar("Importing", size) as advance:
        body = pieces_of(source, advance)
        made = client.call(routes.VM_IMPORT, query={"name": name}, body=body, returns=VmCreated)
    click.echo(made.name)


@click.command()
@click.pass_context
def prune(ctx: click.Context) -> None:
    """Remove the images that were fetched by address; machines that were made of them stay."""
    done = get_client(ctx).call(routes.VM_PRUNE, returns=VmPruned)
    click.echo(f"Total reclaimed space: {format_size(done.space_reclaimed)}")


COMMANDS = (fork, export, import_, prune)

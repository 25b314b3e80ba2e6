# SPDX-License-Identifier: Apache-2.0
"""``proa snapshot``: what runs in virtual machines, kept. Source: docs/reference/forks.md."""

from __future__ import annotations

import click

from proa.cli.archive_files import open_archive, pieces_of, refuse_terminal, write_archive
from proa.cli.context import for_each, get_client
from proa.cli.table import print_rows
from proa.cli.times import format_since, format_size
from proa.wire import own_routes as routes
from proa.wire.containers import ContainerCreated
from proa.wire.snapshots import SnapshotSummary

_COLUMNS = (
    ("SNAPSHOT", "Name"),
    ("CONTAINER", "Container"),
    ("IMAGE", "Image"),
    ("CREATED", "CreatedSince"),
    ("SIZE", "Size"),
)


@click.group()
def snapshot() -> None:
    """Manage snapshots of containers that run in virtual machines."""


@snapshot.command()
@click.argument("container")
@click.argument("name", required=False, default="")
@click.pass_context
def create(ctx: click.Context, container: str, name: str) -> None:
    """Save a running CONTAINER, memory included, and print the name of the snapshot; it goes on running."""
    made = get_client(ctx).call(
        routes.SNAPSHOT_CREATE, query={"name": name}, id=container, returns=SnapshotSummary
    )
    click.echo(made.name)


@snapshot.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Only display names")
@click.option("--format", "template", help="Format output using a template, or json")
@click.argument("container", required=False, default="")
@click.pass_context
def list_(ctx: click.Context, container: str, quiet: bool, template: str | None) -> None:
    """List snapshots, of a CONTAINER or all."""
    found = get_client(ctx).call(
        routes.SNAPSHOT_LIST, query={"container": container}, returns=list[SnapshotSummary]
    )
    if quiet:
        for one in found:
            click.echo(one.name)
        return
    rows = [
        {
            "Name": one.name,
            "Container": one.container,
            "Image": one.image,
            "CreatedSince": format_since(one.created),
            "CreatedAt": one.created,
            "Size": format_size(one.size),
        }
        for one in found
    ]
    print_rows(rows, _COLUMNS, template)


@snapshot.command()
@click.option("--name", help="Name of the container [that of the one that was saved]")
@click.argument("snapshot_name", metavar="SNAPSHOT")
@click.pass_context
def restore(ctx: click.Context, snapshot_name: str, name: str | None) -> None:
    """Make a running container that goes on from a SNAPSHOT, and print its id."""
    made = get_client(ctx).call(
        routes.SNAPSHOT_RESTORE, query={"name": name}, returns=ContainerCreated, name=snapshot_name
    )
    for warning in made.warnings:
        click.echo(f"WARNING: {warning}", err=True)
    click.echo(made.id)


@snapshot.command()
@click.argument("names", metavar="SNAPSHOT...", nargs=-1, required=True)
@click.pass_context
def rm(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Remove one or more snapshots; containers that were restored from them go on."""
    client = get_client(ctx)
    for_each(names, lambda name: client.do(routes.SNAPSHOT_DELETE, name=name))


@snapshot.command()
@click.option("-o", "--output", metavar="FILE", help="Write to a file, instead of STDOUT")
@click.argument("snapshot_name", metavar="SNAPSHOT")
@click.pass_context
def export(ctx: click.Context, snapshot_name: str, output: str | None) -> None:
    """Write a SNAPSHOT as a tar archive, for another host that has its image."""
    refuse_terminal(output)
    with get_client(ctx).stream(routes.SNAPSHOT_EXPORT, name=snapshot_name) as response:
        write_archive(response, output, failed="failed to export snapshot: {error}")


@snapshot.command("import")
@click.argument("source", metavar="FILE")
@click.argument("name", metavar="[SNAPSHOT]", required=False, default="")
@click.pass_context
def import_(ctx: click.Context, source: str, name: str) -> None:
    """Take in an archive from a FILE, or - for standard input, and print the name of the snapshot.

    Only take in what you trust: its memory is that of a kernel and its programs.
    """
    with open_archive(None if source == "-" else source) as (file, _size):
        made = get_client(ctx).call(
            routes.SNAPSHOT_IMPORT, query={"name": name}, body=pieces_of(file), returns=SnapshotSummary
        )
    click.echo(made.name)

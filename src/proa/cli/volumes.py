# SPDX-License-Identifier: Apache-2.0
"""``proa volume``. Source: docker volume references."""

from __future__ import annotations

import click

from proa.cli import values
from proa.cli.context import for_each, get_client
from proa.cli.inspect import inspect_objects
from proa.cli.table import print_rows
from proa.cli.times import format_size
from proa.client.client import filters_query
from proa.wire import routes
from proa.wire.volumes import Volume, VolumeCreateRequest, VolumeList, VolumesPruned


@click.group()
def volume() -> None:
    """Manage volumes."""


@volume.command()
@click.option("-d", "--driver", default="local", help="Specify volume driver name [local]")
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="Set metadata for a volume")
@click.option("-o", "--opt", multiple=True, metavar="KEY=VALUE", help="Set driver specific options")
@click.argument("name", required=False, default="")
@click.pass_context
def create(ctx: click.Context, name: str, driver: str, label: tuple[str, ...], opt: tuple[str, ...]) -> None:
    """Create a volume, with a NAME or an anonymous one."""
    request = VolumeCreateRequest(
        name=name,
        driver=driver,
        driver_opts=values.parse_labels(opt) or None,
        labels=values.parse_labels(label) or None,
    )
    click.echo(get_client(ctx).call(routes.VOLUME_CREATE, body=request, returns=Volume).name)


@volume.command("ls")
@click.option("-f", "--filter", "filters", multiple=True, metavar="FILTER", help="Provide filter values")
@click.option("--format", "template", help="Format output: table, json or a template")
@click.option("-q", "--quiet", is_flag=True, help="Only display volume names")
@click.pass_context
def list_(ctx: click.Context, filters: tuple[str, ...], template: str | None, quiet: bool) -> None:
    """List volumes."""
    query = {"filters": filters_query(values.parse_filters(filters))}
    found = get_client(ctx).call(routes.VOLUME_LIST, query=query, returns=VolumeList).volumes or []
    rows = [
        {
            "Driver": one.driver,
            "Name": one.name,
            "Mountpoint": one.mountpoint,
            "Scope": one.scope,
            "Labels": ",".join(f"{key}={value}" for key, value in sorted((one.labels or {}).items())),
        }
        for one in sorted(found, key=lambda one: one.name)
    ]
    if quiet:
        for row in rows:
            click.echo(row["Name"])
        return
    print_rows(rows, (("DRIVER", "Driver"), ("VOLUME NAME", "Name")), template)


@volume.command("inspect")
@click.option("-f", "--format", "template", help="Format output using a template, or json")
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def inspect_(ctx: click.Context, names: tuple[str, ...], template: str | None) -> None:
    """Display detailed information on one or more volumes."""
    inspect_objects(get_client(ctx), names, template, kind="volume")


@volume.command("rm")
@click.option("-f", "--force", is_flag=True, help="Force the removal of one or more volumes")
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def remove(ctx: click.Context, names: tuple[str, ...], force: bool) -> None:
    """Remove one or more volumes."""
    client = get_client(ctx)
    for_each(names, lambda name: client.do(routes.VOLUME_DELETE, query={"force": force}, name=name))


@volume.command()
@click.option("-a", "--all", "all_", is_flag=True, help="Remove all unused volumes, not just anonymous ones")
@click.option("--filter", "filters", multiple=True, metavar="FILTER", help="Provide filter values")
@click.option("-f", "--force", is_flag=True, help="Do not prompt for confirmation")
@click.pass_context
def prune(ctx: click.Context, all_: bool, filters: tuple[str, ...], force: bool) -> None:
    """Remove unused local volumes."""
    if not force:
        kind = "all local volumes" if all_ else "anonymous local volumes"
        click.confirm(
            f"WARNING! This will remove {kind} not used by at least one container.\n"
            "Are you sure you want to continue?",
            abort=True,
        )
    wanted = dict(values.parse_filters(filters))
    if all_:
        wanted["all"] = ["true"]
    done = get_client(ctx).call(
        routes.VOLUME_PRUNE, query={"filters": filters_query(wanted)}, returns=VolumesPruned
    )
    if done.volumes_deleted:
        click.echo("Deleted Volumes:")
        for name in done.volumes_deleted:
            click.echo(name)
        click.echo("")
    click.echo(f"Total reclaimed space: {format_size(done.space_reclaimed)}")

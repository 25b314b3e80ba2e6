# SPDX-License-Identifier: Apache-2.0
"""``proa container …`` and ``proa image …``: the management commands, which are the short ones again."""

from __future__ import annotations

import click

from proa.cli import (
    archives,
    attach,
    build,
    copying,
    create,
    execute,
    filesystem,
    image_from_vm,
    images,
    lifecycle,
    listing,
    logs,
    processes,
    registries,
    run,
    update,
    values,
)
from proa.cli.context import get_client
from proa.cli.inspect import inspect_objects
from proa.cli.times import format_size
from proa.client.client import filters_query
from proa.wire import routes
from proa.wire.containers import ContainersPruned


@click.group()
def container() -> None:
    """Manage containers."""


@click.group()
def image() -> None:
    """Manage images."""


@container.command("inspect")
@click.option("-f", "--format", "template", help="Format output using a template, or json")
@click.option("-s", "--size", is_flag=True, help="Display total file sizes")
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def inspect_container(ctx: click.Context, names: tuple[str, ...], template: str | None, size: bool) -> None:
    """Display detailed information on one or more containers."""
    inspect_objects(get_client(ctx), names, template, kind="container", size=size)


@container.command("prune")
@click.option("--filter", "filters", multiple=True, metavar="FILTER", help="Provide filter values")
@click.option("-f", "--force", is_flag=True, help="Do not prompt for confirmation")
@click.pass_context
def prune_containers(ctx: click.Context, filters: tuple[str, ...], force: bool) -> None:
    """Remove all stopped containers."""
    if not force:
        click.confirm(
            "WARNING! This will remove all stopped containers.\nAre you sure you want to continue?",
            abort=True,
        )
    query = {"filters": filters_query(values.parse_filters(filters))}
    done = get_client(ctx).call(routes.CONTAINER_PRUNE, query=query, returns=ContainersPruned)
    if done.containers_deleted:
        click.echo("Deleted Containers:")
        for identifier in done.containers_deleted:
            click.echo(identifier)
        click.echo("")
    click.echo(f"Total reclaimed space: {format_size(done.space_reclaimed)}")


@image.command("inspect")
@click.option("-f", "--format", "template", help="Format output using a template, or json")
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def inspect_image(ctx: click.Context, names: tuple[str, ...], template: str | None) -> None:
    """Display detailed information on one or more images."""
    inspect_objects(get_client(ctx), names, template, kind="image")


for _command in (
    run.run,
    create.create,
    execute.execute,
    logs.logs,
    attach.attach,
    attach.start,
    lifecycle.stop,
    lifecycle.kill,
    lifecycle.restart,
    lifecycle.pause,
    lifecycle.unpause,
    lifecycle.wait,
    lifecycle.rm,
    lifecycle.rename,
    update.update,
    processes.top,
    processes.stats,
    listing.port,
    copying.cp,
    filesystem.diff,
    filesystem.export,
    filesystem.commit,
):
    container.add_command(_command)
container.add_command(listing.ps, "ls")
for _command in (archives.load, archives.save, archives.import_, images.tag, images.history, images.prune):
    image.add_command(_command)
image.add_command(images.images, "ls")
image.add_command(image_from_vm.from_vm)
image.add_command(images.rmi, "rm")
for _command in (registries.pull, registries.push, build.build):
    image.add_command(_command)

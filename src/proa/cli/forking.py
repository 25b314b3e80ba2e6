# SPDX-License-Identifier: Apache-2.0
"""``proa fork``: a running copy of a running container."""

from __future__ import annotations

import click

from proa.cli.context import get_client
from proa.wire import own_routes as routes
from proa.wire.containers import ContainerCreated


@click.command()
@click.option("--name", help="Name of the copy [one is made up]")
@click.argument("container")
@click.pass_context
def fork(ctx: click.Context, container: str, name: str | None) -> None:
    """Make a running copy of a CONTAINER that runs with --isolation vm, and print its id.

    Memory, processes and disk are those of the source at this moment; id, name, addresses and random numbers
    are the copy's own.
    """
    made = get_client(ctx).call(
        routes.CONTAINER_FORK, query={"name": name}, id=container, returns=ContainerCreated
    )
    for warning in made.warnings:
        click.echo(f"WARNING: {warning}", err=True)
    click.echo(made.id)

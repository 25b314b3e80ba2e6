# SPDX-License-Identifier: Apache-2.0
"""``proa inspect`` of anything that has a name or an id. Source: docker inspect reference."""

from __future__ import annotations

import json
from typing import Any

import click

from proa.cli.context import get_client
from proa.cli.table import render
from proa.client.client import Client
from proa.client.errors import ApiError
from proa.wire import routes
from proa.wire.routes import Route

# In docker's order: the first kind that knows the name answers.
_KINDS: tuple[tuple[str, Route, str], ...] = (
    ("container", routes.CONTAINER_INSPECT, "id"),
    ("image", routes.IMAGE_INSPECT, "name"),
    ("network", routes.NETWORK_INSPECT, "id"),
    ("volume", routes.VOLUME_INSPECT, "name"),
)


@click.command()
@click.option("-f", "--format", "template", help="Format output using a template, or json")
@click.option("-s", "--size", is_flag=True, help="Display total file sizes if the type is container")
@click.option("--type", "kind", type=click.Choice([name for name, _, _ in _KINDS]), help="Only of this type")
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def inspect(
    ctx: click.Context, names: tuple[str, ...], template: str | None, size: bool, kind: str | None
) -> None:
    """Return low-level information on containers, images, networks or volumes."""
    inspect_objects(get_client(ctx), names, template, kind=kind, size=size)


def inspect_objects(
    client: Client, names: tuple[str, ...], template: str | None, *, kind: str | None, size: bool = False
) -> None:
    """Print what is found; for what is not, docker's sentence and, at the end, status 1."""
    found, missing = [], []
    for name in names:
        try:
            found.append(_find(client, name, kind, size=size))
        except ApiError as error:
            if error.status != 404:
                raise
            missing.append(str(error) if kind else f"No such object: {name}")
    if template and template != "json":
        for item in found:
            click.echo(render(template, item))
    elif template == "json":
        for item in found:
            click.echo(json.dumps(item, separators=(",", ":")))
    else:
        click.echo(json.dumps(found, indent=4, ensure_ascii=False))
    for sentence in missing:
        click.echo(f"Error: {sentence}", err=True)
    if missing:
        raise click.exceptions.Exit(1)


def _find(client: Client, name: str, kind: str | None, *, size: bool) -> dict[str, Any]:  # Any: JSON
    chosen = [entry for entry in _KINDS if kind in (None, entry[0])]
    for position, (entry_kind, route, parameter) in enumerate(chosen):
        query = {"size": size} if entry_kind == "container" else None
        try:
            return client.call(route, query=query, headers=None, returns=dict[str, Any], **{parameter: name})
        except ApiError as error:
            if error.status != 404 or position == len(chosen) - 1:
                raise
    raise AssertionError("no kind was asked")

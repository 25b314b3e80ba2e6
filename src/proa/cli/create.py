# SPDX-License-Identifier: Apache-2.0
"""``proa create``. Not beside ``run``, which would pay for building the same seventy flags twice."""

from __future__ import annotations

from typing import Any

import click

from proa.cli.context import get_client
from proa.cli.options import create_options
from proa.cli.request import build_request
from proa.cli.run import create_container


@click.command(context_settings={"allow_interspersed_args": False})
@create_options
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def create(ctx: click.Context, /, image: str, command: tuple[str, ...], **flags: Any) -> None:  # Any: as run
    """Create a new container from IMAGE, without starting it."""
    request = build_request(image, command, flags, attach=True)
    click.echo(create_container(get_client(ctx), request, flags))

# SPDX-License-Identifier: Apache-2.0
"""What commands share: the client of the chosen daemon, and doing one thing to each of several names."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click

from proa.client.client import Client
from proa.client.errors import ApiError


def get_client(ctx: click.Context) -> Client:
    """Return a client of the daemon that ``--host`` or the environment names."""
    host = ctx.find_root().obj
    return ctx.with_resource(Client(host if isinstance(host, str) else None))


def report(error: ApiError) -> None:
    """Print a daemon's refusal as docker prints it."""
    click.echo(f"Error response from daemon: {error}", err=True)


def for_each(names: Iterable[str], do: Callable[[str], object], *, echo: bool = True) -> None:
    """Do it to every name and print the name; go on after a failure, and exit with 1 at the end."""
    failed = False
    for name in names:
        try:
            do(name)
        except ApiError as error:
            if error.status != 304:  # 304: it is so already
                report(error)
                failed = True
                continue
        if echo:
            click.echo(name)
    if failed:
        raise click.exceptions.Exit(1)

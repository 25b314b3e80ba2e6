# SPDX-License-Identifier: Apache-2.0
"""stop, kill, restart, pause, unpause, wait, rm, rename: one call for each container named."""

from __future__ import annotations

import click

from proa.cli.context import for_each, get_client, report
from proa.client.errors import ApiError
from proa.wire import routes
from proa.wire.containers import ContainerWaited

_containers = click.argument("containers", nargs=-1, required=True)


@click.command()
@click.option("-s", "--signal", help="Signal to send to the container")
@click.option("-t", "--timeout", "--time", "timeout", type=int, help="Seconds to wait before killing it")
@_containers
@click.pass_context
def stop(ctx: click.Context, containers: tuple[str, ...], signal: str | None, timeout: int | None) -> None:
    """Stop one or more running CONTAINERS."""
    client = get_client(ctx)
    query = {"signal": signal, "t": timeout}
    for_each(containers, lambda name: client.do(routes.CONTAINER_STOP, query=query, id=name))


@click.command()
@click.option("-s", "--signal", default="KILL", help="Signal to send to the container [KILL]")
@_containers
@click.pass_context
def kill(ctx: click.Context, containers: tuple[str, ...], signal: str) -> None:
    """Kill one or more running CONTAINERS."""
    client = get_client(ctx)
    for_each(containers, lambda name: client.do(routes.CONTAINER_KILL, query={"signal": signal}, id=name))


@click.command()
@click.option("-s", "--signal", help="Signal to send to the container")
@click.option("-t", "--timeout", "--time", "timeout", type=int, help="Seconds to wait before killing it")
@_containers
@click.pass_context
def restart(ctx: click.Context, containers: tuple[str, ...], signal: str | None, timeout: int | None) -> None:
    """Restart one or more CONTAINERS."""
    client = get_client(ctx)
    query = {"signal": signal, "t": timeout}
    for_each(containers, lambda name: client.do(routes.CONTAINER_RESTART, query=query, id=name))


@click.command()
@_containers
@click.pass_context
def pause(ctx: click.Context, containers: tuple[str, ...]) -> None:
    """Pause all processes within one or more CONTAINERS."""
    client = get_client(ctx)
    for_each(containers, lambda name: client.do(routes.CONTAINER_PAUSE, id=name))


@click.command()
@_containers
@click.pass_context
def unpause(ctx: click.Context, containers: tuple[str, ...]) -> None:
    """Unpause all processes within one or more CONTAINERS."""
    client = get_client(ctx)
    for_each(containers, lambda name: client.do(routes.CONTAINER_UNPAUSE, id=name))


@click.command()
@click.option("--condition", default="", hidden=True)
@_containers
@click.pass_context
def wait(ctx: click.Context, containers: tuple[str, ...], condition: str) -> None:
    """Block until CONTAINERS stop, then print their exit codes."""
    client = get_client(ctx)
    failed = False
    for name in containers:
        try:
            done = client.call(
                routes.CONTAINER_WAIT, query={"condition": condition}, returns=ContainerWaited, id=name
            )
        except ApiError as error:
            report(error)
            failed = True
        else:
            click.echo(done.status_code)
    if failed:
        raise click.exceptions.Exit(1)


@click.command()
@click.option("-f", "--force", is_flag=True, help="Force the removal of a running container (uses SIGKILL)")
@click.option("-l", "--link", is_flag=True, help="Remove the specified link")
@click.option("-v", "--volumes", is_flag=True, help="Remove anonymous volumes associated with it")
@_containers
@click.pass_context
def rm(ctx: click.Context, containers: tuple[str, ...], force: bool, link: bool, volumes: bool) -> None:
    """Remove one or more CONTAINERS."""
    client = get_client(ctx)
    query = {"force": force, "link": link, "v": volumes}

    def remove(name: str) -> None:
        try:
            client.do(routes.CONTAINER_DELETE, query=query, id=name)
        except ApiError as error:
            if not (force and error.status == 404):
                raise

    for_each(containers, remove)


@click.command()
@click.argument("container")
@click.argument("new_name")
@click.pass_context
def rename(ctx: click.Context, container: str, new_name: str) -> None:
    """Rename CONTAINER to NEW_NAME."""
    get_client(ctx).do(routes.CONTAINER_RENAME, query={"name": new_name}, id=container)

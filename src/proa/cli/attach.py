# SPDX-License-Identifier: Apache-2.0
"""``proa attach`` and ``proa start``. Source: docker attach and docker start references."""

from __future__ import annotations

import contextlib

import click

from proa.cli.context import for_each, get_client
from proa.cli.run import Session, Waiting, forwarded_signals, parse_keys
from proa.cli.terminal import following_size, pump, raw_terminal
from proa.client.client import Client
from proa.client.errors import ClientError
from proa.model.config import HostConfig
from proa.wire import routes
from proa.wire.containers import ContainerCreateRequest, ContainerInspect


@click.command()
@click.option("--detach-keys", default="", metavar="KEYS", help="Key sequence for detaching")
@click.option("--no-stdin", is_flag=True, help="Do not attach STDIN")
@click.option("--sig-proxy/--no-sig-proxy", default=True, help="Forward signals to the process [true]")
@click.argument("container")
@click.pass_context
def attach(ctx: click.Context, container: str, detach_keys: str, no_stdin: bool, sig_proxy: bool) -> None:
    """Attach to the streams of a running CONTAINER."""
    client = get_client(ctx)
    found = client.call(routes.CONTAINER_INSPECT, returns=ContainerInspect, id=container)
    if not found.state.running:
        raise click.ClickException("cannot attach to a stopped container, start it first")
    tty, stdin = found.config.tty, found.config.open_stdin and not no_stdin
    query: dict[str, str | bool] = {
        "stream": True,
        "stdin": stdin,
        "stdout": True,
        "stderr": True,
        "detachKeys": detach_keys,
    }
    hijacked = client.hijack(routes.CONTAINER_ATTACH, query=query, tty=tty, id=found.id)

    def resize(rows: int, columns: int) -> None:
        with Client(client.endpoint) as other, contextlib.suppress(ClientError):
            other.do(routes.CONTAINER_RESIZE, query={"h": rows, "w": columns}, id=found.id)

    proxied = sig_proxy and not tty
    with Waiting(client, found.id, "") as waiting:
        with (
            forwarded_signals(client.endpoint, found.id) if proxied else contextlib.nullcontext(),
            raw_terminal(wanted=tty and stdin),
            following_size(resize, now=True) if tty else contextlib.nullcontext(),
        ):
            detached = pump(hijacked, stdin=stdin, detach_keys=parse_keys(detach_keys) if tty else b"")
        status = 0 if detached else waiting.result()
    hijacked.close()
    raise click.exceptions.Exit(status)


@click.command()
@click.option("-a", "--attach", "attached", is_flag=True, help="Attach STDOUT/STDERR and forward signals")
@click.option("-i", "--interactive", is_flag=True, help="Attach container's STDIN")
@click.option("--detach-keys", default="", metavar="KEYS", help="Key sequence for detaching")
@click.argument("containers", nargs=-1, required=True)
@click.pass_context
def start(
    ctx: click.Context, containers: tuple[str, ...], attached: bool, interactive: bool, detach_keys: str
) -> None:
    """Start one or more stopped CONTAINERS."""
    client = get_client(ctx)
    if not attached and not interactive:
        for_each(containers, lambda name: client.do(routes.CONTAINER_START, id=name))
        return
    if len(containers) > 1:
        raise click.ClickException("you cannot start and attach multiple containers at once")
    found = client.call(routes.CONTAINER_INSPECT, returns=ContainerInspect, id=containers[0])
    request = ContainerCreateRequest(
        tty=found.config.tty,
        attach_stdin=interactive and found.config.open_stdin,
        attach_stdout=True,
        attach_stderr=True,
        host_config=HostConfig(auto_remove=found.host_config.auto_remove),
    )
    session = Session(client, found.id, request, detach_keys=detach_keys, proxy=True)
    raise click.exceptions.Exit(session.run())

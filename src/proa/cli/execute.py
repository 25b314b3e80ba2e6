# SPDX-License-Identifier: Apache-2.0
"""``proa exec``. Source: docker exec reference."""

from __future__ import annotations

import contextlib

import click
import msgspec

from proa.cli import values
from proa.cli.context import get_client
from proa.cli.run import parse_keys
from proa.cli.terminal import following_size, is_terminal, pump, raw_terminal, window_size
from proa.client.client import Client
from proa.client.errors import ApiError, ClientError
from proa.wire import routes
from proa.wire.execs import ExecCreateRequest, ExecInspect, ExecStartRequest


class Id(msgspec.Struct, rename="pascal"):
    id: str


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("-d", "--detach", is_flag=True, help="Detached mode: run command in the background")
@click.option("--detach-keys", default="", metavar="KEYS", help="Key sequence for detaching")
@click.option("-e", "--env", multiple=True, metavar="KEY=VALUE", help="Set environment variables")
@click.option("--env-file", multiple=True, metavar="FILE", help="Read in a file of environment variables")
@click.option("-i", "--interactive", is_flag=True, help="Keep STDIN open even if not attached")
@click.option("--privileged", is_flag=True, help="Give extended privileges to the command")
@click.option("-t", "--tty", is_flag=True, help="Allocate a pseudo-TTY")
@click.option("-u", "--user", default="", help="Username or UID (format: <name|uid>[:<group|gid>])")
@click.option("-w", "--workdir", default="", help="Working directory inside the container")
@click.argument("container")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def execute(
    ctx: click.Context,
    container: str,
    command: tuple[str, ...],
    detach: bool,
    detach_keys: str,
    env: tuple[str, ...],
    env_file: tuple[str, ...],
    interactive: bool,
    privileged: bool,
    tty: bool,
    user: str,
    workdir: str,
) -> None:
    """Execute COMMAND in a running CONTAINER."""
    if tty and interactive and not detach and not is_terminal(0):
        raise click.UsageError("the input device is not a TTY")
    client = get_client(ctx)
    request = ExecCreateRequest(
        cmd=list(command),
        env=values.parse_env(env, env_file) or None,
        tty=tty,
        user=user,
        working_dir=workdir,
        privileged=privileged,
        detach_keys=detach_keys,
        attach_stdin=interactive and not detach,
        attach_stdout=not detach,
        attach_stderr=not detach,
    )
    exec_id = client.call(routes.CONTAINER_EXEC, body=request, returns=Id, id=container).id
    size = window_size() if tty else None
    start = ExecStartRequest(detach=detach, tty=tty, console_size=list(size) if size else None)
    try:
        if detach:
            client.do(routes.EXEC_START, body=start, id=exec_id)
            return
        hijacked = client.hijack(routes.EXEC_START, body=start, tty=tty, id=exec_id)
    except ApiError as error:
        click.echo(f"Error response from daemon: {error}", err=True)
        raise click.exceptions.Exit(_start_status(client, exec_id)) from error

    def resize(rows: int, columns: int) -> None:
        with Client(client.endpoint) as other, contextlib.suppress(ClientError):
            other.do(routes.EXEC_RESIZE, query={"h": rows, "w": columns}, id=exec_id)

    with (
        raw_terminal(wanted=tty and interactive),
        following_size(resize) if tty else contextlib.nullcontext(),
    ):
        detached = pump(hijacked, stdin=interactive, detach_keys=parse_keys(detach_keys) if tty else b"")
    hijacked.close()
    if detached:
        return
    found = client.call(routes.EXEC_INSPECT, returns=ExecInspect, id=exec_id)
    raise click.exceptions.Exit(found.exit_code or 0)


def _start_status(client: Client, exec_id: str) -> int:
    """Return 126 or 127 when the daemon has recorded it for the failed start, else 1."""
    try:
        found = client.call(routes.EXEC_INSPECT, returns=ExecInspect, id=exec_id)
    except ClientError:
        return 1
    return found.exit_code if found.exit_code in (126, 127) else 1

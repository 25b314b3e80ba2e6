# SPDX-License-Identifier: Apache-2.0
"""``proa run``. Source: docker run reference."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import click

from proa.cli.context import get_client
from proa.cli.options import create_options
from proa.cli.registries import pull_image
from proa.cli.request import build_request
from proa.cli.terminal import following_size, pump, raw_terminal
from proa.cli.values import split_tag
from proa.client.client import Client
from proa.client.endpoint import Endpoint
from proa.client.errors import ApiError, ClientError
from proa.wire import routes
from proa.wire.codec import decode
from proa.wire.containers import (
    ContainerCreated,
    ContainerCreateRequest,
    ContainerWaited,
)
from proa.wire.detach import parse_detach_keys

_IMAGE_MISSING = re.compile("No such image|does not match the specified platform")
PULL_POLICIES = ("always", "missing", "never")
EXIT_DAEMON_FAULT = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127


@click.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False})
@create_options
@click.option("-d", "--detach", is_flag=True, help="Run in background and print the container's ID")
@click.option("--detach-keys", metavar="KEYS", help="Key sequence for detaching")
@click.option("--sig-proxy/--no-sig-proxy", default=True, help="Forward signals to the process [true]")
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(
    ctx: click.Context,
    /,
    image: str,
    command: tuple[str, ...],
    detach: bool,
    detach_keys: str | None,
    sig_proxy: bool,
    **flags: Any,  # Any: click hands over some seventy flags, read by build_request
) -> None:
    """Create and run a new container from IMAGE."""
    request = build_request(image, command, flags, attach=not detach)
    client = get_client(ctx)
    container_id = create_container(client, request, flags)
    if detach:
        _start(client, container_id, remove=False)
        click.echo(container_id)
        return
    session = Session(client, container_id, request, detach_keys=detach_keys or "", proxy=sig_proxy)
    raise click.exceptions.Exit(session.run())


def create_container(
    client: Client, request: ContainerCreateRequest, flags: dict[str, Any]
) -> str:  # Any: flags
    """Create the container, print its warnings, write --cidfile. Exits with 125 when it is refused."""
    cidfile = Path(flags["cidfile"]) if flags.get("cidfile") else None
    if cidfile is not None and cidfile.exists():
        _fail(f"container ID file found, make sure the other container isn't running or delete {cidfile}")
    try:
        created = _create(client, request, flags)
    except ApiError as error:
        _fail(f"Error response from daemon: {error}")
    except ClientError as error:
        _fail(str(error))
    for warning in created.warnings or ():
        click.echo(f"WARNING: {warning}", err=True)
    if cidfile is not None:
        cidfile.write_text(created.id)
    return created.id


def _create(
    client: Client, request: ContainerCreateRequest, flags: dict[str, Any]
) -> ContainerCreated:  # Any: flags
    """Create, and bring in the image first when the daemon does not have it (--pull missing)."""
    query = {"name": flags.get("name"), "platform": flags.get("platform")}
    policy = flags.get("pull") or "missing"
    if policy not in PULL_POLICIES:
        raise ClientError(f'invalid pull option: \'{policy}\': must be one of "always", "missing" or "never"')
    pull = partial(
        pull_image, client, request.image, platform=flags.get("platform"), quiet=bool(flags.get("quiet"))
    )
    if policy == "always":
        pull()
    try:
        return client.call(routes.CONTAINER_CREATE, query=query, body=request, returns=ContainerCreated)
    except ApiError as error:
        if error.status != 404 or policy == "never" or not _IMAGE_MISSING.search(str(error)):
            raise
        is_whole = "@" in request.image or split_tag(request.image)[1]
        name = request.image if is_whole else f"{request.image}:latest"
        click.echo(f"Unable to find image '{name}' locally", err=True)
    pull()
    return client.call(routes.CONTAINER_CREATE, query=query, body=request, returns=ContainerCreated)


class Session:
    """An attached run: attach first, then wait, then start, so that nothing of the output is missed."""

    def __init__(
        self,
        client: Client,
        container_id: str,
        request: ContainerCreateRequest,
        *,
        detach_keys: str,
        proxy: bool,
    ) -> None:
        self._client = client
        self._id = container_id
        self._request = request
        self._detach_keys = detach_keys
        self._proxy = proxy and not request.tty
        self._remove = bool(request.host_config and request.host_config.auto_remove)

    def run(self) -> int:
        """Start it, connect it with this process, and return the exit status."""
        request = self._request
        query: dict[str, str | bool] = {
            "stream": True,
            "stdin": request.attach_stdin,
            "stdout": request.attach_stdout,
            "stderr": request.attach_stderr,
            "detachKeys": self._detach_keys,
        }
        keys = parse_keys(self._detach_keys) if request.tty else b""
        hijacked = self._client.hijack(routes.CONTAINER_ATTACH, query=query, tty=request.tty, id=self._id)
        with (
            contextlib.closing(hijacked),
            Waiting(self._client, self._id, "removed" if self._remove else "next-exit") as waiting,
            forwarded_signals(self._client.endpoint, self._id) if self._proxy else contextlib.nullcontext(),
            raw_terminal(wanted=request.tty and request.attach_stdin),
        ):
            _start(self._client, self._id, remove=self._remove)
            with self._sized() if request.tty else contextlib.nullcontext():
                detached = pump(hijacked, stdin=request.attach_stdin, detach_keys=keys)
            return 0 if detached else waiting.result()

    @contextlib.contextmanager
    def _sized(self) -> Iterator[None]:
        def resize(rows: int, columns: int) -> None:
            with Client(self._client.endpoint) as client:
                client.do(routes.CONTAINER_RESIZE, query={"h": rows, "w": columns}, id=self._id)

        with following_size(resize):
            yield


class Waiting:
    """A wait for the container's end, registered before its start; on a connection of its own."""

    def __init__(self, client: Client, container_id: str, condition: str) -> None:
        self._client = client.sibling()
        self._id = container_id
        self._condition = condition
        self._registered = threading.Event()
        self._status = 0
        self._error: ClientError | None = None
        self._thread = threading.Thread(target=self._wait, daemon=True)

    def __enter__(self) -> Waiting:
        self._thread.start()
        self._registered.wait()
        return self

    def __exit__(self, *_: object) -> None:
        return

    def result(self) -> int:
        """Wait for the end and return the exit status. Raises ClientError."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._status

    def _wait(self) -> None:
        try:
            query = {"condition": self._condition}
            with self._client.stream(routes.CONTAINER_WAIT, query=query, id=self._id) as response:
                self._registered.set()
                self._status = decode(response.read(), ContainerWaited).status_code
        except ClientError as error:
            self._error = error
        except ValueError as error:
            self._error = ClientError(str(error))
        finally:
            self._registered.set()


@contextlib.contextmanager
def forwarded_signals(endpoint: Endpoint, container_id: str) -> Iterator[None]:
    """Send the signals this process gets to the container's for the span of the block."""

    def forward(number: int, _: object) -> None:
        with Client(endpoint) as client, contextlib.suppress(ClientError):
            client.do(routes.CONTAINER_KILL, query={"signal": str(number)}, id=container_id)

    before: dict[signal.Signals, Callable[..., Any] | int | None] = {}  # Any: signal's own type
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
    ):
        before[number] = signal.signal(number, forward)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def parse_keys(text: str) -> bytes:
    """Return the bytes of --detach-keys. Raises click.BadParameter."""
    try:
        return parse_detach_keys(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _start(client: Client, container_id: str, *, remove: bool) -> None:
    try:
        client.do(routes.CONTAINER_START, id=container_id)
    except ApiError as error:
        if remove:
            with contextlib.suppress(ClientError):
                client.do(routes.CONTAINER_DELETE, query={"force": True, "v": True}, id=container_id)
        _fail(f"Error response from daemon: {error}", _start_status(str(error)))


def _start_status(message: str) -> int:
    """Return docker's exit status for a failed start: it is read from the sentence there too."""
    text = message.lower()
    if "executable file not found" in text or "no such file or directory" in text:
        return EXIT_NOT_FOUND
    if "permission denied" in text or "is a directory" in text or "exec format error" in text:
        return EXIT_NOT_EXECUTABLE
    return EXIT_DAEMON_FAULT


def _fail(message: str, status: int = EXIT_DAEMON_FAULT) -> NoReturn:
    click.echo(f"proa: {message}\n\nRun 'proa run --help' for more information", err=True)
    raise click.exceptions.Exit(status)

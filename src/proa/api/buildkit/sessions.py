# SPDX-License-Identifier: Apache-2.0
"""Sessions: the services that a client offers for the time of its builds, called over its own connection.

Source: BuildKit, session (the headers), filesync, auth, secrets, sshforward, upload.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from urllib.parse import quote_plus

import anyio
from anyio import create_task_group
from anyio.abc import TaskGroup
from grpclib.client import Channel, Stream
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from proa.api.buildkit.filesend import send_directory
from proa.api.buildkit.filesync import Directory, read_directory
from proa.api.buildkit.proto import buildkit_pb2 as pb
from proa.api.channel import SocketChannel
from proa.model.errors import InvalidParameter, NotFound, Unavailable
from proa.model.registry import ANONYMOUS, Credentials

ARRIVAL_S = 10.0  # a client opens its session and asks for the build at the same time
CALL_S = 60.0  # an answer that takes no transfer; a credential helper may ask a person
SECRET_MAX_BYTES = 500 << 10  # BuildKit's own limit
HUB_HOST = "registry-1.docker.io"  # as clients of BuildKit know Docker Hub
_SEND = "/moby.filesync.v1.FileSend/DiffCopy"
_FIRST_OUTPUT = ("buildkit-attachable-exporter-id", "0")
_MESSAGE_BYTES = 1 << 20
_GONE = (ConnectionError, StreamTerminatedError, asyncio.IncompleteReadError)


class Sessions:
    """The sessions that are open, by id."""

    def __init__(self) -> None:
        self._open: dict[str, Session] = {}
        self._changed = anyio.Event()

    @asynccontextmanager
    async def opened(self, name: str, channel: Channel, shared_key: str = "") -> AsyncIterator[None]:
        """Have a session for the span of the block. Raises InvalidParameter when there is one of this id."""
        if name in self._open:
            raise InvalidParameter(f"session {name} is there already")
        self._open[name] = Session(channel, shared_key)
        self._changed.set()
        self._changed = anyio.Event()
        try:
            yield
        finally:
            del self._open[name]

    async def get(self, name: str) -> Session:
        """Return a session, which may be about to open. Raises NotFound."""
        with anyio.move_on_after(ARRIVAL_S):
            while name not in self._open:
                await self._changed.wait()
        if name not in self._open:
            raise NotFound(f"no active session for {name}: context deadline exceeded")
        return self._open[name]


class Session:
    """One client's services; ``proa.engine.building.attending.Answers`` among them."""

    def __init__(self, channel: Channel, shared_key: str = "") -> None:
        self._channel = channel
        self.shared_key = shared_key  # the client's word for its directory, over many sessions; "" for none

    # --- directories and archives ---

    @asynccontextmanager
    async def directory(
        self,
        name: str,
        *,
        includes: Sequence[str] = (),
        excludes: Sequence[str] = (),
        follows: Sequence[str] = (),
    ) -> AsyncIterator[Directory]:
        """Give one of the client's directories. Raises InvalidParameter."""
        metadata = [("dir-name", name)]
        metadata += _encoded("include-patterns", includes)
        metadata += _encoded("exclude-patterns", excludes)
        metadata += _encoded("followpaths", follows)
        async with self._stream("/moby.filesync.v1.FileSync/DiffCopy", pb.Packet, metadata) as stream:
            directory = await read_directory(stream)
            yield directory
            await directory.finish()

    async def upload(self, path: str) -> AsyncGenerator[bytes, None]:
        """Yield what the client has on its standard input. Raises InvalidParameter."""
        async with self._stream(
            "/moby.upload.v1.Upload/Pull", pb.BytesMessage, [("urlpath", path)]
        ) as stream:
            await stream.end()
            while (message := await stream.recv_message()) is not None:
                if message.data:
                    yield message.data

    async def take_tar(self, pieces: AsyncIterator[bytes]) -> None:
        """Give the client a tar, which it writes to a file. Raises InvalidParameter."""
        async with self._stream(_SEND, pb.BytesMessage, [_FIRST_OUTPUT]) as stream:
            async for piece in pieces:
                for start in range(0, len(piece), _MESSAGE_BYTES):
                    await stream.send_message(pb.BytesMessage(data=piece[start : start + _MESSAGE_BYTES]))
            await stream.end()
            while await stream.recv_message() is not None:
                pass

    async def take_directory(self, file: BinaryIO) -> None:
        """Give the client what is in a tar, which it writes into a directory. Raises InvalidParameter."""
        async with self._stream(_SEND, pb.Packet, [_FIRST_OUTPUT]) as stream:
            await send_directory(stream, file)
            await stream.recv_message()

    # --- what steps ask for ---

    async def credentials(self, domain: str) -> Credentials:
        host = HUB_HOST if domain == "docker.io" else domain
        answer = await self._call(
            "/moby.filesync.v1.Auth/Credentials",
            pb.CredentialsRequest(host=host),
            pb.CredentialsResponse,
            absent=(Status.UNIMPLEMENTED,),
        )
        if answer is None or not answer.secret:
            return ANONYMOUS
        if not answer.username:
            return Credentials(identity_token=answer.secret)
        return Credentials(username=answer.username, password=answer.secret)

    async def secret(self, name: str) -> bytes | None:
        answer = await self._call(
            "/moby.buildkit.secrets.v1.Secrets/GetSecret",
            pb.GetSecretRequest(id=name),
            pb.GetSecretResponse,
            absent=(Status.UNIMPLEMENTED, Status.NOT_FOUND),
        )
        if answer is None:
            return None
        if len(answer.data) > SECRET_MAX_BYTES:
            raise InvalidParameter(f"secret {name} is larger than {SECRET_MAX_BYTES} bytes")
        return bytes(answer.data)

    async def has_agent(self, name: str) -> bool:
        try:
            answer = await self._call(
                "/moby.sshforward.v1.SSH/CheckAgent",
                pb.CheckAgentRequest(id=name),
                pb.Empty,
                absent=(Status.UNIMPLEMENTED, Status.NOT_FOUND),
            )
        except InvalidParameter:  # BuildKit's client gives a plain error for a name it does not have
            return False
        return answer is not None

    @asynccontextmanager
    async def serve_agent(self, name: str, path: Path) -> AsyncIterator[None]:
        failure: Exception | None = None
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            listener.setblocking(False)
            async with anyio.create_task_group() as group:
                group.start_soon(self._accept, name, listener, group)
                try:
                    yield
                except Exception as error:  # noqa: BLE001 (raised again below, outside the task group)
                    failure = error
                group.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _accept(self, name: str, listener: socket.socket, group: TaskGroup) -> None:
        while True:
            await anyio.wait_readable(listener)
            with suppress(OSError):  # who has left already
                connection, _ = listener.accept()
                group.start_soon(self._forward, name, connection)

    async def _forward(self, name: str, connection: socket.socket) -> None:
        """Carry one connection to the client's agent. What goes wrong ends this connection only."""
        ends = (*_GONE, GRPCError, anyio.BrokenResourceError, InvalidParameter, Unavailable)
        method, metadata = "/moby.sshforward.v1.SSH/ForwardAgent", [("buildkit.ssh.id", name)]
        with SocketChannel(connection) as channel, suppress(*ends):
            async with (
                self._stream(method, pb.BytesMessage, metadata) as stream,
                create_task_group() as group,
            ):

                async def ask() -> None:
                    with suppress(*ends):
                        while data := await channel.receive():
                            await stream.send_message(pb.BytesMessage(data=data))
                        await stream.end()

                group.start_soon(ask)
                with suppress(*ends):
                    while (message := await stream.recv_message()) is not None:
                        await channel.send(message.data)
                group.cancel_scope.cancel()

    # --- calls ---

    async def _call(self, method: str, request: Any, kind: type[Any], *, absent: tuple[Status, ...]) -> Any:
        """Call and return the answer (messages of generated classes), None for the statuses ``absent``."""
        try:
            stream = self._channel.request(
                method, Cardinality.UNARY_UNARY, type(request), kind, timeout=CALL_S
            )
            async with stream:
                await stream.send_message(request, end=True)
                return await stream.recv_message()
        except GRPCError as error:
            if error.status in absent:
                return None
            raise InvalidParameter(error.message or error.status.name) from error
        except TimeoutError as error:
            raise Unavailable("the client does not answer") from error
        except _GONE as error:
            _gone(error)

    @asynccontextmanager
    async def _stream(
        self, method: str, kind: type[Any], metadata: list[tuple[str, str]]
    ) -> AsyncIterator[Stream[Any, Any]]:
        try:
            async with self._channel.request(
                method, Cardinality.STREAM_STREAM, kind, kind, metadata=metadata
            ) as stream:
                await stream.send_request()
                yield stream
        except GRPCError as error:
            raise InvalidParameter(error.message or error.status.name) from error
        except _GONE as error:
            _gone(error)


def _gone(error: BaseException) -> NoReturn:
    raise Unavailable(f"the client has left its build: {error}") from error


def _encoded(key: str, values: Sequence[str]) -> list[tuple[str, str]]:
    """Return a metadata key of many values; what is no plain text is quoted, which another key tells."""
    if not values:
        return []
    if all(value.isascii() and value.isprintable() for value in values):
        return [(key, value) for value in values]
    return [(f"{key}-encoded", "1"), *((key, quote_plus(value)) for value in values)]

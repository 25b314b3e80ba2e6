# SPDX-License-Identifier: Apache-2.0
"""gRPC on a connection that HTTP/1.1 has let go of.

grpclib wants a socket of its own, and below ours may be TLS: so it gets one end of a socket pair, and the
bytes are carried between the other end and the client. What is full on one side holds the other up.

Source: BuildKit, session and client packages (h2c after an upgrade, in both directions).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import anyio
from grpclib.client import Channel
from grpclib.const import Handler, Status
from grpclib.encoding.base import StatusDetailsCodecBase
from grpclib.encoding.proto import ProtoCodec
from grpclib.protocol import Connection, H2Protocol, Stream
from grpclib.server import Handler as CallHandler
from grpclib.server import Server

from proa.api.buildkit.proto import buildkit_pb2 as pb
from proa.api.channel import SocketChannel
from proa.api.request import RawStream

logging.getLogger("grpclib").setLevel(logging.WARNING)  # it tells of every call that a client calls off
MESSAGE_MAX_BYTES = 16 << 20  # Go's gRPC sends and takes 4 MiB, BuildKit's 16


class StatusDetails(StatusDetailsCodecBase):
    """google.rpc.Status in ``grpc-status-details-bin``; the details are a list of ``pb.Any``."""

    def encode(self, status: Status, message: str | None, details: Any) -> bytes:  # grpclib's signature
        return pb.Status(code=status.value, message=message or "", details=details).SerializeToString()

    def decode(self, status: Status, message: str | None, data: bytes) -> Any:  # grpclib's signature
        return list(pb.Status.FromString(data).details)


class Services:
    """Methods by their path, as grpclib wants them."""

    def __init__(self, methods: Mapping[str, Handler]) -> None:
        self._methods = methods

    def __mapping__(self) -> Mapping[str, Handler]:
        return self._methods


async def serve(raw: RawStream, services: Services) -> None:
    """Serve until the client leaves. Calls under way are cancelled then."""
    server = Server([cast(Any, services)], codec=ProtoCodec(), status_details_codec=StatusDetails())
    async with _paired(raw) as (inner, ended):
        # Server.start() would listen; what follows is what it does for each connection.
        transport, protocol = await asyncio.get_running_loop().connect_accepted_socket(
            server._protocol_factory, inner
        )
        _bound(protocol)
        try:
            await ended.wait()
        finally:
            transport.abort()
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()  # connection_lost is called, which cancels the calls
                await cast(CallHandler, protocol.handler).wait_closed()


@asynccontextmanager
async def connected(raw: RawStream) -> AsyncIterator[tuple[Channel, anyio.Event]]:
    """Give a channel on which the other side serves, and an event of its leaving."""
    async with _paired(raw) as (inner, ended):
        channel = _OneChannel(inner)
        try:
            yield channel, ended
        finally:
            channel.close()


class _OneChannel(Channel):
    """A channel on one connection, which is not made again."""

    def __init__(self, inner: socket.socket) -> None:
        super().__init__(codec=ProtoCodec(), status_details_codec=StatusDetails())
        self._inner: socket.socket | None = inner

    async def _create_connection(self) -> H2Protocol:
        inner, self._inner = self._inner, None
        if inner is None:
            raise ConnectionResetError("the client has left its build")
        _, protocol = await self._loop.create_connection(self._protocol_factory, sock=inner)
        _bound(protocol)
        return protocol


def _bound(protocol: H2Protocol) -> None:
    """Refuse messages beyond the limit: grpclib would keep as many bytes as the client announces."""
    connection: Connection = protocol.processor.connection
    create = connection.create_stream

    def create_stream(**options: Any) -> Stream:  # grpclib's own options, passed on
        stream = create(**options)
        receive = stream.recv_data

        async def recv_data(size: int) -> bytes:
            if size > MESSAGE_MAX_BYTES:
                raise ConnectionAbortedError(f"a message of {size} bytes is too long")
            return await receive(size)

        stream.recv_data = recv_data  # type: ignore[method-assign]  # grpclib has no setting for it
        return stream

    connection.create_stream = create_stream  # type: ignore[method-assign]  # as above


@asynccontextmanager
async def _paired(raw: RawStream) -> AsyncIterator[tuple[socket.socket, anyio.Event]]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    ended = anyio.Event()
    failure: Exception | None = None
    with SocketChannel(ours) as channel, theirs:
        async with anyio.create_task_group() as group:

            async def to_grpc() -> None:
                with suppress(anyio.BrokenResourceError):
                    while data := await raw.receive():
                        await channel.send(data)
                    await channel.send_eof()
                ended.set()

            async def to_client() -> None:
                with suppress(anyio.BrokenResourceError):
                    while data := await channel.receive():
                        await raw.send(data)
                ended.set()

            group.start_soon(to_grpc)
            group.start_soon(to_client)
            try:
                yield theirs, ended
            except Exception as error:  # noqa: BLE001 (raised again below, outside the task group)
                failure = error
            group.cancel_scope.cancel()
    if failure is not None:
        raise failure

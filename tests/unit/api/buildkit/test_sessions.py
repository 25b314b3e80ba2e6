# SPDX-License-Identifier: Apache-2.0
"""Calls to a client over its own connection: both ends are ours here, with a socket pair between them."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

from proa.api.buildkit import transport
from proa.api.buildkit.proto import buildkit_pb2 as pb
from proa.api.buildkit.sessions import SECRET_MAX_BYTES, Session, Sessions
from proa.api.buildkit.transport import Services, connected, serve
from proa.api.channel import SocketChannel
from proa.api.raw import ChannelRawStream
from proa.model.errors import EngineError, InvalidParameter, NotFound, Unavailable
from proa.model.registry import ANONYMOUS, Credentials

pytestmark = pytest.mark.anyio

UNARY, STREAM = Cardinality.UNARY_UNARY, Cardinality.STREAM_STREAM
AUTH = "/moby.filesync.v1.Auth/Credentials"
SECRET = "/moby.buildkit.secrets.v1.Secrets/GetSecret"
CHECK, FORWARD = "/moby.sshforward.v1.SSH/CheckAgent", "/moby.sshforward.v1.SSH/ForwardAgent"
UPLOAD = "/moby.upload.v1.Upload/Pull"


@asynccontextmanager
async def session(methods: Mapping[str, Handler]) -> AsyncIterator[Session]:
    """Give a session with a client that serves these methods, and leaves when "/leave" is called."""
    one, other = socket.socketpair()
    with SocketChannel(one) as near, SocketChannel(other) as far:
        async with anyio.create_task_group() as group:
            group.start_soon(serve, ChannelRawStream(far, b"", ended=False), Services(methods))
            async with connected(ChannelRawStream(near, b"", ended=False)) as (channel, _):
                yield Session(channel)
            group.cancel_scope.cancel()


def answer(found: Mapping[str, Any], key: str) -> Any:  # messages of generated classes
    """Return a method that looks its request's field up, or fails as BuildKit's client does."""

    async def method(stream: Stream[Any, Any]) -> None:
        request = await stream.recv_message()
        reply = found.get(getattr(request, key))
        if reply is None:
            raise GRPCError(Status.NOT_FOUND, "not found")
        await stream.send_message(reply)

    return method


async def absent(stream: Stream[Any, Any]) -> None:
    """Answer as Go's gRPC does for a service that is not there."""
    raise GRPCError(Status.UNIMPLEMENTED, "unknown service")


ABSENT = Handler(absent, UNARY, pb.Empty, pb.Empty)


async def test_credentials() -> None:
    known = {
        "registry-1.docker.io": pb.CredentialsResponse(username="me", secret="word"),
        "token.example": pb.CredentialsResponse(secret="refresh"),
        "nobody.example": pb.CredentialsResponse(),
    }
    handler = Handler(answer(known, "host"), UNARY, pb.CredentialsRequest, pb.CredentialsResponse)
    async with session({AUTH: handler}) as client:
        assert await client.credentials("docker.io") == Credentials(username="me", password="word")
        assert await client.credentials("token.example") == Credentials(identity_token="refresh")
        assert await client.credentials("nobody.example") == ANONYMOUS
        with pytest.raises(InvalidParameter, match="not found"):
            await client.credentials("other.example")
    async with session({AUTH: ABSENT}) as client:
        assert await client.credentials("docker.io") == ANONYMOUS


async def test_secrets() -> None:
    known = {
        "a": pb.GetSecretResponse(data=b"\0binary"),
        "long": pb.GetSecretResponse(data=bytes(SECRET_MAX_BYTES + 1)),
    }
    handler = Handler(answer(known, "id"), UNARY, pb.GetSecretRequest, pb.GetSecretResponse)
    async with session({SECRET: handler}) as client:
        assert await client.secret("a") == b"\0binary"
        assert await client.secret("b") is None
        with pytest.raises(InvalidParameter, match="larger than"):
            await client.secret("long")
    async with session({SECRET: ABSENT}) as client:
        assert await client.secret("a") is None


async def test_an_ssh_agent() -> None:
    async def echo(stream: Stream[pb.BytesMessage, pb.BytesMessage]) -> None:
        assert stream.metadata is not None and stream.metadata["buildkit.ssh.id"] == "default"
        async for message in stream:
            await stream.send_message(pb.BytesMessage(data=message.data.upper()))

    methods = {
        CHECK: Handler(answer({"default": pb.Empty()}, "id"), UNARY, pb.CheckAgentRequest, pb.Empty),
        FORWARD: Handler(echo, STREAM, pb.BytesMessage, pb.BytesMessage),
    }
    async with session(methods) as client:
        assert (await client.has_agent("default"), await client.has_agent("other")) == (True, False)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "agent"
            async with client.serve_agent("default", path):
                for _ in range(2):
                    async with await anyio.connect_unix(path) as connection:
                        await connection.send(b"sign this")
                        assert await connection.receive() == b"SIGN THIS"
    async with session({CHECK: ABSENT}) as client:
        assert not await client.has_agent("default")


async def test_an_upload() -> None:
    async def send(stream: Stream[pb.BytesMessage, pb.BytesMessage]) -> None:
        assert stream.metadata is not None and stream.metadata["urlpath"] == "/x"
        for piece in (b"one", b"two" * 100_000):
            await stream.send_message(pb.BytesMessage(data=piece))

    methods = {UPLOAD: Handler(send, STREAM, pb.BytesMessage, pb.BytesMessage)}
    async with session(methods) as client, aclosing(client.upload("/x")) as pieces:
        assert b"".join([piece async for piece in pieces]) == b"one" + b"two" * 100_000


async def test_a_message_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MESSAGE_MAX_BYTES", 1000)

    async def send(stream: Stream[pb.BytesMessage, pb.BytesMessage]) -> None:
        await stream.send_message(pb.BytesMessage(data=bytes(2000)))

    methods = {UPLOAD: Handler(send, STREAM, pb.BytesMessage, pb.BytesMessage)}
    async with session(methods) as client, aclosing(client.upload("/x")) as pieces:
        with pytest.raises(EngineError, match=r"a message of 200\d bytes is too long"):
            await anext(pieces)


async def test_a_client_that_leaves() -> None:
    one, other = socket.socketpair()
    with SocketChannel(one) as near:
        async with connected(ChannelRawStream(near, b"", ended=False)) as (channel, left):
            other.close()
            await left.wait()
            for _ in range(2):
                with pytest.raises(Unavailable, match="has left its build"):
                    await Session(channel).secret("a")


async def test_the_book_of_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proa.api.buildkit.sessions.ARRIVAL_S", 0.01)
    sessions = Sessions()
    with pytest.raises(NotFound, match="no active session for x"):
        await sessions.get("x")
    async with session({}) as client, sessions.opened("x", client._channel):
        await sessions.get("x")
        with pytest.raises(InvalidParameter, match="there already"):
            async with sessions.opened("x", client._channel):
                pass
    with pytest.raises(NotFound):
        await sessions.get("x")

# SPDX-License-Identifier: Apache-2.0
"""A raw HTTP client over a socket pair, for tests that must see the very bytes a server sends."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.abc import SocketStream, UNIXSocketStream

from proa.api.channel import SocketChannel
from proa.api.connection import Connection, Dispatch

TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Reply:
    """One parsed answer. ``body`` has the chunks joined."""

    status: int
    reason: str
    headers: dict[str, str]  # lower-case names
    body: bytes
    chunks: tuple[bytes, ...] = ()

    def json(self) -> Any:  # Any: whatever the JSON is
        return json.loads(self.body)


class Client:
    """The client's end of a connection."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self.buffer = b""

    async def send(self, text: str | bytes) -> None:
        """Send bytes as they are."""
        await self.stream.send(text.encode() if isinstance(text, str) else text)

    async def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Reply:
        """Send one request and read its whole answer."""
        fields = {"Host": "proa", **(headers or {})}
        if body is not None:
            fields = {"Content-Length": str(len(body)), "Content-Type": "application/json", **fields}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        await self.send(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + (body or b""))
        return await self.reply(head_only=method == "HEAD")

    async def head(self) -> Reply:
        """Read the head of an answer."""
        lines = (await self.until(b"\r\n\r\n")).decode().split("\r\n")
        _, status, *reason = lines[0].split(" ", 2)
        pairs = (line.split(": ", 1) for line in lines[1:] if line)
        return Reply(int(status), "".join(reason), {name.lower(): value for name, value in pairs}, b"")

    async def reply(self, *, head_only: bool = False) -> Reply:
        """Read a whole answer."""
        head = await self.head()
        if head_only or head.status in (204, 304):
            return head
        if head.headers.get("transfer-encoding") == "chunked":
            chunks = [chunk async for chunk in self.chunks()]
            return Reply(head.status, head.reason, head.headers, b"".join(chunks), tuple(chunks))
        body = await self.exactly(int(head.headers["content-length"]))
        return Reply(head.status, head.reason, head.headers, body)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the chunks of a chunked body."""
        while chunk := await self.chunk():
            yield chunk

    async def chunk(self) -> bytes:
        """Read one chunk; b"" for the last."""
        size = int(await self.until(b"\r\n"), 16)
        return (await self.exactly(size + 2))[:-2]

    async def until(self, mark: bytes) -> bytes:
        """Read up to the mark, which is not returned."""
        with anyio.fail_after(TIMEOUT_S):
            while mark not in self.buffer:
                self.buffer += await self.stream.receive()
        data, _, self.buffer = self.buffer.partition(mark)
        return data

    async def exactly(self, size: int) -> bytes:
        """Read so many bytes."""
        with anyio.fail_after(TIMEOUT_S):
            while len(self.buffer) < size:
                self.buffer += await self.stream.receive()
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    async def to_end(self) -> bytes:
        """Read until the server ends its direction."""
        with anyio.fail_after(TIMEOUT_S):
            try:
                while True:
                    self.buffer += await self.stream.receive()
            except anyio.EndOfStream:
                data, self.buffer = self.buffer, b""
                return data


@asynccontextmanager
async def connected(dispatch: Dispatch) -> AsyncIterator[Client]:
    """Serve one connection for the span of the block."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    stream = await UNIXSocketStream.from_socket(ours)

    async def serve() -> None:
        with SocketChannel(theirs) as channel:
            await Connection(channel, dispatch).run()

    async with anyio.create_task_group() as group:
        group.start_soon(serve)
        async with stream:
            yield Client(stream)
        group.cancel_scope.cancel()

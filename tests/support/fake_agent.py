# SPDX-License-Identifier: Apache-2.0
"""Speaks on a control socket in the place of a guest's agent, and says whatever a test likes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from proa.runtime.vm.protocol import MARKER, NONCE_BYTES, FrameType

_HEADER = struct.Struct("<IBI")


def raw(kind: int, number: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """A frame that need not obey any rule. ``length`` is what it claims."""
    return _HEADER.pack(len(payload) if length is None else length, kind, number) + payload


class FakeAgent(asyncio.Protocol):
    """The far end.

    :ivar answer: what is sent back for each request, given its number; OK without fields at first.
    :ivar received: the kinds of frames that came.
    """

    def __init__(self) -> None:
        self.answer: Callable[[int], bytes] = lambda number: raw(FrameType.OK, number)
        self.received: list[int] = []
        self.is_lost = asyncio.Event()
        self.path = Path()
        self._buffer = bytearray()
        self._is_open = False
        self._transport: asyncio.Transport | None = None

    def say(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def leave(self) -> None:
        assert self._transport is not None
        self._transport.close()

    def stop_reading(self) -> None:
        assert self._transport is not None
        self._transport.pause_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._is_open:
            start = len(MARKER) + NONCE_BYTES
            if len(self._buffer) < start:
                return
            self.say(bytes(self._buffer[len(MARKER) : start]))
            del self._buffer[:start]
            self._is_open = True
        while len(self._buffer) >= _HEADER.size:
            length, kind, number = _HEADER.unpack_from(self._buffer)
            if len(self._buffer) < _HEADER.size + length:
                return
            del self._buffer[: _HEADER.size + length]
            self.received.append(kind)
            if kind < FrameType.STDIN:
                self.say(self.answer(number))


@contextlib.asynccontextmanager
async def fake_agent() -> AsyncIterator[FakeAgent]:
    """Listen on ``FakeAgent.path`` for the span of the block."""
    agent = FakeAgent()
    with tempfile.TemporaryDirectory(prefix="pfa-") as directory:
        agent.path = Path(directory) / "control"
        server = await asyncio.get_running_loop().create_unix_server(lambda: agent, str(agent.path))
        for listening in server.sockets:  # small, so that few bytes fill it
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            yield agent
        finally:
            server.close()

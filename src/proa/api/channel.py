# SPDX-License-Identifier: Apache-2.0
"""The byte stream under a connection: a plain non-blocking socket.

anyio's own socket stream is not used because its receive, when it is cancelled in the moment data arrives,
leaves a callback that fails noisily (anyio 4.16: ``add_reader(f.set_result)`` on a cancelled future), and
watching for a client's leaving is cancelled all day long. TLS is another class of the same shape
(``proa.api.tls``).

The client's end of its direction is not its leaving: whether it has left is asked of the socket, because a
client that waits for output sends nothing that could tell.
"""

from __future__ import annotations

import select
import socket
from types import TracebackType
from typing import Protocol

import anyio

READ_BYTES = 64 * 1024


class Channel(Protocol):
    """Two byte streams that end independently."""

    async def receive(self) -> bytes:
        """Return the next bytes; b"" when the client has ended its direction, or has left."""
        ...

    async def send(self, data: bytes) -> None:
        """Write all of it. Raises anyio.BrokenResourceError when the client is gone."""
        ...

    async def send_eof(self) -> None:
        """End our direction. Raises anyio.BrokenResourceError."""
        ...

    def is_gone(self) -> bool:
        """Tell whether the client has closed both directions."""
        ...


class SocketChannel:
    """A channel on a connected socket, which it owns. Closed at the end of its ``with`` block."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected

    def __enter__(self) -> SocketChannel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    async def receive(self) -> bytes:
        waited = False
        while True:
            try:
                data = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
                waited = True
            except OSError:
                return b""  # reset: whoever writes next will see it
            else:
                if not waited:  # a client that always has something must not keep the loop for itself
                    await anyio.lowlevel.cancel_shielded_checkpoint()
                return data

    async def send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[await self.send_some(rest) :]

    async def send_some(self, data: bytes | memoryview) -> int:
        """Write what fits, and return how much; nothing when cancelled. Raises anyio.BrokenResourceError."""
        while True:
            try:
                return self._socket.send(data)
            except BlockingIOError:
                await anyio.wait_writable(self._socket)
            except OSError as error:
                raise anyio.BrokenResourceError from error

    async def send_eof(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise anyio.BrokenResourceError from error

    def is_gone(self) -> bool:
        """A hang-up is reported only when both directions are closed; a half-close is not one."""
        poll = select.poll()
        poll.register(self._socket, 0)
        return bool(poll.poll(0))

    def has_ended(self) -> bool:
        """Tell whether the client has ended its direction and all it sent has been read."""
        try:
            return not self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

# SPDX-License-Identifier: Apache-2.0
"""A connection after HTTP has let go of it: two byte streams that end independently.

The client's end of its direction means the end of standard input, not that it has left; whether it has left
is asked of the socket, because a client that waits for output sends nothing that could tell.
"""

from __future__ import annotations

import select

import anyio
from anyio.abc import SocketAttribute, SocketStream

READ_BYTES = 64 * 1024


class SocketRawStream:
    """A ``proa.api.request.RawStream`` on a socket.

    :param leftover: what HTTP had read beyond the request.
    :param ended: whether the client's direction has ended already.
    """

    def __init__(self, stream: SocketStream, leftover: bytes, *, ended: bool) -> None:
        self._stream = stream
        self._leftover = leftover
        self._ended = ended

    async def receive(self) -> bytes:
        if self._leftover:
            data, self._leftover = self._leftover, b""
            return data
        if self._ended:
            return b""
        try:
            return await self._stream.receive(READ_BYTES)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            self._ended = True
            return b""

    async def send(self, data: bytes) -> None:
        await self._stream.send(data)

    async def send_eof(self) -> None:
        try:
            await self._stream.send_eof()
        except OSError as error:  # ENOTCONN: the client was faster
            raise anyio.BrokenResourceError from error

    def is_gone(self) -> bool:
        """A hang-up is reported only when both directions are closed; a half-close is not one."""
        poll = select.poll()
        poll.register(self._stream.extra(SocketAttribute.raw_socket), 0)
        return bool(poll.poll(0))

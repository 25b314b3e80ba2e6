# SPDX-License-Identifier: Apache-2.0
"""A connection after HTTP has let go of it."""

from __future__ import annotations

from proa.api.channel import Channel


class ChannelRawStream:
    """A ``proa.api.request.RawStream`` on a channel.

    :param leftover: what HTTP had read beyond the request.
    :param ended: whether the client's direction has ended already.
    """

    def __init__(self, channel: Channel, leftover: bytes, *, ended: bool) -> None:
        self._channel = channel
        self._leftover = leftover
        self._ended = ended

    async def receive(self) -> bytes:
        if self._leftover:
            data, self._leftover = self._leftover, b""
            return data
        if self._ended:
            return b""
        data = await self._channel.receive()
        self._ended = not data
        return data

    async def send(self, data: bytes) -> None:
        await self._channel.send(data)

    async def send_eof(self) -> None:
        await self._channel.send_eof()

    def is_gone(self) -> bool:
        return self._channel.is_gone()

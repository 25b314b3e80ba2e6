# SPDX-License-Identifier: Apache-2.0
"""Several streams one after another in one body: the contexts of a build of ``proa build``.

Each is a row of pieces, a piece being its length (four bytes, big-endian) and its bytes; a length of 0 ends
the stream. A body ends with its last stream.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Iterable, Iterator

PIECE_MAX = 16 << 20
_LENGTH = struct.Struct(">I")


def join_streams(streams: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    """Yield a body."""
    for stream in streams:
        for piece in stream:
            for at in range(0, len(piece), PIECE_MAX):
                part = piece[at : at + PIECE_MAX]
                yield _LENGTH.pack(len(part)) + part
        yield _LENGTH.pack(0)


class StreamReader:
    """Gives the streams of a body, in their order; what is not read of one is skipped by the next."""

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self._body = body
        self._rest = b""
        self._number = 0  # of the stream that comes next

    async def read(self, number: int) -> AsyncIterator[bytes]:
        """Yield the pieces of a stream, counted from 0. Raises ValueError when the body is broken."""
        while self._number < number:
            await self._piece()
        while self._number == number:
            piece = await self._piece()
            if piece:
                yield piece

    async def _piece(self) -> bytes:
        (length,) = _LENGTH.unpack(await self._take(_LENGTH.size))
        if length > PIECE_MAX:
            raise ValueError(f"a piece of {length} bytes is too long")
        if not length:
            self._number += 1
            return b""
        return await self._take(length)

    async def _take(self, count: int) -> bytes:
        parts, have = [self._rest], len(self._rest)
        while have < count:
            try:
                part = await anext(self._body)
            except StopAsyncIteration:
                raise ValueError("the body ends too early") from None
            parts.append(part)
            have += len(part)
        data = b"".join(parts)
        self._rest = data[count:]
        return data[:count]

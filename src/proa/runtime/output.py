# SPDX-License-Identifier: Apache-2.0
"""What a process has written and one client has not read yet. Both drivers' connections hold one.

Not bounded by itself: the driver stops reading (containers) or gives no credit (virtual machines) while a
client has as much waiting as it may.

Source: proa.runtime.seam.Stdio, whose ``receive`` this is.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

import anyio

from proa.runtime.seam import StreamId

# Whoever writes one byte at a time makes pieces that cost a hundred times what they hold. Beyond so many the
# next bytes of a stream go with its last piece; what the other stream said in between then comes before them.
MAX_PIECES = 4096


class OutputQueue:
    """Pieces in the order they came."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[StreamId, bytearray | bytes]] = deque()
        self._waiting = dict.fromkeys(StreamId, 0)
        self._changed = anyio.Event()
        self._is_finished = False
        self._is_closed = False

    def put(self, stream: StreamId, data: bytes) -> None:
        """Another piece has come."""
        self._waiting[stream] += len(data)
        last = self._get_last(stream) if len(self._pieces) >= MAX_PIECES else None
        if last is None:
            # Only a piece that may yet grow is worth a copy.
            self._pieces.append((stream, bytearray(data) if len(self._pieces) >= MAX_PIECES - 1 else data))
        else:
            last += data
        self._changed.set()

    def finish(self) -> None:
        """No more will come. Idempotent."""
        self._is_finished = True
        self._changed.set()

    def close(self) -> None:
        """Forget what has come: the client has left. Idempotent."""
        self._is_closed = True
        self._pieces.clear()
        self._waiting = dict.fromkeys(StreamId, 0)
        self._changed.set()

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def waiting_bytes(self, stream: StreamId | None = None) -> int:
        """Return what has come and was not read: of a stream, or of all."""
        return sum(self._waiting.values()) if stream is None else self._waiting[stream]

    async def receive(self) -> tuple[StreamId, bytes]:
        """Return the next piece. Raises EndOfStream after the last one, ClosedResourceError when closed."""
        while not self._pieces:
            if self._is_closed:
                raise anyio.ClosedResourceError
            if self._is_finished:
                raise anyio.EndOfStream
            self._changed = anyio.Event()
            await self._changed.wait()
        stream, data = self._pieces.popleft()
        self._waiting[stream] -= len(data)
        return stream, bytes(data)

    def _get_last(self, stream: StreamId) -> bytearray | None:
        """Return the stream's last piece if more can be added to it."""
        for owner, piece in islice(reversed(self._pieces), len(StreamId)):
            if owner is stream and isinstance(piece, bytearray):
                return piece
        return None

# SPDX-License-Identifier: Apache-2.0
"""The multiplexed stream of attach, exec and logs: frames of an eight-byte header and their payload.

    byte   0         1 2 3    4 5 6 7            8 …
           stream    zero     length (big end)   payload
           0 stdin, 1 stdout, 2 stderr, 3 an error of the server's, as text

Source: Engine API, ContainerAttach, "Stream format".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

HEADER = struct.Struct(">BxxxI")
STDIN, STDOUT, STDERR, SYSTEM_ERROR = range(4)

MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
RAW = "application/vnd.docker.raw-stream"

MAX_FRAME = 16 * 1024 * 1024  # no server sends frames near this; a longer one is a broken stream


def frame(stream: int, payload: bytes) -> bytes:
    """Return one frame."""
    return HEADER.pack(stream, len(payload)) + payload


class FrameReader:
    """Splits a byte stream into frames, however it was cut on the way."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Add bytes and yield the (stream, payload) pairs now complete.

        Raises ValueError when the bytes cannot be frames (a tty's raw output read as frames, usually).
        """
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            stream, length = HEADER.unpack_from(self._buffer)
            if stream > SYSTEM_ERROR or self._buffer[1:4] != b"\0\0\0" or length > MAX_FRAME:
                raise ValueError("the stream is not in the multiplexed format")
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            yield stream, payload

    @property
    def pending(self) -> bool:
        """Whether a part of a frame is held: at the end of a stream, that it was cut off."""
        return bool(self._buffer)

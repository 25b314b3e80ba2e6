# SPDX-License-Identifier: Apache-2.0
"""Several streams in one body."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

import pytest

from proa.wire.sections import PIECE_MAX, StreamReader, join_streams

pytestmark = pytest.mark.anyio


async def cut(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def read(reader: StreamReader, number: int) -> bytes:
    return b"".join([piece async for piece in reader.read(number)])


@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_what_is_joined_is_read(size: int) -> None:
    streams: list[Iterable[bytes]] = [[b"one", b"", b"more"], [], [b"three"]]
    reader = StreamReader(cut(b"".join(join_streams(streams)), size))
    assert [await read(reader, number) for number in range(3)] == [b"onemore", b"", b"three"]


async def test_what_is_not_read_is_skipped() -> None:
    reader = StreamReader(cut(b"".join(join_streams([[b"a" * 10], [b"b"], [b"c"]])), 4))
    async for _ in reader.read(0):
        break
    assert await read(reader, 2) == b"c"


async def test_broken_bodies() -> None:
    for body, message in (
        (b"", "ends too early"),
        (b"\0\0\0\5abc", "ends too early"),
        ((PIECE_MAX + 1).to_bytes(4, "big") + b"x", "too long"),
        (b"".join(join_streams([[b"x"]])), "ends too early"),
    ):
        with pytest.raises(ValueError, match=message):
            await read(StreamReader(cut(body, 2)), 1)

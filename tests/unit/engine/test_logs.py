# SPDX-License-Identifier: Apache-2.0
"""Reading of container logs: records, partial lines, tails, spans of time, following."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.engine.log_tail import End
from proa.engine.logs import LogQuery, parse_time_ns, read_log
from proa.runtime.seam import StreamId

pytestmark = pytest.mark.anyio

LINES = "".join(
    f"2026-01-01T00:00:{second:02}.000000000+00:00 {stream} F line {second}\n"
    for second, stream in enumerate(["stdout", "stderr"] * 5)
)


async def read(path: Path, query: LogQuery) -> list[tuple[StreamId, bytes]]:
    async def never() -> None:
        await anyio.sleep_forever()

    return [(record.stream, record.data) async for record in read_log(path, query, End(lambda: True, never))]


async def test_all(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(LINES)
    records = await read(path, LogQuery())
    assert records[0] == (StreamId.STDOUT, b"line 0\n")
    assert records[1] == (StreamId.STDERR, b"line 1\n")
    assert len(records) == 10


async def test_a_missing_log_is_empty(tmp_path: Path) -> None:
    assert await read(tmp_path / "none", LogQuery()) == []


@pytest.mark.parametrize(("tail", "first"), [(0, None), (1, 9), (3, 7), (10, 0), (99, 0)])
async def test_tail(tmp_path: Path, tail: int, first: int | None) -> None:
    path = tmp_path / "log"
    path.write_text(LINES)
    records = await read(path, LogQuery(tail=tail))
    assert (records[0][1] if records else None) == (None if first is None else b"line %d\n" % first)


async def test_tail_of_one_stream(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(LINES)
    assert await read(path, LogQuery(stderr=False, tail=2)) == [
        (StreamId.STDOUT, b"line 6\n"),
        (StreamId.STDOUT, b"line 8\n"),
    ]


async def test_span(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(LINES)
    start = parse_time_ns(b"2026-01-01T00:00:03Z")
    end = parse_time_ns(b"2026-01-01T00:00:05Z")
    assert len(await read(path, LogQuery(since_ns=start, until_ns=end))) == 3


async def test_partial_lines_are_joined_and_stamped_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    stamp = "2026-01-01T00:00:00.5+00:00 stdout"
    path.write_text(f"{stamp} P ab\n{stamp} P cd\n{stamp} F ef\n{stamp} P end\n")
    assert b"".join(data for _, data in await read(path, LogQuery())) == b"abcdef\nend"
    stamped = b"".join(data for _, data in await read(path, LogQuery(timestamps=True)))
    assert stamped == b"2026-01-01T00:00:00.5Z abcdef\n2026-01-01T00:00:00.5Z end"


async def test_follow_sees_what_comes_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("2026-01-01T00:00:00Z stdout F one\n")
    ended = anyio.Event()
    got: list[bytes] = []

    async def follow() -> None:
        async for record in read_log(path, LogQuery(follow=True), End(ended.is_set, ended.wait)):
            got.append(record.data)
            if len(got) == 2:
                ended.set()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            await anyio.sleep(0.02)
            with path.open("a") as file:
                file.write("2026-01-01T00:00:01Z stdout F two\n")
    assert got == [b"one\n", b"two\n"]


@given(st.binary(max_size=300))
def test_times_of_any_bytes(data: bytes) -> None:
    assert isinstance(parse_time_ns(data), int)


async def test_rubbish_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(
        b"\xff\xfe rubbish\n\nstdout F\n" + LINES.encode() + b"2026-01-01T00:00:00Z stdout F cut"
    )
    assert len(await read(path, LogQuery())) == 10

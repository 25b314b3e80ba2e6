# SPDX-License-Identifier: Apache-2.0
"""Logs of several files: what is kept, and that readers and followers get every line once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import pytest

from proa.engine.log_files import LogKeeper, begin, keep, list_files, remove_all, used_bytes
from proa.engine.log_options import LogPolicy, merge_log_config, parse_log_config
from proa.engine.log_tail import End
from proa.engine.logs import LogQuery, LogRecord, read_log
from proa.model.config import LogConfig
from proa.model.errors import InvalidParameter

pytestmark = pytest.mark.anyio

POLICY = LogPolicy(max_bytes=100, max_files=3, compress=False)


class Writer:
    """Writes as conmon does: a full file is replaced by renaming a new one over it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._file = path.open("ab")

    def write(self, lines: int = 1) -> None:
        for _ in range(lines):
            self._file.write(b"2026-11-23T22:07:32.000000000+00:00 stdout F %d\n" % self.count)
            self.count += 1
        self._file.flush()

    def replace(self) -> None:
        self._file.close()
        new = self.path.with_name("log.tmp")
        self._file = new.open("wb")
        new.rename(self.path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c" / "log"


async def numbers(records: AsyncIterator[LogRecord]) -> list[int]:
    return [int(record.data) async for record in records]


def read(path: Path, query: LogQuery | None = None) -> AsyncIterator[LogRecord]:
    async def never() -> None:
        await anyio.sleep_forever()

    return read_log(path, query or LogQuery(), End(lambda: True, never))


def fill(path: Path, files: int, policy: LogPolicy = POLICY) -> Writer:
    """Write ten lines to each of so many files."""
    begin(path, policy)
    writer = Writer(path)
    for number in range(files):
        if number:
            writer.replace()
            keep(path, policy)
        writer.write(10)
    return writer


@pytest.mark.parametrize("compress", [False, True])
async def test_what_is_kept_is_read_in_order(path: Path, compress: bool) -> None:
    fill(path, 6, LogPolicy(max_bytes=100, max_files=4, compress=compress))
    packed = [part.is_compressed for part in list_files(path)]
    assert packed == ([True, True, False, False] if compress else [False] * 4)
    assert await numbers(read(path)) == list(range(20, 60))
    for tail in (0, 1, 10, 11, 25, 39, 40, 100):
        assert await numbers(read(path, LogQuery(tail=tail))) == list(range(60))[-40:][40 - min(tail, 40) :]
    assert used_bytes(path) > 0
    remove_all(path)
    assert list(path.parent.iterdir()) == []


async def test_a_file_without_its_number_yet_is_read(path: Path) -> None:
    writer = fill(path, 2)
    writer.replace()
    writer.write(5)
    assert await numbers(read(path)) == list(range(25))


def test_a_full_file_is_left_at_the_next_start(path: Path) -> None:
    fill(path, 1)
    begin(path, POLICY)
    assert [part.path.name for part in list_files(path)] == ["log.1", "log.2"]
    assert path.stat().st_size == 0
    begin(path, POLICY)
    assert len(list_files(path)) == 2, "an empty one is gone on with"


@pytest.mark.parametrize("named", [True, False], ids=["at once", "late"])
async def test_followers_get_every_line_once(path: Path, named: bool) -> None:
    begin(path, POLICY)
    writer = Writer(path)
    ended, got = anyio.Event(), list[int]()

    async def follow() -> None:
        async for record in read_log(path, LogQuery(follow=True), End(ended.is_set, ended.wait)):
            got.append(int(record.data))

    async with anyio.create_task_group() as group:
        group.start_soon(follow)
        for _ in range(6):
            writer.write(10)
            await _until(lambda: len(got) == writer.count or not named)
            writer.replace()
            if named:
                keep(path, POLICY)
            else:
                await _until(lambda: len(got) == writer.count)
        writer.write(3)
        ended.set()
    assert got == list(range(63))


async def test_the_keeper_names_what_is_replaced(path: Path) -> None:
    async with anyio.create_task_group() as group:
        keeper = LogKeeper(group)
        begin(path, POLICY)
        keeper.watch(path, POLICY)
        writer = Writer(path)
        for number in range(2, 6):
            writer.write(10)
            writer.replace()
            await _until(lambda number=number: list_files(path)[-1].number == number)  # type: ignore[misc]
        assert [part.number for part in list_files(path)] == [3, 4, 5]
        keeper.unwatch(path)
        keeper.unwatch(path)
        group.cancel_scope.cancel()


async def _until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.001)


def test_bounds() -> None:
    assert parse_log_config(LogConfig()) == LogPolicy(max_bytes=10 << 20, max_files=3, compress=False)
    assert parse_log_config(LogConfig(type="local")).compress
    options = {"max-size": "1.5k", "max-file": "2", "compress": "true"}
    assert parse_log_config(LogConfig(config=options)) == LogPolicy(
        max_bytes=1536, max_files=2, compress=True
    )
    assert parse_log_config(LogConfig(config={"max-size": "-1"})).max_bytes == 0


@pytest.mark.parametrize(
    ("driver", "options", "sentence"),
    [
        ("json-file", {"colour": "red"}, "unknown log opt 'colour' for json-file log driver"),
        ("local", {"labels": "a"}, "unknown log opt 'labels' for local log driver"),
        ("json-file", {"max-size": "x"}, "invalid size: 'x'"),
        ("json-file", {"max-size": "0"}, "max-size must be a positive number"),
        ("json-file", {"max-file": "0"}, "max-file cannot be less than 1"),
        ("json-file", {"max-file": "a"}, "invalid value for max-file"),
        ("json-file", {"compress": "maybe"}, "invalid value for compress"),
        ("json-file", {"compress": "true", "max-file": "1"}, "compress cannot be true when max-file is less"),
        ("json-file", {"mode": "fast"}, "logger: logging mode not supported: fast"),
        ("json-file", {"max-buffer-size": "1m"}, "only supported with 'mode=non-blocking'"),
        ("syslog", {"max-size": "1m"}, "unknown log opt 'max-size' for syslog log driver"),
        ("journald", {"syslog-address": "x"}, "unknown log opt 'syslog-address' for journald log driver"),
        ("syslog", {"cache-disabled": "true"}, "cache-disabled is not supported"),
        ("fluentd", {}, "logger: no log driver named 'fluentd' is registered"),
    ],
)
def test_bad_options(driver: str, options: dict[str, str], sentence: str) -> None:
    with pytest.raises(InvalidParameter, match=sentence):
        parse_log_config(LogConfig(type=driver, config=options))


def test_the_daemons_defaults() -> None:
    default = LogConfig(type="json-file", config={"max-size": "1m", "max-file": "2"})
    assert merge_log_config(LogConfig(), default) == default
    asked = LogConfig(type="json-file", config={"max-size": "5m"})
    assert merge_log_config(asked, default).config == {"max-size": "5m", "max-file": "2"}
    assert merge_log_config(LogConfig(type="local"), default) == LogConfig(type="local")

# SPDX-License-Identifier: Apache-2.0
"""Reads a container's log: the whole, its tail, a span of time, or on and on as it grows.

The file is written by conmon or by the guest agent, in conmon's k8s-file format, while the daemon may be
away. One record is one line of the file:

    2026-11-23T22:07:32.123456789+00:00 stdout F the text, a newline is implied
    2026-11-23T22:07:32.123456789+00:00 stderr P text that was not ended by a newline

Source: conmon, "k8s-file"; Engine API, ContainerLogs.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import anyio
from inotify_simple import INotify, flags

from proa.runtime.seam import StreamId

_CHUNK = 64 * 1024
_TAIL_BLOCK = 64 * 1024
_STREAMS = {b"stdout": StreamId.STDOUT, b"stderr": StreamId.STDERR}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogQuery:
    """What GET /containers/{id}/logs asks. Times are Unix nanoseconds, 0 unset; ``tail`` None means all."""

    stdout: bool = True
    stderr: bool = True
    since_ns: int = 0
    until_ns: int = 0
    tail: int | None = None
    timestamps: bool = False
    follow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecord:
    """One piece of output, with the timestamp in front when the query asked for it."""

    stream: StreamId
    data: bytes


async def read_log(
    path: Path, query: LogQuery, ended: Callable[[], bool], wait_ended: Callable[[], Awaitable[object]]
) -> AsyncIterator[LogRecord]:
    """Yield the records asked for; with ``follow`` until the container has ended and all has been read.

    :param ended: whether the container has ended by now.
    :param wait_ended: waits for its end.
    """
    if not path.exists():
        if not query.follow:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with path.open("rb") as file:
        start = await anyio.to_thread.run_sync(_tail_offset, file.fileno(), query)
        file.seek(start)
        parser = _Parser(query)
        while chunk := file.read(_CHUNK):
            for record in parser.feed(chunk):
                yield record
            await anyio.lowlevel.checkpoint()
            if parser.past_until:
                return
        if not query.follow:
            return
        async for chunk in _grow(path, file.fileno(), ended, wait_ended):
            for record in parser.feed(chunk):
                yield record
            if parser.past_until:
                return


def parse_time_ns(text: bytes) -> int:
    """Return Unix nanoseconds of an RFC 3339 time with up to nine digits of fraction; 0 when it is none."""
    try:
        head, _, rest = text.partition(b".")
        digits = rest[: len(rest) - len(rest.lstrip(b"0123456789"))]
        zone = rest[len(digits) :] if rest else head[19:]
        base = datetime.fromisoformat((head[:19] + (b"+00:00" if zone == b"Z" else zone)).decode())
    except (ValueError, UnicodeDecodeError):
        return 0
    return int(base.timestamp()) * 1_000_000_000 + int(digits.ljust(9, b"0")[:9] or 0)


class _Parser:
    """Cuts the file into records and keeps those asked for. Does no I/O."""

    def __init__(self, query: LogQuery) -> None:
        self._query = query
        self._rest = b""
        self._wanted = {
            name
            for name, stream in _STREAMS.items()
            if (query.stdout if stream is StreamId.STDOUT else query.stderr)
        }
        self._in_line: dict[bytes, bool] = {}  # a stream whose last record was partial
        self.past_until = False

    def feed(self, chunk: bytes) -> Iterator[LogRecord]:
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            record = self._parse(line)
            if record is not None:
                yield record
            if self.past_until:
                return

    def _parse(self, line: bytes) -> LogRecord | None:
        parts = line.split(b" ", 3)
        if len(parts) != 4 or parts[1] not in _STREAMS:
            return None  # a line cut by a crash of the writer
        time, stream, tag, text = parts
        if stream not in self._wanted:
            return None
        query = self._query
        if query.since_ns or query.until_ns:
            at = parse_time_ns(time)
            if at < query.since_ns:
                return None
            if query.until_ns and at > query.until_ns:
                self.past_until = True
                return None
        continues = self._in_line.get(stream, False)
        partial = tag[:1] == b"P"
        self._in_line[stream] = partial
        data = text if partial else text + b"\n"
        if query.timestamps and not continues:
            data = _docker_time(time) + b" " + data
        return LogRecord(stream=_STREAMS[stream], data=data)


def _docker_time(time: bytes) -> bytes:
    """Return the time as docker logs -t prints it: UTC with nine digits."""
    if time.endswith(b"+00:00"):
        return time[:-6] + b"Z"
    if time.endswith(b"Z"):
        return time
    at = parse_time_ns(time)
    whole = datetime.utcfromtimestamp(at // 1_000_000_000)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{at % 1_000_000_000:09d}Z".encode()


def _tail_offset(fd: int, query: LogQuery) -> int:
    """Return where the last ``tail`` lines of the wanted streams begin, reading the file backwards."""
    if query.tail is None:
        return 0
    end = os.fstat(fd).st_size
    if query.tail <= 0:
        return end
    wanted = tuple(
        name
        for name, stream in _STREAMS.items()
        if (query.stdout if stream is StreamId.STDOUT else query.stderr)
    )
    position, carry, found = end, b"", 0
    while position > 0:
        start = max(0, position - _TAIL_BLOCK)
        block = os.pread(fd, position - start, start) + carry
        lines = block.split(b"\n")
        carry = lines[0] if start > 0 else b""
        offset = start + len(block)
        for index in range(len(lines) - 1, 0 if start > 0 else -1, -1):
            line = lines[index]
            offset -= len(line)
            if _ends_line(line, wanted):
                found += 1
                if found > query.tail:
                    return offset + len(line) + 1
            offset -= 1
        position = start
    return 0


def _ends_line(line: bytes, wanted: tuple[bytes, ...]) -> bool:
    parts = line.split(b" ", 3)
    return len(parts) == 4 and parts[1] in wanted and parts[2][:1] == b"F"


async def _grow(
    path: Path, fd: int, ended: Callable[[], bool], wait_ended: Callable[[], Awaitable[object]]
) -> AsyncIterator[bytes]:
    """Yield what is appended until the container has ended and nothing more is there."""
    with INotify() as watch:
        watch.add_watch(str(path), flags.MODIFY | flags.CLOSE_WRITE)
        while True:
            # Asked before the read: what was written before the end is then surely read.
            is_last = ended()
            while chunk := os.read(fd, _CHUNK):
                yield chunk
            if is_last:
                return
            await _first_of(lambda: anyio.wait_readable(watch.fileno()), wait_ended)
            watch.read(timeout=0)


async def _first_of(*waits: Callable[[], Awaitable[object]]) -> None:
    """Return when one of them has."""
    async with anyio.create_task_group() as group:

        async def run(wait: Callable[[], Awaitable[object]]) -> None:
            await wait()
            group.cancel_scope.cancel()

        for wait in waits:
            group.start_soon(run, wait)

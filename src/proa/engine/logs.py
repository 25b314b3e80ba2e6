# SPDX-License-Identifier: Apache-2.0
"""Reads a container's log: the whole, its tail, a span of time, or on and on as it grows.

The files (``log_files``) are written by conmon or by the guest agent, in conmon's k8s-file format, while the
daemon may be away. One record is one line:

    2026-11-23T22:07:32.123456789+00:00 stdout F the text, a newline is implied
    2026-11-23T22:07:32.123456789+00:00 stderr P text that was not ended by a newline

Source: conmon, "k8s-file"; Engine API, ContainerLogs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import anyio

from proa.engine.log_files import Part, list_files
from proa.engine.log_tail import CHUNK_BYTES, End, grow, unpack
from proa.runtime.seam import StreamId

_TAIL_BLOCK = 64 * 1024
STREAMS = {b"stdout": StreamId.STDOUT, b"stderr": StreamId.STDERR}


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
    details: bool = False
    prefix: bytes = b""  # of each line: what ``details`` means for this container


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecord:
    """One piece of output, with the timestamp in front when the query asked for it."""

    stream: StreamId
    data: bytes


async def read_log(path: Path, query: LogQuery, end: End) -> AsyncIterator[LogRecord]:
    """Yield the records asked for; with ``follow`` until the container has ended and all has been read."""
    if query.follow and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with contextlib.ExitStack() as files:
        parts = list_files(path)
        opened = await anyio.to_thread.run_sync(_open_all, parts, query, files)
        parser = _Parser(query)
        for file in opened:
            while chunk := file.read(CHUNK_BYTES):
                for record in parser.feed(chunk):
                    yield record
                await anyio.lowlevel.checkpoint()
                if parser.past_until:
                    return
        if not query.follow or not opened:
            return
        done = max(part.number for part in parts)
        fd = opened[-1].fileno()
        async for piece in grow(path, fd, number=parts[-1].number, done=done, end=end):
            for record in parser.feed(piece.data):
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
            for name, stream in STREAMS.items()
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
        if len(parts) != 4 or parts[1] not in STREAMS:
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
        if query.prefix and not continues:
            data = query.prefix + data
        if query.timestamps and not continues:
            data = _docker_time(time) + b" " + data
        return LogRecord(stream=STREAMS[stream], data=data)


def _docker_time(time: bytes) -> bytes:
    """Return the time as docker logs -t prints it: UTC with nine digits."""
    if time.endswith(b"+00:00"):
        return time[:-6] + b"Z"
    if time.endswith(b"Z"):
        return time
    at = parse_time_ns(time)
    whole = datetime.utcfromtimestamp(at // 1_000_000_000)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{at % 1_000_000_000:09d}Z".encode()


def _open_all(parts: Sequence[Part], query: LogQuery, files: contextlib.ExitStack) -> list[BinaryIO]:
    """Open the files of a log, oldest first, each where the reading is to begin.

    All at once, so that none is dropped before it has been read.
    """
    opened: list[BinaryIO] = []
    left = query.tail
    for part in reversed(parts):
        try:
            file: BinaryIO = files.enter_context(part.path.open("rb"))
        except FileNotFoundError:  # dropped, or compressed, just now
            continue
        if part.is_compressed:
            file = files.enter_context(unpack(file))
        opened.append(file)
        if left is not None:
            offset, found = _tail_offset(file.fileno(), left, query)
            file.seek(offset)
            left = max(left - found, 0)
            if not left and not query.follow:
                break
    return opened[::-1]


def _tail_offset(fd: int, tail: int, query: LogQuery) -> tuple[int, int]:
    """Return where the last ``tail`` lines of the wanted streams begin, and how many there are from there.

    Reads the file backwards.
    """
    end = os.fstat(fd).st_size
    if tail <= 0:
        return end, 0
    wanted = tuple(
        name
        for name, stream in STREAMS.items()
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
                if found > tail:
                    return offset + len(line) + 1, tail
            offset -= 1
        position = start
    return 0, found


def _ends_line(line: bytes, wanted: tuple[bytes, ...]) -> bool:
    parts = line.split(b" ", 3)
    return len(parts) == 4 and parts[1] in wanted and parts[2][:1] == b"F"

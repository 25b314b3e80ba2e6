# SPDX-License-Identifier: Apache-2.0
"""Follows the files of a log as they grow and are replaced, until the container has ended.

Source: inotify(7).
"""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import anyio
from inotify_simple import INotify, flags

from proa.engine.container import State
from proa.engine.log_files import list_files
from proa.engine.registry import Registry
from proa.engine.unit import Unit

CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Piece:
    """What was read from a file of the log. ``number`` is the file's, 0 as long as it has none."""

    fd: int
    number: int
    data: bytes


@dataclass(frozen=True, slots=True)
class End:
    """An end that is waited for: whether it has come, and a way to wait for it."""

    has_come: Callable[[], bool]
    wait: Callable[[], Awaitable[object]]


def end_of(registry: Registry, unit: Unit) -> End:
    """Return the end of a container that no restart follows."""

    def has_come() -> bool:
        current = registry.find(unit.id)
        return current is None or not (current.is_alive or current.state is State.RESTARTING)

    async def wait() -> None:
        with unit.waiting(unit.stop_waiters) as waiter:
            if not has_come():
                await waiter()

    return End(has_come, wait)


async def grow(path: Path, fd: int, *, number: int, done: int, end: End) -> AsyncGenerator[Piece, None]:
    """Yield what is appended until the container has ended and nothing more is there.

    :param fd: the file to begin with, at the place to begin, and ``number`` its number.
    :param done: the highest number there was when it was opened, of those up to it.
    """
    with INotify() as watch, contextlib.ExitStack() as files:
        watch.add_watch(str(path.parent), flags.MOVED_TO | flags.CREATE)
        watch.add_watch(f"/proc/self/fd/{fd}", flags.MODIFY | flags.CLOSE_WRITE)
        while True:
            # Asked before the read: what was written before the end is then surely read.
            is_last = end.has_come()
            while chunk := os.read(fd, CHUNK_BYTES):
                yield Piece(fd, number, chunk)
            following, number_after, done = _next_file(path, os.fstat(fd).st_ino, done)
            if following is not None:
                while chunk := os.read(fd, CHUNK_BYTES):  # nobody writes there any more
                    yield Piece(fd, number, chunk)
                files.close()  # a dropped file is gone only when nobody has it open
                fd, number = files.enter_context(following).fileno(), number_after
                watch.add_watch(f"/proc/self/fd/{fd}", flags.MODIFY | flags.CLOSE_WRITE)
                continue
            if is_last:
                return
            await _first_of(lambda: anyio.wait_readable(watch.fileno()), end.wait)
            watch.read(timeout=0)


def _next_file(path: Path, inode: int, done: int) -> tuple[BinaryIO | None, int, int]:
    """Open the file that came after the one read; None when it is the present one.

    :param done: the highest number of those that have been read; returned anew, last.
    """
    for part in list_files(path):
        if part.inode == inode:
            done = max(done, part.number)
        elif not part.number or part.number > done:
            with contextlib.suppress(FileNotFoundError):
                plain = part.path.open("rb")
                opened = unpack(plain) if part.is_compressed else plain
                return opened, part.number, max(done, part.number)
    return None, 0, done


def unpack(packed: BinaryIO) -> BinaryIO:
    """Return the content of a compressed file of a log."""
    plain = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    with gzip.open(packed) as source:
        shutil.copyfileobj(source, plain, 1 << 20)
    plain.seek(0)
    return plain


async def _first_of(*waits: Callable[[], Awaitable[object]]) -> None:
    """Return when one of them has."""
    async with anyio.create_task_group() as group:

        async def run(wait: Callable[[], Awaitable[object]]) -> None:
            await wait()
            group.cancel_scope.cancel()

        for wait in waits:
            group.start_soon(run, wait)

# SPDX-License-Identifier: Apache-2.0
"""The files of a container's log, and who keeps the old ones.

The writer (conmon, or the VM's driver) begins a new file by renaming it over ``log``, whether a daemon runs
or not. What was there before would be gone with that, so every file gets a second name while it is written:

    log           the file that is written now
    log.7         the same file: its name when it has been replaced
    log.6         the one before; log.5.gz an older one, compressed

Numbers only grow, so that a reader that follows knows which file comes after the one it has read. While no
daemon runs, the writer goes on within the bound, and of what it writes the file before the last is lost.

Source: conmon(8), --log-size-max; inotify(7).
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup
from inotify_simple import INotify, flags

from proa.engine.log_options import LogPolicy

log = logging.getLogger(__name__)

_PART = re.compile(r"(\d{1,18})(\.gz)?")
_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """A file that has a number, or (``number`` 0) one that is still to get it."""

    number: int
    path: Path
    inode: int

    @property
    def is_compressed(self) -> bool:
        return self.path.suffix == ".gz"


def list_parts(path: Path) -> list[Part]:
    """Return the numbered files of the log at ``path``, oldest first; one that is half compressed once."""
    found: dict[int, Part] = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(path.parent) as entries:
        for entry in entries:
            match = _PART.fullmatch(entry.name.removeprefix(f"{path.name}."))
            if match is None or entry.name == match[0]:
                continue
            number = int(match[1])
            if number not in found or not match[2]:
                with contextlib.suppress(FileNotFoundError):  # dropped just now
                    # What readdir says of an inode is not always what stat does (overlayfs).
                    found[number] = Part(number, Path(entry.path), Path(entry.path).stat().st_ino)
    return sorted(found.values())


def list_files(path: Path) -> list[Part]:
    """Return all files of the log, oldest first, the one that is written now last."""
    parts = list_parts(path)
    with contextlib.suppress(FileNotFoundError):
        inode = path.stat().st_ino
        if not parts or parts[-1].inode != inode:
            parts.append(Part(0, path, inode))
    return parts


def used_bytes(path: Path) -> int:
    """Return what the whole log occupies."""
    total = 0
    for part in list_files(path):
        with contextlib.suppress(FileNotFoundError):
            total += part.path.stat().st_blocks * 512
    return total


def remove_all(path: Path) -> None:
    """Remove the log. Raises OSError."""
    for part in list_parts(path):
        part.path.unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def begin(path: Path, policy: LogPolicy) -> None:
    """Make the log ready for a writer that appends to it: a full file is left, and the present one named."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if policy.max_bytes and path.stat().st_size >= policy.max_bytes:
            keep(path, policy)
            path.unlink()
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    keep(path, policy)


def keep(path: Path, policy: LogPolicy) -> None:
    """Give the present file its number, and drop what is beyond the bound."""
    parts = list_parts(path)
    try:
        inode = path.stat().st_ino
    except FileNotFoundError:
        return
    if not parts or parts[-1].inode != inode:
        name = path.with_name(f"{path.name}.{parts[-1].number + 1 if parts else 1}")
        with contextlib.suppress(FileExistsError):
            os.link(path, name)
        parts = list_parts(path)
    for old in parts[: -policy.max_files]:
        old.path.unlink(missing_ok=True)
    if policy.compress:
        # Not the last but one: who follows the log may still be reading it.
        for old in parts[-policy.max_files : -2]:
            if not old.is_compressed:
                _compress(old.path)


def _compress(path: Path) -> None:
    """A daemon killed in the middle leaves both; the plain one is then taken for the true one."""
    half = path.with_name(f".{path.name}.half")
    with path.open("rb") as plain, gzip.open(half, "wb", compresslevel=1) as packed:
        shutil.copyfileobj(plain, packed, _COPY_BYTES)
    half.rename(path.with_name(f"{path.name}.gz"))
    path.unlink(missing_ok=True)


class LogKeeper:
    """Keeps old files of all logs that are written now. ``tasks`` owns the one task that waits."""

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self._inotify: INotify | None = None
        self._watched: dict[int, tuple[Path, LogPolicy]] = {}  # by watch descriptor
        self._numbers: dict[Path, int] = {}

    def watch(self, path: Path, policy: LogPolicy) -> None:
        """Keep the files of this log until ``unwatch``. Idempotent."""
        if not policy.max_bytes or path in self._numbers:
            return
        if self._inotify is None:
            self._inotify = INotify()
            self._tasks.start_soon(self._run, self._inotify, name="logs")
        number = self._inotify.add_watch(str(path.parent), flags.MOVED_TO | flags.ONLYDIR)
        self._watched[number] = path, policy
        self._numbers[path] = number
        keep(path, policy)

    def unwatch(self, path: Path) -> None:
        """The writer has ended. Idempotent."""
        number = self._numbers.pop(path, None)
        if number is None or self._inotify is None:
            return
        watched = self._watched.pop(number)
        try:
            keep(*watched)
            self._inotify.rm_watch(number)
        except OSError as error:  # the directory is gone
            log.debug("leaving the log %s: %s", path, error)

    async def _run(self, inotify: INotify) -> None:
        try:
            while True:
                await anyio.wait_readable(inotify.fileno())
                changed = {event.wd: event for event in inotify.read(timeout=0)}
                for number in changed:
                    if number in self._watched:
                        await self._keep(*self._watched[number])
        finally:
            inotify.close()
            self._inotify = None

    async def _keep(self, path: Path, policy: LogPolicy) -> None:
        try:
            if policy.compress:
                await anyio.to_thread.run_sync(keep, path, policy)
            else:
                keep(path, policy)
        except OSError as error:
            log.warning("keeping the log %s: %s", path, error)

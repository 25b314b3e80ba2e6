# SPDX-License-Identifier: Apache-2.0
"""Blobs on their way from a registry, kept when the way is cut: the next pull goes on where this one ended.

A file is named by the digest it must get. What is in it is believed only after it has been hashed, from its
first byte, by the process that goes on; so a file that a power cut has damaged costs a download and nothing
else. Files that nobody has touched for KEPT_S are removed when the daemon starts and after each pull.

One writer for each digest is the caller's duty (``proa.engine.downloads``). All methods are synchronous;
those that read or write files are called in worker threads.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from proa.model.errors import Internal
from proa.model.ids import Digest

KEPT_S = 24 * 3600  # an interrupted pull is tried again the same day, or not at all
RESERVE_BYTES = 64 * 1024 * 1024  # left free, so that a hostile or mistaken upload cannot stop the daemon
_CHECK_EVERY_BYTES = 16 * 1024 * 1024  # how often free space is looked at
_READ_BYTES = 1024 * 1024
_STEP_BYTES = 64 * 1024 * 1024  # hashed at a time: a tenth of a second, then others may have the thread


class Partials:
    """The files below ``root``."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._in_use: Counter[Digest] = Counter()

    def open(self) -> None:
        """Make the directory and remove what nobody resumed. Idempotent."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.prune(KEPT_S)

    def path(self, digest: Digest) -> Path:
        """Where the file is, or would be."""
        return self._root / digest.removeprefix("sha256:")

    @contextlib.contextmanager
    def using(self, digest: Digest) -> Iterator[None]:
        """Keep a file from being pruned for the span of the block."""
        self._in_use[digest] += 1
        try:
            yield
        finally:
            self._in_use[digest] -= 1
            self._in_use += Counter()  # forgets what is at zero

    def resume(self, digest: Digest, size: int) -> PartialFile:
        """Open the file for a blob of ``size`` bytes. Before anything else, ``catch_up`` until it is done."""
        return PartialFile(self.path(digest), digest, size)

    def drop(self, digest: Digest) -> None:
        """Remove a file. Idempotent."""
        with disk_errors():
            self.path(digest).unlink(missing_ok=True)

    def prune(self, kept_s: float) -> int:
        """Remove files that nobody uses and nobody has written to for ``kept_s``; return the bytes freed."""
        freed = 0
        limit = time.time() - kept_s
        for path in list(self._root.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                if found.st_mtime <= limit and Digest(f"sha256:{path.name}") not in self._in_use:
                    path.unlink()
                    freed += found.st_size if found.st_nlink == 1 else 0
        return freed


class PartialFile:
    """A file being completed. Not thread-safe. ``close`` it always.

    :ivar offset: bytes that are there.
    """

    def __init__(self, path: Path, digest: Digest, size: int) -> None:
        self._path = path
        self._digest = digest
        self._size = size
        self.offset = 0
        self._hash = hashlib.sha256()
        self._check_at = 0
        with disk_errors():
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.utime(self._fd)  # it is in use again: its time starts anew
            found = os.fstat(self._fd).st_size
        if found > size:
            self.restart()

    def catch_up(self) -> bool:
        """Hash some of what is there; True when all of it is, and writing goes on at its end."""
        with disk_errors():
            for _ in range(_STEP_BYTES // _READ_BYTES):
                piece = os.read(self._fd, _READ_BYTES)
                if not piece:
                    return True
                self._hash.update(piece)
                self.offset += len(piece)
        return False

    @property
    def missing(self) -> int:
        """Bytes that have not come."""
        return self._size - self.offset

    @property
    def is_right(self) -> bool:
        """Whether all of it is there and has the digest."""
        return self.missing == 0 and f"sha256:{self._hash.hexdigest()}" == self._digest

    def write(self, data: bytes) -> None:
        """Append. Raises Internal when the disk is nearly full."""
        self._hash.update(data)
        with disk_errors():
            if self.offset >= self._check_at:
                self._check_at = self.offset + _CHECK_EVERY_BYTES
                check_space(self._fd)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        self.offset += len(data)

    def restart(self) -> None:
        """Throw away what is there. The file may be a blob by now, so it is replaced and not emptied."""
        self.close()
        with disk_errors():
            self._path.unlink(missing_ok=True)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.offset, self._check_at, self._hash = 0, 0, hashlib.sha256()

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def check_space(fd: int) -> None:
    """Raise OSError when the file system of an open file is nearly full."""
    space = os.fstatvfs(fd)
    if space.f_bavail * space.f_frsize < RESERVE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sync(path: Path) -> None:
    """Have a file or directory on the disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turn OSError into ours, wherever this package writes to the disk."""
    try:
        yield
    except OSError as error:
        raise Internal(f"cannot write to the content store: {error.strerror or error}") from error

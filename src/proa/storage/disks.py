# SPDX-License-Identifier: Apache-2.0
"""The writable disk of a container that runs as a virtual machine: a sparse ext4 image with ``upper`` and
``work`` directories in its root.

mke2fs runs once, for a template; a disk is a copy of the template's few hundred kilobytes of data, by reflink
where the file system can. The template is made for a file of zeros: its inode tables are marked as zeroed, so
the guest's kernel does not write them out in the background, and there are no resize blocks, which would be
4 MB of every copy.

Source: mke2fs(8), lseek(2) on SEEK_DATA, ioctl_ficlone(2).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import tempfile
from pathlib import Path

import anyio
import anyio.to_thread

from proa.host import process

WRITABLE_BYTES = (
    10 << 30
)  # what a guest may write, as Docker's devicemapper gave; the file grows as it is used
JOURNAL_MB = 16  # enough for a disk that one guest writes; the default of 64 only takes space
_TEMPLATE_VERSION = 1  # to be raised when the options below change
_SCRATCH = ".template-"
_FICLONE = 0x40049409
_MAGIC_OFFSET, _MAGIC = 1024 + 56, b"\x53\xef"  # of the ext4 superblock


class Disks:
    """Makes disks from a template kept in ``directory``."""

    def __init__(self, directory: Path, *, size_bytes: int = WRITABLE_BYTES) -> None:
        self._template = directory / f".writable-{size_bytes}-{_TEMPLATE_VERSION}.ext4"
        self._size_bytes = size_bytes
        self._lock = anyio.Lock()
        for leftover in directory.glob(_SCRATCH + "*"):
            shutil.rmtree(leftover, ignore_errors=True)

    async def make(self, path: Path) -> None:
        """Make a disk at ``path``, whole or not at all. Raises ToolFailed, OSError."""
        async with self._lock:
            if not self._template.exists():
                await self._make_template()
        await anyio.to_thread.run_sync(_copy, self._template, path)

    def written_bytes(self, path: Path) -> int:
        """Return what the disk occupies beyond a new one; 0 when there is none."""
        try:
            used = path.stat().st_blocks
            return max(0, used - self._template.stat().st_blocks) * 512
        except FileNotFoundError:
            return 0

    async def _make_template(self) -> None:
        with tempfile.TemporaryDirectory(dir=self._template.parent, prefix=_SCRATCH) as scratch:
            content = Path(scratch) / "root"
            for name in ("upper", "work"):
                (content / name).mkdir(parents=True)
            content.chmod(0o755)
            image = Path(scratch) / "image"
            with image.open("wb") as file:
                file.truncate(self._size_bytes)
            await process.run(
                [
                    *(
                        "mke2fs",
                        "-q",
                        "-F",
                        "-t",
                        "ext4",
                        "-b",
                        "4096",
                        "-m",
                        "0",
                        "-J",
                        f"size={JOURNAL_MB}",
                    ),
                    *("-O", "^resize_inode", "-E", "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"),
                    *("-d", content, image),
                ]
            )
            with image.open("rb") as file:
                await anyio.to_thread.run_sync(os.fsync, file.fileno())
            image.chmod(0o600)
            image.rename(self._template)


def is_disk(path: Path) -> bool:
    """Tell whether a disk is there. A file without a file system is one whose making a power cut undid: disks
    are not synced when made, for nothing is lost with a new one."""
    try:
        with path.open("rb") as file:
            return os.pread(file.fileno(), len(_MAGIC), _MAGIC_OFFSET) == _MAGIC
    except FileNotFoundError:
        return False


def _copy(template: Path, path: Path) -> None:
    incoming = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    with contextlib.ExitStack() as undo:
        undo.callback(incoming.unlink, missing_ok=True)
        with template.open("rb") as source, incoming.open("xb") as copy:
            incoming.chmod(0o600)
            _copy_data(source.fileno(), copy.fileno())
        incoming.rename(path)


def _copy_data(source: int, copy: int) -> None:
    try:
        fcntl.ioctl(copy, _FICLONE, source)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV):
            raise
    else:
        return
    size = os.fstat(source).st_size
    os.truncate(copy, size)
    end = 0
    with contextlib.suppress(OSError):  # ENXIO: no data follows
        while True:
            start = os.lseek(source, end, os.SEEK_DATA)
            end = os.lseek(source, start, os.SEEK_HOLE)
            _copy_range(source, copy, start, end)


def _copy_range(source: int, copy: int, start: int, end: int) -> None:
    while start < end:
        data = os.pread(source, min(end - start, 1 << 20), start)
        start += os.pwrite(copy, data, start)

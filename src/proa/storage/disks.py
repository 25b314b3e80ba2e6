# SPDX-License-Identifier: Apache-2.0
"""The writable disk of a container that runs as a virtual machine: a sparse ext4 image with ``upper`` and
``work`` directories in its root.

mke2fs runs once, for a blank disk; the others are copies of its few hundred kilobytes of data, by reflink
where the file system can. The blank is made for a file of zeros: its inode tables are marked as zeroed, so
the guest's kernel does not write them out in the background, and there are no resize blocks, which would be
4 MB of every copy. Nothing in it is random or of its time: memory templates, in which it is mounted, fit
every blank of the same size.

Source: mke2fs(8), debugfs(8).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import anyio
import anyio.to_thread

from proa.host import process, sparse

WRITABLE_BYTES = (
    10 << 30
)  # what a guest may write, as Docker's devicemapper gave; the file grows as it is used
JOURNAL_MB = 16  # enough for a disk that one guest writes; the default of 64 only takes space
_BLANK_VERSION = 2  # to be raised when the options below change
_SCRATCH = ".blank-"
_UUID, _HASH_SEED = "a7c1e2d0-5b1f-4c55-9d2e-70726f610001", "a7c1e2d0-5b1f-4c55-9d2e-70726f610002"
_TIME = {"E2FSPROGS_FAKE_TIME": "1", "SOURCE_DATE_EPOCH": "1"}
_MAGIC_OFFSET, _MAGIC = 1024 + 56, b"\x53\xef"  # of the ext4 superblock


class Disks:
    """Makes disks from a blank one kept in ``directory``."""

    def __init__(self, directory: Path, *, size_bytes: int = WRITABLE_BYTES) -> None:
        self._blank = directory / f".writable-{size_bytes}-{_BLANK_VERSION}.ext4"
        self._size_bytes = size_bytes
        self._lock = anyio.Lock()
        for leftover in directory.glob(_SCRATCH + "*"):
            shutil.rmtree(leftover, ignore_errors=True)

    async def ensure_blank(self) -> Path:
        """Return the blank disk, made now when there is none. It is not to be written. Raises ToolFailed."""
        async with self._lock:
            if not self._blank.exists():
                await self._make_blank()
        return self._blank

    async def make(self, path: Path) -> None:
        """Make a disk at ``path``, whole or not at all. Raises ToolFailed, OSError."""
        blank = await self.ensure_blank()
        await anyio.to_thread.run_sync(sparse.copy, blank, path)

    def written_bytes(self, path: Path) -> int:
        """Return what the disk occupies beyond a new one; 0 when there is none."""
        try:
            used = path.stat().st_blocks
            return max(0, used - self._blank.stat().st_blocks) * 512
        except FileNotFoundError:
            return 0

    async def _make_blank(self) -> None:
        with tempfile.TemporaryDirectory(dir=self._blank.parent, prefix=_SCRATCH) as scratch:
            image, commands = Path(scratch) / "image", Path(scratch) / "commands"
            commands.write_text("mkdir upper\nmkdir work\n")
            with image.open("wb") as file:
                file.truncate(self._size_bytes)
            env = {**process.BASE_ENV, **_TIME}
            options = f"lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0,hash_seed={_HASH_SEED}"
            make = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-J", f"size={JOURNAL_MB}"]
            await process.run([*make, "-O", "^resize_inode", "-U", _UUID, "-E", options, image], env=env)
            await process.run(["debugfs", "-w", "-f", commands, image], env=env)
            with image.open("rb") as file:
                await anyio.to_thread.run_sync(os.fsync, file.fileno())
            image.chmod(0o600)
            image.rename(self._blank)


def is_disk(path: Path) -> bool:
    """Tell whether a disk is there. A file without a file system is one whose making a power cut undid: disks
    are not synced when made, for nothing is lost with a new one."""
    try:
        with path.open("rb") as file:
            return os.pread(file.fileno(), len(_MAGIC), _MAGIC_OFFSET) == _MAGIC
    except FileNotFoundError:
        return False

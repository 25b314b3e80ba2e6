# SPDX-License-Identifier: Apache-2.0
"""The root disk of a machine that is made of an image: one ext4 file system, without a partition table.

Nothing is mounted: ``mke2fs -d`` writes the tree's files, with owners, modes, times (whole seconds), xattrs,
hard links, devices and holes, in a confined child (``ext4_program``). The result is taken as any disk is.

Source: mke2fs(8).
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import proa
from proa.host import process
from proa.machines import images
from proa.machines.ext4_program import TIME_S
from proa.model.errors import InvalidParameter, ToolFailed, Unavailable

SMALLEST_BYTES = 16 << 20  # of an ext4 with a journal and a few files
USUAL_BYTES = 8 << 30  # of a disk whose size nobody named; what is not written takes no room on the host
_BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from proa.machines.ext4_program import main; main()"
)
_FULL = ("Could not allocate", "No space left", "no space", "not enough space", "Could not expand")


def size_for(wanted: int, content: int) -> int:
    """Return the size of the disk of an image with ``content`` bytes. Raises InvalidParameter."""
    size = wanted or max(USUAL_BYTES, 2 * content)
    if size < SMALLEST_BYTES:
        raise InvalidParameter(f"a root disk of {size} bytes: {SMALLEST_BYTES} are needed")
    images.check_size(size)
    return size


async def make(tree: int, target: Path, *, size: int, identifier: str, user: int | None) -> None:
    """Make the disk ``target`` (qcow2) of the directory of the descriptor ``tree``, or leave nothing.

    :param identifier: the UUID of the file system.
    :param user: who rewrites it, see ``images.import_disk``.
    :raises InvalidParameter: the files do not fit.
    :raises Unavailable: there is no mke2fs.
    :raises ToolFailed: the host's disk is full, or such.
    """
    program = shutil.which("mke2fs", path=process.BASE_ENV["PATH"])
    if program is None:
        raise Unavailable("disks of images need mke2fs: apt install e2fsprogs")
    work = target.with_name(f"{target.stem}.work")
    work.mkdir(mode=0o700)
    try:
        for name in ("root", "out"):
            (work / name).mkdir(mode=0o700)
        raw = work / "out" / "disk"
        with raw.open("xb") as file:
            os.ftruncate(file.fileno(), size)
        await _fill(tree, work, [program, *_words(identifier)])
        await images.import_disk(raw, target, size=0, user=user)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _words(identifier: str) -> list[str]:
    # What a kernel makes up later is left to it, or a large disk would take long; the file has holes there.
    lazy = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
    return [
        "-q",
        "-F",
        "-t",
        "ext4",
        "-m",
        "1",
        "-U",
        identifier,
        "-L",
        "root",
        "-E",
        lazy,
        "-d",
        ".",
        "/out/disk",
    ]


async def _fill(tree: int, work: Path, words: list[str]) -> None:
    argv: list[process.Argument] = [
        *(sys.executable, "-I", "-S", "-c", _BOOTSTRAP),
        Path(proa.__file__).parents[1],
        str(tree),
        work,
        *words,
    ]
    done = await process.run(argv, timeout_s=2 * TIME_S, pass_fds=(tree,), check=False)
    if done.status == 0:
        return
    if any(text in done.stderr for text in _FULL):
        raise InvalidParameter(f"the image does not fit its disk: name a larger one ({done.stderr.strip()})")
    raise ToolFailed(words[:1], done.status, done.stderr)

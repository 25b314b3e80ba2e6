# SPDX-License-Identifier: Apache-2.0
"""Disk images of strangers become disks of our own making.

QEMU never opens an image that a user gave. It is copied into the machine's directory, its header is looked at
here, and then ``qemu-img`` rewrites it as qcow2, as a user without any rights and with limits on memory, time
and what it writes. What could make a reader follow a name out of the image (a backing file, a data file) or
fill the host (an absurd size) is refused before that.

Source: QEMU docs/interop/qcow2.txt, Header; qemu-img(1); setpriv(1), prlimit(1), unshare(1).
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from proa.host import process
from proa.model.errors import InvalidParameter, ToolFailed, Unavailable

GIB = 1 << 30
MAX_DISK_BYTES = 16 << 40  # more than any host here holds, and what ext4 takes
MAX_L1_BYTES = 32 << 20  # QEMU's own limit of the table that is kept in memory
SECTOR_BYTES = 512
HEADER_BYTES = 112

_QCOW2 = b"QFI\xfb"
# Formats that qemu-img would read too, but that nobody needs as a source; as raw they would only not boot.
_FOREIGN = {
    b"KDMV": "VMDK",
    b"# Disk DescriptorFile"[:4]: "VMDK",
    b"conectix"[:4]: "VHD",
    b"vhdxfile"[:4]: "VHDX",
    b"QED\0": "QED",
}
_DIRTY, _CORRUPT, _DATA_FILE = 1, 2, 4  # incompatible features
_KNOWN_FEATURES = 0b11111  # and compression type, extended L2 entries
_TIMEOUT_S = 3600.0  # for tens of gigabytes on a slow disk
_TOOL_MEMORY_BYTES = 2 * GIB
_TOOL_CPU_S = 1800


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the beginning of an image tells.

    :ivar format: qcow2 or raw.
    :ivar size: what a guest sees, in bytes; 0 for a raw image.
    :ivar snapshots: how many are inside it.
    """

    format: str
    size: int = 0
    snapshots: int = 0


def parse_header(head: bytes) -> Header:
    """Read the first HEADER_BYTES of an image.

    :raises InvalidParameter: it is of another format, or has what a disk of a stranger must not have.
    """
    magic = head[:4]
    if magic in _FOREIGN:
        raise InvalidParameter(
            f"the image is {_FOREIGN[magic]}: only qcow2 and raw images are taken (see qemu-img convert)"
        )
    if magic != _QCOW2:
        return Header(format="raw")
    if len(head) < 72:
        raise InvalidParameter("the qcow2 image is cut off in its header")
    version, backing_offset, backing_size, cluster_bits, size, encryption, l1_size = struct.unpack_from(
        ">IQIIQII", head, 4
    )
    if version not in (2, 3):
        raise InvalidParameter(f"the qcow2 image has version {version}: 2 and 3 are known")
    if backing_offset or backing_size:
        raise InvalidParameter("the qcow2 image has a backing file: flatten it with qemu-img convert")
    if encryption:
        raise InvalidParameter("the qcow2 image is encrypted")
    if not 9 <= cluster_bits <= 21:
        raise InvalidParameter(f"the qcow2 image has clusters of 2^{cluster_bits} bytes: 9 to 21 are sound")
    features = 0
    if version == 3:
        if len(head) < HEADER_BYTES - 8:
            raise InvalidParameter("the qcow2 image is cut off in its header")
        features = struct.unpack_from(">Q", head, 72)[0]
    if features & _DATA_FILE:
        raise InvalidParameter(
            "the qcow2 image keeps its data in another file: flatten it with qemu-img convert"
        )
    if features & _CORRUPT:
        raise InvalidParameter("the qcow2 image is marked as corrupt: qemu-img check -r all may mend it")
    if features & ~_KNOWN_FEATURES:
        raise InvalidParameter(f"the qcow2 image has unknown features ({features:#x})")
    check_size(size)
    if l1_size * 8 > MAX_L1_BYTES:
        raise InvalidParameter("the qcow2 image has a table that does not fit its size")
    (snapshots,) = struct.unpack_from(">I", head, 60)
    return Header(format="qcow2", size=size, snapshots=snapshots)


def check_size(size: int) -> None:
    """Raise InvalidParameter for a size that no disk of a machine can have."""
    if not SECTOR_BYTES <= size <= MAX_DISK_BYTES:
        raise InvalidParameter(
            f"a disk of {size} bytes: from {SECTOR_BYTES} to {MAX_DISK_BYTES} are possible"
        )


async def copy_in(source: Path, target: Path) -> None:
    """Copy a file of the host, holes and all. Raises InvalidParameter, ToolFailed (a full disk)."""
    if not source.is_absolute():
        raise InvalidParameter(f"{source}: the path of a file on the daemon's host must be absolute")
    if not source.is_file():
        raise InvalidParameter(f"{source}: no such file on the daemon's host")
    await process.run(["cp", "--sparse=always", "--reflink=auto", "--", source, target], timeout_s=_TIMEOUT_S)
    target.chmod(0o600)


async def import_disk(source: Path, target: Path, *, size: int, user: int | None, take: bool = False) -> None:
    """Make the disk ``target`` (qcow2) of an image of the host. On failure nothing is left of it.

    :param size: of the disk; 0 takes the image's.
    :param take: the image is ours, on the same file system, and is used up instead of copied.
    :raises InvalidParameter: the image cannot be taken, or is larger than ``size``.
    :raises ToolFailed: the host's disk is full, or such.
    """
    work = target.with_name(f"{target.stem}.import")
    work.mkdir(mode=0o700)
    try:
        copy = work / "source"
        if take:
            source.replace(copy)
        else:
            await copy_in(source, copy)
        with copy.open("rb") as file:
            header = parse_header(file.read(HEADER_BYTES))
        length = header.size or -(-copy.stat().st_size // SECTOR_BYTES) * SECTOR_BYTES
        check_size(length)
        if size and size < length:
            raise InvalidParameter(f"the image {source} has {length} bytes, more than the {size} asked for")
        if user is not None:
            os.chown(copy, user, user)
            os.chown(work, user, user)
        try:
            await _qemu_img(
                ["convert", "-f", header.format, "-O", "qcow2", "source", "disk"], cwd=work, user=user
            )
        except ToolFailed as error:
            if "No space left" in error.stderr:
                raise
            raise InvalidParameter(f"the image {source} cannot be read: {error.stderr.strip()}") from error
        copy.unlink()
        made = work / "disk"
        os.chown(made, 0, 0)
        made.chmod(0o600)
        if size > length:
            await resize(made, size)
        made.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


async def create_blank(target: Path, size: int) -> None:
    """Make an empty disk. Raises InvalidParameter, ToolFailed."""
    check_size(size)
    await _qemu_img(["create", "-q", "-f", "qcow2", target.name, str(size)], cwd=target.parent)
    target.chmod(0o600)


async def resize(disk: Path, size: int) -> None:
    """Let a disk of ours, which no QEMU has open, grow. Raises InvalidParameter, ToolFailed."""
    check_size(size)
    await _qemu_img(["resize", "-q", "-f", "qcow2", disk.name, str(size)], cwd=disk.parent)


def check_own(disk: Path) -> None:
    """Look at a disk of ours before a program reads it with root's rights.

    A guest that has broken out into its QEMU can have written the header. Raises InvalidParameter.
    """
    with disk.open("rb") as file:
        header = parse_header(file.read(HEADER_BYTES))
    if header.format != "qcow2":
        raise InvalidParameter(f"disk {disk.stem} is no qcow2 image any more")


def header_of(disk: Path) -> Header:
    """Return what the header of a disk of ours tells; an empty one when it is missing."""
    try:
        with disk.open("rb") as file:
            return parse_header(file.read(HEADER_BYTES))
    except (OSError, InvalidParameter):
        return Header(format="raw")


async def _qemu_img(words: Sequence[str], *, cwd: Path, user: int | None = None) -> None:
    """Run qemu-img in a directory: names are relative, since another user may not be able to walk there."""
    if shutil.which("qemu-img") is None:
        raise Unavailable("qemu-img is not installed: apt install qemu-utils")
    confined: list[str] = []
    if user is not None:
        confined = ["unshare", "--net", "--ipc", "setpriv", f"--reuid={user}", f"--regid={user}"]
        confined += ["--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--"]
        confined += ["prlimit", f"--as={_TOOL_MEMORY_BYTES}", f"--cpu={_TOOL_CPU_S}", "--core=0", "--"]
    await process.run([*confined, "qemu-img", *words], cwd=cwd, timeout_s=_TIMEOUT_S)

# SPDX-License-Identifier: Apache-2.0
"""What a machine that is made of an image boots: the image's own kernel, or proa's with our initial ram disk.

The tree is a stranger's: nothing in it is followed out of it, only ordinary files are read, up to a limit.

An initial ram disk may be several archives one after the other: ours (``setup/machine.sh``), and one more
with what the image's program is, for ``machine/run.c``.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst; openat2(2).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from proa.host.mount import Resolve, openat2
from proa.model.errors import InvalidParameter

MAX_KERNEL_BYTES = 256 << 20
MAX_INITRD_BYTES = 1 << 30
MAX_PROGRAM_BYTES = 1 << 20  # of machine/run.c
INITS = ("sbin/init", "usr/sbin/init", "lib/systemd/systemd", "usr/lib/systemd/systemd")  # as machine/init
CONSOLES = {"x86_64": "ttyS0", "aarch64": "ttyAMA0", "riscv64": "ttyS0"}

# Of Debian, Fedora and Alpine, and SUSE; @ is the version.
_INITRDS = ("initrd.img-@", "initramfs-@.img", "initramfs-@", "initrd-@")
_KERNEL = re.compile(r"vmlinu[xz]-(.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What the image runs."""

    uid: int
    gid: int
    groups: Sequence[int]
    directory: str
    stop_signal: int
    arguments: Sequence[str]
    environment: Sequence[str]


def find_kernel(tree: int) -> tuple[str, str] | None:
    """Return the paths of the newest kernel in /boot that has an initial ram disk, and of that."""
    try:
        boot = openat2(
            tree, "boot", os.O_RDONLY | os.O_DIRECTORY, resolve=Resolve.IN_ROOT | Resolve.NO_MAGICLINKS
        )
    except OSError:
        return None
    try:
        with os.scandir(boot) as entries:
            names = {entry.name for entry in entries}
    finally:
        os.close(boot)
    versions = sorted(
        (match[1] for name in names if (match := _KERNEL.fullmatch(name))), key=_version, reverse=True
    )
    for version in versions:
        for pattern in _INITRDS:
            if (initrd := pattern.replace("@", version)) in names:
                kernel = next(name for name in (f"vmlinuz-{version}", f"vmlinux-{version}") if name in names)
                return f"boot/{kernel}", f"boot/{initrd}"
    return None


def has_init(tree: int) -> bool:
    """Tell whether the image has what a kernel starts."""
    for path in INITS:
        try:
            os.close(openat2(tree, path, os.O_PATH, resolve=Resolve.IN_ROOT | Resolve.NO_MAGICLINKS))
        except OSError:
            continue
        return True
    return False


def copy_out(tree: int, path: str, target: Path, *, limit: int) -> None:
    """Copy a file out of the tree. Raises InvalidParameter."""
    with _open(tree, path) as source, target.open("xb") as file:
        os.fchmod(file.fileno(), 0o600)
        if os.fstat(source.fileno()).st_size > limit:
            raise InvalidParameter(f"/{path} of the image has more than {limit} bytes")
        shutil.copyfileobj(source, file, 1 << 20)


def write_initrd(parts: Sequence[Path], target: Path, program: Program | None) -> None:
    """Write our initial ram disk, with the program that it is to run when the image has no init.

    :raises InvalidParameter: the program is larger than MAX_PROGRAM_BYTES.
    """
    with target.open("xb") as file:
        os.fchmod(file.fileno(), 0o600)
        for part in parts:
            file.write(part.read_bytes())
        if program is not None:
            file.write(archive("proa/run", describe(program)))


def describe(program: Program) -> bytes:
    """Return the description for ``machine/run.c``. Raises InvalidParameter."""
    fields = [
        str(program.uid),
        str(program.gid),
        ",".join(str(group) for group in program.groups),
        program.directory,
        str(program.stop_signal),
        str(len(program.arguments)),
        *program.arguments,
        *program.environment,
    ]
    text = b"".join(os.fsencode(field) + b"\0" for field in fields)
    if len(text) > MAX_PROGRAM_BYTES or any("\0" in field for field in fields):
        raise InvalidParameter(
            f"command and environment of the image have more than {MAX_PROGRAM_BYTES} bytes, or NUL"
        )
    return text


def archive(name: str, content: bytes) -> bytes:
    """Return a cpio archive (newc) of one file, whose directory is there already."""
    return _member(name, content, stat.S_IFREG | 0o600) + _member("TRAILER!!!", b"", 0)


def _member(name: str, content: bytes, mode: int) -> bytes:
    encoded = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device (2), special device (2), length of the name, check sum
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08x" % number for number in numbers) + encoded
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


@contextlib.contextmanager
def _open(tree: int, path: str) -> Iterator[BinaryIO]:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY  # a FIFO in its place must not hold us up
    try:
        fd = openat2(tree, path, flags, resolve=Resolve.IN_ROOT | Resolve.NO_MAGICLINKS)
    except OSError as error:
        raise InvalidParameter(f"/{path} of the image cannot be read: {error.strerror}") from error
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidParameter(f"/{path} of the image is no ordinary file")
        yield file


def _version(text: str) -> list[tuple[int, str]]:
    """Order versions by their numbers: 6.1.0-9 before 6.1.0-10."""
    return [(int(number or 0), word) for number, word in re.findall(r"(\d*)(\D*)", text)]

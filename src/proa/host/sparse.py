# SPDX-License-Identifier: Apache-2.0
"""Copies and digests files that are mostly holes, touching only what is in them.

Source: lseek(2) on SEEK_DATA, ioctl_ficlone(2).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

_FICLONE = 0x40049409
_PIECE_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 16
_RECORD = struct.Struct("<QQ")  # offset and length of a block that follows; the size and 0 at the end
_CANNOT_CLONE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV)


def copy(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all, by reflink where the file system can; replaces ``target``. Mode 0600.

    Blocks: call it in a worker thread. Raises OSError.
    """
    incoming = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    with contextlib.ExitStack() as undo:
        undo.callback(incoming.unlink, missing_ok=True)
        with incoming.open("xb") as new:
            incoming.chmod(0o600)
            fill(source, new.fileno())
        incoming.rename(target)


def fill(source: Path, target: int) -> None:
    """Copy a file into an open one that is nothing but a hole so far. Blocks, and raises, as ``copy``."""
    with source.open("rb") as old:
        if not _clone(old.fileno(), target):
            os.truncate(target, os.fstat(old.fileno()).st_size)
            for start, data in iter_data(old.fileno()):
                os.pwrite(target, data, start)


def iter_data(fd: int) -> Iterator[tuple[int, bytes]]:
    """Yield what is in the file between its holes, in pieces: offset and bytes."""
    end = 0
    while (found := _find_data(fd, end)) is not None:
        start, end = found
        while start < end and (data := os.pread(fd, min(end - start, _PIECE_BYTES), start)):
            yield start, data
            start += len(data)


def pack(fd: int) -> Iterator[bytes]:
    """Yield a file as a stream without what is zero, which ``unpack`` makes a file of again.

    It is the same for the same content, wherever the file's holes lie. Blocks. Raises OSError.
    """
    size = os.fstat(fd).st_size
    zeros = bytes(_BLOCK_BYTES)
    at = 0
    while at < size and (found := _find_data(fd, at)) is not None:
        start, end = found
        at = start - start % _BLOCK_BYTES
        while at < end:
            block = os.pread(fd, _BLOCK_BYTES, at)
            if block != zeros[: len(block)]:
                yield _RECORD.pack(at, len(block)) + block
            at += _BLOCK_BYTES
    yield _RECORD.pack(size, 0)


def unpack(read: Callable[[int], bytes], fd: int, max_bytes: int) -> None:
    """Fill an empty file from a stream that ``pack`` made. Blocks.

    :param max_bytes: that the file may be long.
    :raises OSError: the stream is cut short or makes no sense (EINVAL).
    """
    while True:
        header = read(_RECORD.size)
        at, length = _RECORD.unpack(header) if len(header) == _RECORD.size else (max_bytes + 1, 0)
        if at + length > max_bytes or length > _BLOCK_BYTES:
            raise OSError(errno.EINVAL, "a packed file is cut short or damaged")
        if length == 0:
            os.truncate(fd, at)
            return
        data = read(length)
        if len(data) != length:
            raise OSError(errno.EINVAL, "a packed file is cut short")
        os.pwrite(fd, data, at)


def _clone(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _CANNOT_CLONE:
            raise
        return False
    return True


def _find_data(fd: int, start: int) -> tuple[int, int] | None:
    """Return where data begins from ``start`` on, and where it ends; None when no more follows."""
    try:
        begin = os.lseek(fd, start, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise
    return begin, os.lseek(fd, begin, os.SEEK_HOLE)

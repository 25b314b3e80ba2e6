# SPDX-License-Identifier: Apache-2.0
"""The memory of another process where it has a file mapped privately: what it has changed, read and written.

A private mapping shows the file until a page is written to; from then on the page is the process's own
(anonymous), in memory or in swap. The kernel tells in /proc/PID/pagemap which those are, and /proc/PID/mem
reads and writes them; both want CAP_SYS_PTRACE. Nobody may change the memory meanwhile.

Source: proc(5); kernel Documentation/admin-guide/mm/pagemap.rst.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_ENTRY_BYTES = 8
_PRESENT, _SWAPPED, _OF_FILE = 0x80, 0x40, 0x20  # bits 63, 62 and 61 of an entry, in its highest byte
_OWN = bytes(bool(byte & (_PRESENT | _SWAPPED)) and not byte & _OF_FILE for byte in range(256))
_RUN = re.compile(b"\1+")
_PIECE_BYTES = 1 << 20
_RECORD = struct.Struct("<QQ")  # offset and length, before each piece in a file


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A range of the file, in bytes."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Area:
    """One mapping: a piece of the file, and where it lies in the process."""

    address: int
    offset: int
    length: int


class MappedFile:
    """A file that a process has mapped privately, for reading and writing; ``close`` it.

    :ivar fd: the file, opened anew for reading and writing; it may have been deleted meanwhile.
    """

    def __init__(self, pid: int, name: str) -> None:
        """Find the one mapped file of that name.

        :raises OSError: the process is gone, or has none.
        """
        self._proc = Path(f"/proc/{pid}")
        path, self._areas = _find_areas(self._proc, name)
        self._memory = os.open(self._proc / "mem", os.O_RDWR | os.O_CLOEXEC)
        try:
            self.fd = _reopen(self._proc, path)
        except BaseException:
            os.close(self._memory)
            raise

    def close(self) -> None:
        """Idempotent."""
        for fd in (self._memory, self.fd):
            if fd >= 0:
                os.close(fd)
        self._memory = self.fd = -1

    def changed(self) -> list[Span]:
        """Return the pages that are the process's own, those beside each other as one span.

        Blocks for a few milliseconds for each GiB. Raises OSError.
        """
        spans: list[Span] = []
        with (self._proc / "pagemap").open("rb", buffering=0) as pagemap:
            for area in self._areas:
                count = area.length // mmap.PAGESIZE
                entries = os.pread(
                    pagemap.fileno(), count * _ENTRY_BYTES, area.address // mmap.PAGESIZE * _ENTRY_BYTES
                )
                own = entries[_ENTRY_BYTES - 1 :: _ENTRY_BYTES].translate(_OWN)
                for run in _RUN.finditer(own):
                    spans.append(
                        Span(
                            offset=area.offset + run.start() * mmap.PAGESIZE,
                            length=(run.end() - run.start()) * mmap.PAGESIZE,
                        )
                    )
        return spans

    def read(self, spans: Sequence[Span]) -> Iterator[tuple[int, bytes]]:
        """Yield what the process sees in the spans, in pieces: offset in the file, bytes. Raises OSError."""
        for offset, address, length in self._pieces(spans):
            data = os.pread(self._memory, length, address)
            if len(data) != length:
                raise OSError(errno.EIO, f"{self._proc}/mem: {len(data)} bytes in place of {length}")
            yield offset, data

    def write(self, offset: int, data: bytes) -> None:
        """Change what the process sees; the file stays as it is. Raises OSError."""
        at = 0
        for _, address, length in self._pieces([Span(offset=offset, length=len(data))]):
            if os.pwrite(self._memory, data[at : at + length], address) != length:
                raise OSError(errno.EIO, f"{self._proc}/mem: a write was cut short")
            at += length

    def _pieces(self, spans: Sequence[Span]) -> Iterator[tuple[int, int, int]]:
        """Cut spans where mappings end: offset in the file, address, length."""
        for span, area in itertools.product(spans, self._areas):
            start = max(span.offset, area.offset)
            end = min(span.offset + span.length, area.offset + area.length)
            while start < end:
                length = min(end - start, _PIECE_BYTES)
                yield start, area.address + start - area.offset, length
                start += length


def copy_changed(source: MappedFile, target: MappedFile) -> int:
    """Make a process see what another sees in the same file; return how many bytes were copied.

    Blocks: call it in a worker thread. Raises OSError.
    """
    spans = source.changed()
    theirs = target.changed()  # few: what the target has changed so far is undone
    copied = 0
    for offset, data in source.read([*spans, *theirs]):
        target.write(offset, data)
        copied += len(data)
    return copied


def save_changed(source: MappedFile, file: BinaryIO) -> None:
    """Write what a process has changed to a file, for ``load_changed``. Blocks. Raises OSError."""
    for offset, data in source.read(source.changed()):
        file.write(_RECORD.pack(offset, len(data)))
        file.write(data)


def load_changed(file: BinaryIO, target: MappedFile) -> None:
    """Make a process see what ``save_changed`` has written. Blocks.

    :raises OSError: the file is cut short, or the process cannot be written to.
    """
    for span in target.changed():  # few: what it has changed so far is undone
        target.write(span.offset, os.pread(target.fd, span.length, span.offset))
    while header := file.read(_RECORD.size):
        offset, length = _RECORD.unpack(header) if len(header) == _RECORD.size else (0, 0)
        data = file.read(length) if 0 < length <= _PIECE_BYTES else b""
        if not data or len(data) != length:
            raise OSError(errno.EIO, "the pages of the memory are cut short")
        target.write(offset, data)


def _find_areas(proc: Path, name: str) -> tuple[str, list[_Area]]:
    found: dict[str, list[_Area]] = {}
    for line in (proc / "maps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if len(words) < 6 or words[1] != "rw-p" or Path(words[5].removesuffix(" (deleted)")).name != name:
            continue
        start, end = (int(word, 16) for word in words[0].split("-"))
        area = _Area(address=start, offset=int(words[2], 16), length=end - start)
        found.setdefault(words[5], []).append(area)
    if len(found) != 1:
        raise OSError(errno.ENOENT, f"{proc}: {len(found)} mapped files are called {name}")
    return found.popitem()


def _reopen(proc: Path, path: str) -> int:
    """Open a file that the process has open, by its descriptor: its name may be another's by now."""
    for link in (proc / "fd").iterdir():
        try:
            if link.readlink() == Path(path):
                return os.open(link, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # closed meanwhile
    raise OSError(errno.ENOENT, f"{proc}: {path} is not open")

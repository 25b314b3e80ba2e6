# SPDX-License-Identifier: Apache-2.0
"""Writes a tar stream: ustar headers, and pax records for what they cannot hold.

The same members give the same bytes. Times keep their nanoseconds, names their bytes. Files with large holes
are written in the sparse format 1.0; others are not, for there are programs that cannot read it (busybox
tar). Runs in the confined child: standard library only.

Source: POSIX.1-2017, pax, ustar Interchange Format and pax Extended Header; GNU tar manual, Storing Sparse
Files.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from proa.storage.tar import BLOCK, SPARSE_MAX

PIECE = 1 << 20  # bytes read and written at a time
HOLES_MIN = 4 << 20  # bytes of holes that make a file worth the sparse format
_FLUSH = 256 * 1024
_ID_MAX = 0o7777777  # seven octal digits
_SIZE_MAX = 0o77777777777  # eleven
_NAME = 100
_PREFIX = 155
_ZEROS = bytes(BLOCK)

_FLAGS = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}

Xattrs = Mapping[bytes, bytes]


@dataclass(slots=True, kw_only=True)
class _Marker:
    """What a header needs to know of a file that is only a name."""

    st_mtime_ns: int
    st_mode: int = stat.S_IFREG
    st_uid: int = 0
    st_gid: int = 0
    st_rdev: int = 0


class TarWriter:
    """Writes members to ``sink``, which takes all of what it is given. ``finish`` comes last."""

    def __init__(self, sink: Callable[[bytes | bytearray | memoryview], None]) -> None:
        self._sink = sink
        self._pending = bytearray()
        self._piece = bytearray(PIECE)
        self.members = 0

    def add(
        self, name: bytes, status: os.stat_result, *, link: bytes = b"", xattrs: Xattrs | None = None
    ) -> None:
        """Write a member without content: a directory (its name gets a slash), link, device or FIFO."""
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR and not name.endswith(b"/"):
            name += b"/"
        self._header(name, status, _FLAGS[kind], 0, link, xattrs or {}, [])

    def add_hard_link(self, name: bytes, status: os.stat_result, target: bytes) -> None:
        """Write a further name of the member called ``target``."""
        self._header(name, status, b"1", 0, target, {}, [])

    def add_marker(self, name: bytes, status: os.stat_result) -> None:
        """Write an empty file of mode 0, whose name is all it says: a whiteout."""
        marker = _Marker(st_mtime_ns=status.st_mtime_ns // 1_000_000_000 * 1_000_000_000)
        self._header(name, marker, b"0", 0, b"", {}, [])

    def add_file(self, name: bytes, status: os.stat_result, fd: int, xattrs: Xattrs | None = None) -> None:
        """Write a file from a descriptor at its beginning. One that shrinks meanwhile is filled with zeros,
        what grows is cut: the header has been written already."""
        pieces = _data_pieces(fd, status)
        if pieces is None:
            self._header(name, status, b"0", status.st_size, b"", xattrs or {}, [])
            self._copy(fd, status.st_size)
            self._pad(status.st_size)
            return
        stored = self._sparse_header(name, status, pieces, xattrs)
        for offset, length in pieces:
            os.lseek(fd, offset, os.SEEK_SET)
            self._copy(fd, length)
        self._pad(stored)

    def add_sparse_content(
        self,
        name: bytes,
        status: os.stat_result,
        pieces: list[tuple[int, int]],
        copy: Callable[[int, Callable[[memoryview], object]], None],
        xattrs: Xattrs | None = None,
    ) -> None:
        """Write a file of which ``copy`` delivers the pieces (offset, length), one after the other."""
        stored = self._sparse_header(name, status, pieces, xattrs)
        self._flush()
        copy(sum(length for _, length in pieces), self._sink)
        self._pad(stored)

    def add_stored_content(
        self,
        name: bytes,
        status: os.stat_result,
        pieces: list[tuple[int, int]],
        copy: Callable[[int, Callable[[memoryview], object]], None],
        xattrs: Xattrs | None = None,
    ) -> None:
        """The same in the form that the guest's agent reads: a record says where the pieces go."""
        stored = sum(length for _, length in pieces)
        numbers = [status.st_size, *(number for piece in pieces for number in piece)]
        records = [(b"PROA.sparse", b" ".join(b"%d" % number for number in numbers))]
        self._header(name, status, b"0", stored, b"", xattrs or {}, records)
        self._flush()
        copy(stored, self._sink)
        self._pad(stored)

    def add_content(
        self,
        name: bytes,
        status: os.stat_result,
        copy: Callable[[int, Callable[[memoryview], object]], None],
        xattrs: Xattrs | None = None,
    ) -> None:
        """Write a file of ``status.st_size`` bytes, which ``copy(count, sink)`` delivers in sequence."""
        self._header(name, status, b"0", status.st_size, b"", xattrs or {}, [])
        self._flush()
        copy(status.st_size, self._sink)
        self._pad(status.st_size)

    def finish(self) -> None:
        """Write the end of the archive and all that is pending."""
        self._pending += bytes(2 * BLOCK)
        self._flush()

    # --- machinery ---

    def _sparse_header(
        self, name: bytes, status: os.stat_result, pieces: list[tuple[int, int]], xattrs: Xattrs | None
    ) -> int:
        """Write header and table of the sparse format 1.0; return how much is stored, for the padding."""
        numbers = [len(pieces), *(number for piece in pieces for number in piece)]
        table = b"".join(b"%d\n" % number for number in numbers)
        table += bytes(-len(table) % BLOCK)
        stored = len(table) + sum(length for _, length in pieces)
        records = [
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", name),
            (b"GNU.sparse.realsize", b"%d" % status.st_size),
        ]
        head, slash, tail = name.rpartition(b"/")
        self._header(
            head + slash + b"GNUSparseFile.0/" + tail, status, b"0", stored, b"", xattrs or {}, records
        )
        self._pending += table
        return stored

    def _header(
        self,
        name: bytes,
        status: os.stat_result | _Marker,
        flag: bytes,
        size: int,
        link: bytes,
        xattrs: Xattrs,
        records: list[tuple[bytes, bytes]],
    ) -> None:
        self.members += 1
        prefix, short = _split(name)
        seconds, nanoseconds = divmod(status.st_mtime_ns, 1_000_000_000)
        if len(short) > _NAME:
            records = [*records, (b"path", name)]
        if len(link) > _NAME:
            records = [*records, (b"linkpath", link)]
        for key, value, most in (
            (b"uid", status.st_uid, _ID_MAX),
            (b"gid", status.st_gid, _ID_MAX),
            (b"size", size, _SIZE_MAX),
        ):
            if value > most:
                records = [*records, (key, b"%d" % value)]
        if nanoseconds or not 0 <= seconds <= _SIZE_MAX:
            records = [*records, (b"mtime", _time(status.st_mtime_ns))]
        records += [(b"SCHILY.xattr." + key, value) for key, value in sorted(xattrs.items())]
        if records:
            text = b"".join(_record(key, value) for key, value in records)
            self._pending += _block(
                b"", b"PaxHeaders/" + short[-80:], 0o644, 0, 0, len(text), 0, b"x", b"", 0
            )
            self._pending += text + bytes(-len(text) % BLOCK)
        self._pending += _block(
            prefix if len(short) <= _NAME else b"",
            short[:_NAME],
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
            size,
            seconds,
            flag,
            link[:_NAME],
            status.st_rdev if flag in b"34" else 0,
        )
        if len(self._pending) >= _FLUSH:
            self._flush()

    def _copy(self, fd: int, count: int) -> None:
        while count:
            view = memoryview(self._piece)[: min(count, PIECE)]
            read = os.readv(fd, [view])
            if not read:
                break
            count -= read
            if len(self._pending) + read <= _FLUSH:
                self._pending += view[:read]
            else:
                self._flush()
                self._sink(view[:read])
        while count:
            self._flush()
            part = bytes(min(count, PIECE))
            self._sink(part)
            count -= len(part)

    def _pad(self, size: int) -> None:
        self._pending += _ZEROS[: -size % BLOCK]
        if len(self._pending) >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._sink(self._pending)
            self._pending = bytearray()


def _split(name: bytes) -> tuple[bytes, bytes]:
    """Cut a long name into ustar's prefix and name; when it does not fit, the name comes back whole."""
    if len(name) > _NAME:
        cut = name.find(b"/", max(0, len(name) - _NAME - 1), -1)
        if 0 < cut <= _PREFIX:
            return name[:cut], name[cut + 1 :]
    return b"", name


def _block(
    prefix: bytes,
    name: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    flag: bytes,
    link: bytes,
    rdev: int,
) -> bytes:
    """One header. What does not fit is zero here and stands in a pax record."""
    head = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0" % (
        name.ljust(_NAME, b"\0"),
        mode,
        uid if uid <= _ID_MAX else 0,
        gid if gid <= _ID_MAX else 0,
        size if size <= _SIZE_MAX else 0,
        mtime if 0 <= mtime <= _SIZE_MAX else 0,
    )
    tail = b"%b%bustar\0" % (flag, link.ljust(_NAME, b"\0")) + b"00"
    tail += bytes(64) + b"%07o\0%07o\0" % (os.major(rdev), os.minor(rdev))
    tail += prefix.ljust(_PREFIX, b"\0") + bytes(12)
    total = sum(head) + 8 * 32 + sum(tail)
    return head + b"%06o\0 " % total + tail


def _record(key: bytes, value: bytes) -> bytes:
    """``LENGTH KEY=VALUE newline``, where LENGTH counts itself too."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %b=%b\n" % (length, key, value)


def _time(nanoseconds: int) -> bytes:
    sign, nanoseconds = (b"-", -nanoseconds) if nanoseconds < 0 else (b"", nanoseconds)
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    text = b"%b%d.%09d" % (sign, seconds, rest)
    return text.rstrip(b"0").rstrip(b".")


def _data_pieces(fd: int, status: os.stat_result) -> list[tuple[int, int]] | None:
    """Offset and length of what is not a hole; None when it is not worth the sparse format."""
    size = status.st_size
    if size - status.st_blocks * 512 < HOLES_MIN:
        return None
    pieces: list[tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole to the end
                break
            os.lseek(fd, 0, os.SEEK_SET)
            return None
        at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start >= size:
            break
        pieces.append((start, at - start))
        if len(pieces) > SPARSE_MAX:
            break
    os.lseek(fd, 0, os.SEEK_SET)
    holes = size - sum(length for _, length in pieces)
    return pieces if holes >= HOLES_MIN and len(pieces) <= SPARSE_MAX else None

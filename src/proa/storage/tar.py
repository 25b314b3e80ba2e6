# SPDX-License-Identifier: Apache-2.0
"""Reads a tar stream from strangers: headers become checked entries, contents pass through unread.

Knows v7, ustar, GNU and pax headers and all four ways of writing sparse files; what it does not know it
refuses, so that a layer is never stored with a file missing. Names are only cut into bytes here; what they
mean is decided in ``proa.storage.tree``. Runs in the confined child (``proa.storage.layer_writer``), so it
imports the standard library only.

Where implementations differ, this one does what Go's archive/tar does, because Docker, containerd and every
registry client that made the layers agree with it: global pax headers are ignored, entries that are
only a header have no content whatever their size says, an archive may end without its two zero blocks.

Source: POSIX.1-2017, pax, ustar Interchange Format and pax Extended Header; GNU tar manual, Standard Format
and Storing Sparse Files.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

BLOCK = 512
SPECIAL_MAX = 1 << 20  # bytes of a pax header or long name, as in Go: a name cannot be longer than a path
SPARSE_MAX = 1 << 16  # pieces of one sparse file; GNU tar writes a few dozen
_TIME_LIMIT = 1 << 63
_XATTR = b"SCHILY.xattr."
_SPARSE = b"GNU.sparse."
_USED_KEYS = frozenset([b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"])


class BadTar(Exception):
    """The stream is not a tar archive that can be stored; the message is one clause for the user."""


class Kind(enum.Enum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    HARDLINK = "hard link"
    CHARACTER = "character device"
    BLOCK = "block device"
    FIFO = "fifo"


_KINDS = {
    b"\0": Kind.FILE,
    b"0": Kind.FILE,
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHARACTER,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
    b"7": Kind.FILE,  # contiguous
    b"S": Kind.FILE,  # GNU sparse
}


@dataclass(slots=True)
class Entry:
    """One member. ``name`` and ``link`` are as written, cut at a NUL; ``stored`` is the length of the content
    in the stream, ``size`` that of the file; they differ when ``pieces`` (offset, length) says where the
    stored bytes go in a sparse file. Not frozen: there is one for each of a million entries."""

    kind: Kind
    name: bytes
    link: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    mtime_nsec: int
    size: int
    stored: int
    device: tuple[int, int]
    xattrs: dict[bytes, bytes]
    pieces: list[tuple[int, int]] | None = None


@dataclass(slots=True)
class _Pending:
    """What extra headers said about the member that follows them."""

    records: dict[bytes, bytes] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    sparse: dict[bytes, bytes] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)  # of format 0.0: offset, length, offset…
    long_name: bytes | None = None
    long_link: bytes | None = None


class Stream:
    """A stream of chunks, read in the pieces that are asked for.

    :param chunks: the bytes in pieces of any length, never empty.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._at = 0

    def read(self, count: int) -> bytes:
        """Return ``count`` bytes, or fewer when the stream ends. For headers: holds all in memory."""
        end = self._at + count
        if end <= len(self._chunk):
            data = self._chunk[self._at : end]
            self._at = end
            return data
        return b"".join(bytes(part) for part in self._parts(count))

    def read_exactly(self, count: int) -> bytes:
        data = self.read(count)
        if len(data) != count:
            raise BadTar("unexpected EOF")
        return data

    def pass_on(self, count: int, sink: Callable[[memoryview], object]) -> None:
        """Give the next ``count`` bytes to ``sink`` in pieces, copying nothing."""
        for part in self._parts(count):
            sink(part)
            count -= len(part)
        if count:
            raise BadTar("unexpected EOF")

    def skip(self, count: int) -> None:
        self.pass_on(count, len)

    def is_over(self) -> bool:
        """Whether nothing follows."""
        if self._at == len(self._chunk):
            self._chunk, self._at = next(self._chunks, b""), 0
        return self._at == len(self._chunk)

    def drain(self) -> None:
        """Read to the end: the digest covers what follows the archive's end as well."""
        self._at = len(self._chunk)
        for chunk in self._chunks:
            del chunk

    def _parts(self, count: int) -> Iterator[memoryview]:
        while count > 0:
            if self._at == len(self._chunk):
                self._chunk, self._at = next(self._chunks, b""), 0
                if not self._chunk:
                    return
            part = memoryview(self._chunk)[self._at : self._at + count]
            self._at += len(part)
            count -= len(part)
            yield part


def iter_entries(stream: Stream) -> Iterator[Entry]:
    """Yield the members in order. The caller consumes ``entry.stored`` bytes of the stream before it asks for
    the next; padding is skipped here.

    :raises BadTar: anything is wrong with it.
    """
    pending = _Pending()
    first = True
    while True:
        header = stream.read(BLOCK)
        if not header and not first:
            return  # no end marker: Go accepts it, and some writers leave it out
        if len(header) < BLOCK:
            raise BadTar("unexpected EOF")
        first = False
        if not header.strip(b"\0"):
            return
        _check_sum(header)
        flag = header[156:157]
        if flag in b"xLKgV":
            _read_special(flag, header, stream, pending)
            continue
        entry = _entry(flag, header, stream, pending)
        pending = _Pending()
        yield entry
        # The docker CLI leaves the last member's padding out when its Dockerfile lies outside the context.
        stream.read(-entry.stored % BLOCK)


def find_components(name: bytes) -> tuple[bytes, ...] | None:
    """Return the components of a name below its directory, "." and ".." taken away; None when it leads out.
    Pure."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part in (b"", b"."):
            continue
        if part != b"..":
            parts.append(part)
        elif parts:
            parts.pop()
        else:
            return None
    return tuple(parts)


def _check_sum(header: bytes) -> None:
    field_ = header[148:156]
    stated = _number(field_, "checksum")
    total = sum(header) - sum(field_) + 8 * 32
    if stated != total:
        # Some old writers added the bytes up as signed ones.
        signed = total - 256 * sum(1 for byte in header[:148] + header[156:] if byte > 127)
        if stated != signed:
            raise BadTar("invalid tar header: wrong checksum")


def _read_special(flag: bytes, header: bytes, stream: Stream, pending: _Pending) -> None:
    size = _unsigned(header[124:136], "size")
    if flag in b"gV":
        stream.skip(size + -size % BLOCK)
        return
    if size > SPECIAL_MAX:
        raise BadTar(f"invalid tar header: an extended header of {size} bytes, at most {SPECIAL_MAX} allowed")
    data = stream.read_exactly(size)
    stream.skip(-size % BLOCK)
    if flag == b"x":
        _read_pax(data, pending)
    elif flag == b"L":
        pending.long_name = data.partition(b"\0")[0]
    else:
        pending.long_link = data.partition(b"\0")[0]


def _read_pax(data: bytes, pending: _Pending) -> None:
    """Read records ``length key=value newline``, the length counting the whole record."""
    at = 0
    while at < len(data):
        digits, blank, _ = data[at : at + 20].partition(b" ")
        length = int(digits) if blank and digits.isdigit() else 0
        record = data[at + len(digits) + 1 : at + length]
        key, equals, value = record[:-1].partition(b"=")
        if length > len(data) - at or not record.endswith(b"\n") or not equals or not key:
            raise BadTar("invalid tar header: malformed pax record")
        at += length
        if key in _USED_KEYS:
            if b"\0" in value:
                raise BadTar("invalid tar header: a pax record holds a NUL")
            pending.records[key] = value
        elif key.startswith(_XATTR):
            pending.xattrs[key[len(_XATTR) :]] = value
        elif key in (_SPARSE + b"offset", _SPARSE + b"numbytes"):
            pending.pieces.append(value)
        elif key.startswith(_SPARSE):
            pending.sparse[key[len(_SPARSE) :]] = value


def _entry(flag: bytes, header: bytes, stream: Stream, pending: _Pending) -> Entry:
    kind = _KINDS.get(flag)
    if kind is None:
        raise BadTar(f"unhandled tar header type {flag[0]}")
    records = pending.records
    name = records.get(b"path") or pending.long_name or _name(header)
    if kind is Kind.FILE and flag != b"S" and name.endswith(b"/"):
        kind = Kind.DIRECTORY  # v7 had no type for it
    stored = _pax_number(records, b"size", _unsigned(header[124:136], "size"))
    seconds, nanoseconds = _pax_time(records, _number(header[136:148], "mtime"))
    device = (0, 0)
    if kind in (Kind.CHARACTER, Kind.BLOCK):
        device = (_unsigned(header[329:337], "major"), _unsigned(header[337:345], "minor"))
    entry = Entry(
        kind=kind,
        name=name,
        link=records.get(b"linkpath") or pending.long_link or header[157:257].partition(b"\0")[0],
        mode=_unsigned(header[100:108], "mode") & 0o7777,
        uid=_pax_number(records, b"uid", _unsigned(header[108:116], "uid")),
        gid=_pax_number(records, b"gid", _unsigned(header[116:124], "gid")),
        mtime=seconds,
        mtime_nsec=nanoseconds,
        size=stored,
        stored=stored,
        device=device,
        xattrs=pending.xattrs,
    )
    if kind is not Kind.FILE:
        entry.size = entry.stored = 0
    elif flag == b"S":
        _read_old_sparse(header, stream, entry)
    elif pending.sparse or pending.pieces:
        _read_pax_sparse(stream, pending, entry)
    if entry.uid > 0xFFFFFFFE or entry.gid > 0xFFFFFFFE:
        raise BadTar(f"invalid tar header: owner {entry.uid}:{entry.gid} is out of range")
    return entry


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    # GNU's own magic ("ustar" and two blanks) keeps other things where POSIX has the prefix.
    if header[257:263] == b"ustar\0" and header[345]:
        return header[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _number(text: bytes, what: str) -> int:
    """Octal digits, or GNU's big-endian two's complement after a set high bit."""
    if text[0] & 0x80:
        # The first byte is 0x80 for a positive number and 0xff for a negative one.
        return int.from_bytes(bytes([text[0] & 0x7F | (text[0] & 0x40) << 1]) + text[1:], "big", signed=True)
    digits = text.partition(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    try:
        if digits.isdigit():
            return int(digits, 8)
    except ValueError:
        pass
    raise BadTar(f"invalid tar header: {what} is not a number")


def _unsigned(text: bytes, what: str) -> int:
    value = _number(text, what)
    if value < 0 or value >= _TIME_LIMIT:
        raise BadTar(f"invalid tar header: {what} is out of range")
    return value


def _decimal(text: bytes, what: str) -> int:
    if not text.isdigit() or len(text) > 19 or (value := int(text)) >= _TIME_LIMIT:
        raise BadTar(f"invalid tar header: {what} is not a number in range")
    return value


def _pax_number(records: dict[bytes, bytes], key: bytes, default: int) -> int:
    text = records.get(key)
    return _decimal(text, key.decode()) if text else default


def _pax_time(records: dict[bytes, bytes], default: int) -> tuple[int, int]:
    """Return seconds and nanoseconds of ``mtime``: decimal, perhaps negative, with any number of digits after
    the point."""
    text = records.get(b"mtime")
    if not text:
        if not -_TIME_LIMIT <= default < _TIME_LIMIT:
            raise BadTar("invalid tar header: mtime is out of range")
        return default, 0
    whole, _, fraction = text.partition(b".")
    negative = whole.startswith(b"-")
    seconds = _decimal(whole.lstrip(b"-") or b"0", "mtime")
    nanoseconds = _decimal(fraction[:9].ljust(9, b"0"), "mtime")
    if negative:
        seconds = -seconds - (nanoseconds > 0)
        nanoseconds = -nanoseconds % 1_000_000_000
    return seconds, nanoseconds


# --- sparse files -----------------------------------------------------------------------------------------


def _read_old_sparse(header: bytes, stream: Stream, entry: Entry) -> None:
    """GNU's own type S: four pieces in the header, then blocks of 21 while a flag says so."""
    pieces: list[tuple[int, int]] = []
    table, more = header[386:482], header[482]
    entry.size = _unsigned(header[483:495], "real size")
    while True:
        for at in range(0, len(table) - 23, 24):
            if not table[at] or not table[at + 12]:
                break
            offset, length = table[at : at + 12], table[at + 12 : at + 24]
            pieces.append((_unsigned(offset, "sparse offset"), _unsigned(length, "sparse length")))
        if not more:
            break
        block = stream.read_exactly(BLOCK)
        table, more = block[:504], block[504]
        if len(pieces) > SPARSE_MAX:
            break
    _set_pieces(entry, pieces)


def _read_pax_sparse(stream: Stream, pending: _Pending, entry: Entry) -> None:
    """Formats 0.0 (a record for each number), 0.1 (one record, commas), 1.0 (lines before the content)."""
    sparse = pending.sparse
    if name := sparse.get(b"name"):
        entry.name = name.partition(b"\0")[0]
    size = sparse.get(b"realsize") or sparse.get(b"size")
    if size is None:
        raise BadTar("invalid tar header: a sparse file without its size")
    entry.size = _decimal(size, "real size")
    if (sparse.get(b"major"), sparse.get(b"minor")) == (b"1", b"0"):
        numbers = _read_sparse_lines(stream, entry)
    else:
        texts = pending.pieces or [text for text in sparse.get(b"map", b"").split(b",") if text]
        numbers = [_decimal(text, "sparse map") for text in texts]
    if len(numbers) % 2:
        raise BadTar("invalid tar header: a sparse map of odd length")
    _set_pieces(entry, list(zip(numbers[::2], numbers[1::2], strict=True)))


def _read_sparse_lines(stream: Stream, entry: Entry) -> list[int]:
    """Read a count of pieces, then offset and length of each, one number a line, padded to a block."""
    text = b""
    wanted = 1
    while text.count(b"\n") < wanted:
        if entry.stored < BLOCK:
            raise BadTar("invalid tar header: a sparse map longer than its file")
        text += stream.read_exactly(BLOCK)
        entry.stored -= BLOCK
        if wanted == 1 and b"\n" in text:
            count = _decimal(text.partition(b"\n")[0], "sparse map")
            if count > SPARSE_MAX:
                raise BadTar(f"a sparse file of {count} pieces, at most {SPARSE_MAX} allowed")
            wanted += 2 * count
        elif wanted == 1 and len(text) > BLOCK:
            raise BadTar("invalid tar header: malformed sparse map")
    return [_decimal(line, "sparse map") for line in text.split(b"\n")[1:wanted]]


def _set_pieces(entry: Entry, pieces: list[tuple[int, int]]) -> None:
    if len(pieces) > SPARSE_MAX:
        raise BadTar(f"a sparse file of more than {SPARSE_MAX} pieces")
    end = 0
    for offset, length in pieces:
        if offset < end:
            raise BadTar("invalid tar header: pieces of a sparse file overlap")
        end = offset + length
    if end > entry.size or sum(length for _, length in pieces) != entry.stored:
        raise BadTar("invalid tar header: the map of a sparse file does not fit its size")
    entry.pieces = pieces

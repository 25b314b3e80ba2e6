# SPDX-License-Identifier: Apache-2.0
"""A tar reader that is fed bytes and gives events. No I/O, nothing is ever extracted.

Reads ustar, GNU (long names, old sparse headers) and pax archives. Content is handed on as views of the fed
data, without a copy, and what must be gathered (headers, long names, pax records) is bounded.

    feed(bytes) ─► Member  content…  MemberEnd   Member  MemberEnd  …   (finish: the end was a fair one)

Source: POSIX.1-2017, pax, ustar Interchange Format and pax Interchange Format; GNU tar manual, Basic Tar
Format.
"""

from __future__ import annotations

import enum
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from proa.model.errors import InvalidParameter

BLOCK_BYTES = 512
MAX_META_BYTES = 1024 * 1024  # a long name, or all pax records of a member
MAX_NAME = 4096  # PATH_MAX
MAX_MEMBER_BYTES = 1 << 40  # 1 TiB

INVALID_HEADER = "archive/tar: invalid tar header"
UNEXPECTED_EOF = "unexpected EOF"

_LONG_NAME, _LONG_LINK = b"L", b"K"
_PAX, _PAX_GLOBAL, _PAX_SOLARIS = b"x", b"g", b"X"
_META_TYPES = frozenset({_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL, _PAX_SOLARIS})
_WITHOUT_CONTENT = frozenset({b"1", b"2", b"3", b"4", b"5", b"6"})  # links, devices, directories, fifos


class MemberKind(enum.Enum):
    FILE = "file"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"
    DIRECTORY = "directory"
    OTHER = "other"  # devices, fifos, unknown types


_KINDS = {
    b"0": MemberKind.FILE,
    b"\0": MemberKind.FILE,
    b"7": MemberKind.FILE,
    b"S": MemberKind.FILE,
    b"1": MemberKind.HARDLINK,
    b"2": MemberKind.SYMLINK,
    b"5": MemberKind.DIRECTORY,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A member begins. ``size`` bytes of content follow; names are as written."""

    name: str
    kind: MemberKind
    size: int
    target: str = ""


class MemberEnd:
    """All content of the member has been given."""


MEMBER_END = MemberEnd()
Event = Member | MemberEnd | memoryview


class _State(enum.Enum):
    HEADER = enum.auto()
    META = enum.auto()  # gathering a long name or pax records
    SPARSE = enum.auto()  # skipping the further headers of an old GNU sparse file
    CONTENT = enum.auto()
    PADDING = enum.auto()
    ENDED = enum.auto()


class TarReader:
    """One archive. Every method raises InvalidParameter when the archive is broken; it is of no use then."""

    def __init__(self) -> None:
        self._state = _State.HEADER
        self._gathered = bytearray()  # a block or a meta body that is not complete yet
        self._remaining = 0  # of content or padding
        self._wanted = BLOCK_BYTES  # of the gathered block or body
        self._meta_type = b""
        self._meta_size = 0
        self._overrides: dict[str, str] = {}
        self._member: Member | None = None

    def feed(self, data: bytes) -> Iterator[Event]:
        """Take the next bytes of the archive. The iterator must be read to its end before the next call.

        What follows the end of the archive is ignored.
        """
        view = memoryview(data)
        while len(view) and self._state is not _State.ENDED:
            if self._state is _State.CONTENT:
                piece, view = view[: self._remaining], view[self._remaining :]
                self._remaining -= len(piece)
                yield piece
                if not self._remaining:
                    yield from self._end_content()
            elif self._state is _State.PADDING:
                skipped = min(len(view), self._remaining)
                view = view[skipped:]
                self._remaining -= skipped
                if not self._remaining:
                    self._expect(_State.HEADER)
            else:
                missing = self._wanted - len(self._gathered)
                self._gathered += view[:missing]
                view = view[missing:]
                if len(self._gathered) == self._wanted:
                    yield from self._complete()

    def finish(self) -> None:
        """Say that no data follows. Raises InvalidParameter (``unexpected EOF``) in the middle of a member.

        An archive without the two zero blocks at its end, or without padding before it, is accepted, as
        by Go.
        """
        if self._state in (_State.ENDED, _State.PADDING):
            return
        if self._state is not _State.HEADER or self._gathered or self._overrides:
            raise InvalidParameter(UNEXPECTED_EOF)

    def _expect(self, state: _State, wanted: int = BLOCK_BYTES) -> None:
        self._state = state
        self._wanted = wanted
        self._gathered.clear()

    def _complete(self) -> Iterator[Event]:
        """A header block, or the body of a meta member, is whole."""
        data = bytes(self._gathered)
        if self._state is _State.META:
            self._overrides.update(self._read_meta(data[: self._meta_size]))
            self._expect(_State.HEADER)
        elif self._state is _State.SPARSE:
            if data[504]:  # another header follows
                self._expect(_State.SPARSE)
            else:
                yield from self._begin_content()
        elif not any(data):
            self._state = _State.ENDED
        else:
            yield from self._read_header(data)

    def _read_header(self, block: bytes) -> Iterator[Event]:
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            raise InvalidParameter(INVALID_HEADER) from error
        if not 0 <= header.size <= MAX_MEMBER_BYTES:
            raise InvalidParameter(INVALID_HEADER)
        if header.type in _META_TYPES:
            if header.size > MAX_META_BYTES:
                raise InvalidParameter("archive/tar: header field too long")
            self._meta_type, self._meta_size = header.type, header.size
            if header.size:
                self._expect(_State.META, _padded(header.size))
            else:
                self._expect(_State.HEADER)
            return
        self._member = self._make_member(header)
        self._overrides = {}
        if header.type == b"S" and block[482]:
            self._expect(_State.SPARSE)
            yield self._member
        else:
            yield self._member
            yield from self._begin_content()

    def _make_member(self, header: tarfile.TarInfo) -> Member:
        name = self._overrides.get("path", header.name)
        target = self._overrides.get("linkpath", header.linkname)
        if max(len(name), len(target)) > MAX_NAME or "\0" in name + target:
            raise InvalidParameter("archive/tar: a name is too long or invalid")
        size = header.size
        if "size" in self._overrides:
            text = self._overrides["size"]
            if not (text.isascii() and text.isdecimal() and len(text) < 16 and int(text) <= MAX_MEMBER_BYTES):
                raise InvalidParameter(INVALID_HEADER)
            size = int(text)
        if header.type in _WITHOUT_CONTENT:
            size = 0
        kind = _KINDS.get(header.type, MemberKind.OTHER)
        if kind is MemberKind.FILE and name.endswith("/"):
            kind = MemberKind.DIRECTORY  # what tars older than ustar wrote
        return Member(name=name, kind=kind, size=size, target=target)

    def _begin_content(self) -> Iterator[Event]:
        assert self._member is not None
        self._remaining = self._member.size
        if self._remaining:
            self._state = _State.CONTENT
        else:
            yield from self._end_content()

    def _end_content(self) -> Iterator[Event]:
        assert self._member is not None
        self._remaining = _padded(self._member.size) - self._member.size
        self._member = None
        if self._remaining:
            self._state = _State.PADDING
        else:
            self._expect(_State.HEADER)
        yield MEMBER_END

    def _read_meta(self, body: bytes) -> dict[str, str]:
        text = body.decode("utf-8", "replace")
        if self._meta_type == _LONG_NAME:
            return {"path": text.rstrip("\0")}
        if self._meta_type == _LONG_LINK:
            return {"linkpath": text.rstrip("\0")}
        if self._meta_type == _PAX_GLOBAL:
            return {}  # defaults for all members; path, linkpath and size make no sense there
        return dict(_pax_records(body))


def _pax_records(body: bytes) -> Iterator[tuple[str, str]]:
    """Read ``LENGTH KEY=VALUE\\n`` records, where LENGTH counts the whole record."""
    start = 0
    while start < len(body):
        digits, space, _ = body[start : start + 20].partition(b" ")
        if not space or not digits.isdigit():
            raise InvalidParameter(INVALID_HEADER)
        end = start + int(digits)
        record = body[start + len(digits) + 1 : end]
        key, equals, value = record[:-1].partition(b"=")
        if end > len(body) or record[-1:] != b"\n" or not equals:
            raise InvalidParameter(INVALID_HEADER)
        if key in (b"path", b"linkpath", b"size"):
            yield key.decode(), value.decode("utf-8", "replace")
        start = end


def _padded(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES

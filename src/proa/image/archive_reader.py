# SPDX-License-Identifier: Apache-2.0
"""Spools the members of an image archive, plain or compressed, as its bytes arrive.

Every file of the archive becomes one numbered, hashed file of a spool, found by its name in the archive.
Names are only keys here: nothing is unpacked, so a name or a link cannot reach anything. What the files mean
is for ``archive_images`` to say.

Source: OCI image-spec, image-layout.md; Docker Image Specification v1.2, Combined Image JSON and Filesystem
Changeset Format (links between layers).
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from proa.image.compression import Inflater
from proa.image.content import Spool, Spooled, SpoolFile
from proa.image.tarstream import Member, MemberEnd, MemberKind, TarReader
from proa.model.errors import InvalidParameter

MAX_MEMBERS = 65_536  # ten images of 500 layers for ten platforms, and three files for each layer
MAX_LINKS = 16  # hops from a link to its file


@dataclass(frozen=True, slots=True, kw_only=True)
class SpooledArchive:
    """What was in an archive: files, and links to resolve, by normalised name."""

    files: dict[str, Spooled]
    links: dict[str, str]

    def find(self, name: str) -> Spooled | None:
        """Return the file of this name, through links; None when there is none."""
        name = _normalise(name)
        for _ in range(MAX_LINKS):
            if name not in self.links:
                return self.files.get(name)
            name = self.links[name]
        raise InvalidParameter(f"invalid archive: too many links from {name!r}")

    def get(self, name: str) -> Spooled:
        """Return the file of this name. Raises InvalidParameter when the archive has none."""
        found = self.find(name)
        if found is None:
            raise InvalidParameter(f"invalid archive: {name!r} is missing")
        return found

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the content of a small file. Raises InvalidParameter: missing, or over ``max_bytes``."""
        spooled = self.get(name)
        if spooled.size > max_bytes:
            raise InvalidParameter(f"invalid archive: {name!r} is larger than {max_bytes} bytes")
        return spooled.path.read_bytes()


class ArchiveSpooler:
    """Fed with the bytes of one archive, fills a spool. Synchronous: fed from worker threads, in order."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._inflater = Inflater()
        self._tar = TarReader()
        self._files: dict[str, Spooled] = {}
        self._links: dict[str, str] = {}
        self._count = 0
        self._name = ""
        self._file: SpoolFile | None = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises InvalidParameter when the archive is broken or too large."""
        for piece in self._inflater.feed(data):
            self._read(piece)

    def finish(self) -> SpooledArchive:
        """Say that all has been fed. Raises InvalidParameter when the archive stops in the middle."""
        for piece in self._inflater.finish():
            self._read(piece)
        self._tar.finish()
        return SpooledArchive(files=self._files, links=self._links)

    def close(self) -> None:
        """Close the file in hand, if any. Idempotent."""
        if self._file is not None:
            self._file.abort()
            self._file = None

    def _read(self, piece: bytes) -> None:
        for event in self._tar.feed(piece):
            if isinstance(event, Member):
                self._begin(event)
            elif isinstance(event, MemberEnd):
                self._end()
            elif self._file is not None:
                self._file.write(event)

    def _begin(self, member: Member) -> None:
        self._count += 1
        if self._count > MAX_MEMBERS:
            raise InvalidParameter(f"invalid archive: it has more than {MAX_MEMBERS} members")
        name = _normalise(member.name)
        # As when unpacking, the last member of a name is the one that counts.
        self._files.pop(name, None)
        self._links.pop(name, None)
        if member.kind is MemberKind.FILE:
            self._name, self._file = name, self._spool.create()
        elif member.kind is MemberKind.SYMLINK:
            self._links[name] = _normalise(posixpath.join(posixpath.dirname(name), member.target))
        elif member.kind is MemberKind.HARDLINK:
            self._links[name] = _normalise(member.target)

    def _end(self) -> None:
        if self._file is not None:
            self._files[self._name] = self._file.finish()
            self._file = None


def _normalise(name: str) -> str:
    """Return the name relative to the archive's root; ``..`` stops there, as in a chroot."""
    return posixpath.normpath("/" + name).lstrip("/")

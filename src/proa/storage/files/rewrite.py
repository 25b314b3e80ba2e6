# SPDX-License-Identifier: Apache-2.0
"""Reads an archive of a stranger, checks it, and writes the same as one of our own. In the confined child.

So what comes out of a guest looks like what comes out of a container, whatever the guest wrote, and the
guest's agent need only read what we write. Source: docs/reference/agent-protocol.md, FILES.
"""

from __future__ import annotations

import os
import stat
from typing import cast

from proa.storage.files.tar_writer import TarWriter
from proa.storage.tar import BadTar, Entry, Kind, Stream, find_components, iter_entries

_TYPES = {
    Kind.FILE: stat.S_IFREG,
    Kind.HARDLINK: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}
_NAME_MAX = 4096


class _Status:
    """What a member's header says, under the names of ``os.stat_result``."""

    def __init__(self, entry: Entry) -> None:
        major, minor = entry.device
        if major > 0xFFF or minor > 0xFFFFF:
            raise BadTar(f"device {major}:{minor} does not exist")
        self.st_mode = _TYPES[entry.kind] | entry.mode & 0o7777
        self.st_uid = entry.uid
        self.st_gid = entry.gid
        self.st_size = entry.size
        self.st_mtime_ns = entry.mtime * 1_000_000_000 + entry.mtime_nsec
        self.st_rdev = os.makedev(major, minor)


def rewrite(
    stream: Stream, tar: TarWriter, *, below: bytes | None, for_guest: bool, max_entries: int
) -> None:
    """Write all members of ``stream`` to ``tar``, which the caller finishes.

    :param below: what every name must be, or be below of, as the archive is of that one file; None for any
        relative name.
    :param for_guest: names are made relative, sparse files get the agent's form.
    :raises BadTar: it is broken, or a name leads out.
    """
    count = 0
    for entry in iter_entries(stream):
        count += 1
        if count > max_entries:
            raise BadTar(f"it has more than {max_entries} files, the limit for a copy")
        name = _checked(entry.name, below, for_guest=for_guest)
        if not name:
            stream.skip(entry.stored)
            continue
        status = cast("os.stat_result", _Status(entry))
        if entry.kind is Kind.HARDLINK:
            target = _checked(entry.link, below, for_guest=for_guest)
            if not target:
                raise BadTar("hard link to a directory")
            tar.add_hard_link(name, status, target)
            stream.skip(entry.stored)
        elif entry.kind is not Kind.FILE:
            if b"\0" in entry.link:
                raise BadTar("a link with a NUL")
            tar.add(name, status, link=entry.link, xattrs=entry.xattrs)
            stream.skip(entry.stored)
        elif entry.pieces is None:
            tar.add_content(name, status, stream.pass_on, entry.xattrs)
        elif for_guest:
            tar.add_stored_content(name, status, entry.pieces, stream.pass_on, entry.xattrs)
        else:
            tar.add_sparse_content(name, status, entry.pieces, stream.pass_on, entry.xattrs)


def _checked(name: bytes, below: bytes | None, *, for_guest: bool) -> bytes:
    """Return a name that stays where it should; empty for the directory itself."""
    if len(name) > _NAME_MAX:
        raise BadTar(f"a name of {len(name)} bytes, at most {_NAME_MAX} allowed")
    if for_guest:
        parts = find_components(name)
        if parts is None:
            raise BadTar("a name leads out of its directory")
        return b"/".join(parts)
    if b".." in name.split(b"/"):
        raise BadTar("a name leads out of its directory")
    if below is not None:
        prefix = below.rstrip(b"/") + b"/"
        if name.rstrip(b"/") != below.rstrip(b"/") and not name.startswith(prefix):
            raise BadTar("a name that was not asked for")
    elif name.startswith(b"/"):
        raise BadTar("an absolute name")
    return name

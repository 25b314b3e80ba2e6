# SPDX-License-Identifier: Apache-2.0
"""Writes the layer that a COPY or ADD makes, from a plan; runs in the confined child.

Nothing is unpacked: files go from the trees they are in straight into a tar. The layer is laid over what is
below, so a name is first followed through the links below (a copy to /lib/x goes to /usr/lib/x where /lib is
a link), and every directory on the way that is below is written as it is there; else the layer's own would
hide its mode and owner. The plan is a JSON object:

    {"time": seconds, "owner": "user:group"|"", "mode": "0755"|"u+x"|"", "clear_owner": true|false,
     "items": [[kind, tree, path, destination, name, inside], …]}

Kinds: "directory" (below a source), "top" (a source's own directory: one that is there keeps its attributes),
"make" (an empty directory), "file" (whatever is at path), "source" (the same, a link followed), "archive" (a
source that is unpacked into the destination when it is a tar), "text" (a file with the content ``path``).
The last three get their ``name`` when the destination is a directory, or is said to be one by ``inside``.
``tree`` is a descriptor, of a directory or, with an empty path, of a file.

Source: Dockerfile reference, COPY, ADD; Linux, Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from proa.host.mount import Resolve, openat2
from proa.storage.decompression import HEAD_BYTES, decompressor_maker, iter_chunks
from proa.storage.files.owner import find_owner
from proa.storage.files.paths import Refusal
from proa.storage.files.tar_writer import TarWriter
from proa.storage.files.walk import read_xattrs
from proa.storage.tar import BadTar, Entry, Kind, Stream, find_components, iter_entries

LINKS_MAX = 40
UNPACKED_MAX = 64 << 30  # bytes of all files of an archive
_ZEROS = bytes(1 << 20)
_IN_ROOT = Resolve.IN_ROOT | Resolve.NO_MAGICLINKS
_WHITEOUT = b".wh."
_SYMBOLIC = re.compile(r"([ugoa]*)([-+=])([rwxXstugo]*)")
_TYPES = {
    Kind.FILE: stat.S_IFREG,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.DIRECTORY: stat.S_IFDIR,
}

Parts = tuple[bytes, ...]


class Assembler:
    """Writes items to ``tar``. ``below`` is a descriptor of what the layers below make, -1 for nothing."""

    def __init__(self, below: int, tar: TarWriter, plan: dict[str, Any], site_packages: str) -> None:
        self._below = below
        self._tar = tar
        self._time_ns = int(plan["time"]) * 1_000_000_000
        self._owner = _find_owner(plan["owner"], below) if plan["owner"] else None
        self._clear_owner = bool(plan["clear_owner"])
        self._mode = plan["mode"]
        self._site_packages = site_packages
        self._unpacked = 0
        self._written: dict[Parts, int] = {}  # what this layer has: the type of each
        self._first: dict[tuple[int, int], bytes] = {}
        apply_mode(self._mode, 0, is_directory=False)  # a wrong one shows before anything is written

    def write(self, items: Sequence[Sequence[Any]]) -> None:
        """Write all items in order. Raises Refusal, BadTar."""
        for kind, tree, path, destination, name, inside in items:
            parts = _parts(os.fsencode(destination))
            if kind == "make":
                self._enter(parts)
            elif kind in ("directory", "top"):
                self._directory(tree, path, parts, keeps=kind == "top")
            elif kind == "file":
                self._file(tree, path, parts, follows=False)
            elif kind == "archive" and self._unpack(tree, path, parts):
                continue
            else:
                if inside or self._is_directory(parts):
                    parts = (*parts, os.fsencode(name))
                if kind == "text":
                    self._text(path.encode(), parts)
                else:
                    self._file(tree, path, parts, follows=True)

    # --- directories ---

    def _enter(self, parts: Parts) -> Parts:
        """Have a directory in the layer, with all above it; return where it really is."""
        real = self._follow(parts)
        for depth in range(1, len(real) + 1):
            here = real[:depth]
            if here in self._written:
                if not stat.S_ISDIR(self._written[here]):
                    raise Refusal("invalid", f"cannot copy to non-directory: {_show(here)}")
                continue
            status = self._stat_below(here)
            if status is None:
                self._written[here] = stat.S_IFDIR
                self._tar.add(b"/".join(here), self._status(stat.S_IFDIR | 0o755, keeps_mode=True))
                continue
            if not stat.S_ISDIR(status.st_mode):
                raise Refusal("invalid", f"cannot copy to non-directory: {_show(here)}")
            self._written[here] = stat.S_IFDIR
            fd = openat2(self._below, b"/".join(here), os.O_RDONLY | os.O_DIRECTORY, resolve=_IN_ROOT)
            self._tar.add(b"/".join(here), status, xattrs=read_xattrs(fd))
            os.close(fd)
        return real

    def _directory(self, tree: int, path: str, parts: Parts, *, keeps: bool) -> None:
        real = self._follow(parts)
        known = real in self._written or not real or self._stat_below(real) is not None
        self._enter(parts)
        if known and keeps:
            return
        fd = openat2(tree, os.fsencode(path) or b".", os.O_RDONLY | os.O_DIRECTORY, resolve=_IN_ROOT)
        status = os.fstat(fd)
        if real:
            self._tar.add(
                b"/".join(real),
                self._status(status.st_mode, like=status),
                xattrs=read_xattrs(fd),
            )
        os.close(fd)

    def _is_directory(self, parts: Parts) -> bool:
        real = self._follow(parts)
        below = self._stat_below(real)
        return not real or stat.S_ISDIR(self._written.get(real, below.st_mode if below is not None else 0))

    def _follow(self, parts: Parts) -> Parts:
        """Return the path that the links below make of a directory's path; what is missing stays."""
        done: list[bytes] = []
        todo = list(reversed(parts))
        followed = 0
        while todo:
            part = todo.pop()
            if part == b"..":
                del done[-1:]
                continue
            here = (*done, part)
            if here not in self._written:
                status = self._stat_below(here)
                if status is not None and stat.S_ISLNK(status.st_mode):
                    followed += 1
                    if followed > LINKS_MAX:
                        raise Refusal("invalid", f"{_show(parts)}: too many levels of symbolic links")
                    target = self._read_link(here)
                    if target.startswith(b"/"):
                        done = []
                    todo += [name for name in reversed(target.split(b"/")) if name not in (b"", b".")]
                    continue
            done.append(part)
        return tuple(done)

    def _stat_below(self, parts: Parts) -> os.stat_result | None:
        if self._below < 0:
            return None
        try:
            fd = openat2(self._below, b"/".join(parts), os.O_PATH | os.O_NOFOLLOW, resolve=_IN_ROOT)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def _read_link(self, parts: Parts) -> bytes:
        fd = openat2(self._below, b"/".join(parts), os.O_PATH | os.O_NOFOLLOW, resolve=_IN_ROOT)
        try:
            return os.readlink(b"", dir_fd=fd)
        finally:
            os.close(fd)

    def _place(self, parts: Parts) -> bytes:
        """Return the name in the layer for what is no directory."""
        if not parts:
            raise Refusal("invalid", "cannot overwrite the root directory with a file")
        if parts[-1].startswith(_WHITEOUT):
            raise BadTar(f"a layer cannot have a file called {_show(parts)!r}: it means a deletion")
        real = (*self._enter(parts[:-1]), parts[-1])
        below = self._stat_below(real)
        known = self._written.get(real, below.st_mode if below is not None else 0)
        if stat.S_ISDIR(known):
            raise Refusal("invalid", f"cannot overwrite directory {_show(real)} with non-directory")
        self._written[real] = stat.S_IFREG
        return b"/".join(real)

    # --- files ---

    def _file(self, tree: int, path: str, parts: Parts, *, follows: bool) -> None:
        fd = _open_source(tree, path, follows=follows)
        try:
            status = os.fstat(fd)
            self._write_file(fd, status, parts)
        finally:
            os.close(fd)

    def _write_file(self, fd: int, status: os.stat_result, parts: Parts) -> None:
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFSOCK:
            return
        if kind == stat.S_IFCHR and status.st_rdev == 0:
            raise BadTar(f"{_show(parts)}: a whiteout cannot be copied")
        name = self._place(parts)
        if status.st_nlink > 1:
            first = self._first.setdefault((status.st_dev, status.st_ino), name)
            if first is not name:
                self._tar.add_hard_link(name, self._status(status.st_mode, like=status), first)
                return
        if kind == stat.S_IFREG:
            self._tar.add_file(name, self._status(status.st_mode, like=status), fd, read_xattrs(fd))
            return
        link = os.readlink(b"", dir_fd=fd) if kind == stat.S_IFLNK else b""
        self._tar.add(name, self._status(status.st_mode, like=status), link=link)

    def _text(self, content: bytes, parts: Parts) -> None:
        def copy(count: int, sink: Callable[[memoryview], object]) -> None:
            sink(memoryview(content))

        status = self._status(stat.S_IFREG | 0o644, size=len(content))
        self._tar.add_content(self._place(parts), status, copy)

    def _status(
        self,
        mode: int,
        *,
        size: int = 0,
        like: os.stat_result | Entry | None = None,
        keeps_mode: bool = False,
    ) -> os.stat_result:
        """Return what a header says: the source's attributes, with what the instruction changes."""
        uid = gid = 0
        mtime_ns, blocks, rdev = self._time_ns, size // 512 + 1, 0
        if isinstance(like, Entry):
            uid, gid, size = like.uid, like.gid, like.size
            mtime_ns, blocks = like.mtime * 1_000_000_000 + like.mtime_nsec, like.size // 512 + 1
            rdev = os.makedev(*like.device)
        elif like is not None:
            size, mtime_ns, blocks, rdev = like.st_size, like.st_mtime_ns, like.st_blocks, like.st_rdev
            if not self._clear_owner:
                uid, gid = like.st_uid, like.st_gid
        if self._owner is not None:
            uid, gid = self._owner
        if self._mode and not keeps_mode and not stat.S_ISLNK(mode):
            mode = stat.S_IFMT(mode) | apply_mode(
                self._mode, stat.S_IMODE(mode), is_directory=stat.S_ISDIR(mode)
            )
        seconds = mtime_ns // 1_000_000_000
        return os.stat_result(
            (mode, 0, 0, 1, uid, gid, size, seconds, seconds, seconds),
            {"st_mtime_ns": mtime_ns, "st_blocks": blocks, "st_rdev": rdev},
        )

    # --- archives ---

    def _unpack(self, tree: int, path: str, into: Parts) -> bool:
        """Write the members of an archive; return False when the file is none."""
        fd = _open_source(tree, path, follows=True)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return False
            head = os.pread(fd, HEAD_BYTES, 0)
            maker = decompressor_maker(head, self._site_packages)
            if not _is_tar(Stream(iter_chunks(fd, maker))):
                return False
            os.lseek(fd, 0, os.SEEK_SET)
            stream = Stream(iter_chunks(fd, maker))
            self._enter(into)
            for entry in iter_entries(stream):
                self._member(entry, stream, into)
        finally:
            os.close(fd)
        return True

    def _member(self, entry: Entry, stream: Stream, into: Parts) -> None:
        parts = (*into, *_parts(entry.name))
        mode = _TYPES.get(entry.kind, stat.S_IFREG) | entry.mode
        status = self._status(mode, like=entry)
        if entry.kind is Kind.DIRECTORY:
            if parts != into:
                self._tar.add(b"/".join(self._enter(parts)), status, xattrs=entry.xattrs)
            return
        name = self._place(parts)
        if entry.kind is Kind.HARDLINK:
            target = (*into, *_parts(entry.link))
            real = (*self._follow(target[:-1]), *target[-1:])
            self._tar.add_hard_link(name, status, b"/".join(real))
        elif entry.kind is not Kind.FILE:
            self._tar.add(name, status, link=entry.link, xattrs=entry.xattrs)
        else:
            self._unpacked += entry.size
            if self._unpacked > UNPACKED_MAX:
                raise BadTar(f"its files have more than {UNPACKED_MAX} bytes, the limit for a layer")
            copy = stream.pass_on if entry.pieces is None else partial(_copy_sparse, stream, entry.pieces)
            self._tar.add_content(name, status, copy, entry.xattrs)


def _find_owner(text: str, below: int) -> tuple[int, int]:
    """Resolve ``--chown``: as ever, but a number alone is the group too."""
    try:
        uid, gid = find_owner(text, below)
    except Refusal as error:
        kind = "uid" if "user" in error.message else "gid"
        word = "user" if kind == "uid" else "group"
        name = text.partition(":")[0 if kind == "uid" else 2]
        raise Refusal(
            "invalid",
            f"unable to convert uid/gid chown string to host mapping: can't find {kind} for {word} {name}: "
            f"no such {word}: {name}",
        ) from error
    return (uid, uid) if text.isdecimal() else (uid, gid)


def _copy_sparse(
    stream: Stream, pieces: Sequence[tuple[int, int]], count: int, sink: Callable[[memoryview], object]
) -> None:
    """Deliver a sparse file of ``count`` bytes whole, with its holes as zeros."""
    at = 0
    for offset, length in [*pieces, (count, 0)]:
        while at < offset:
            hole = min(offset - at, len(_ZEROS))
            sink(memoryview(_ZEROS)[:hole])
            at += hole
        stream.pass_on(length, sink)
        at += length


def _is_tar(stream: Stream) -> bool:
    """Whether the first member can be read, as Docker looks."""
    try:
        return next(iter_entries(stream), None) is not None
    except BadTar:
        return False


def _open_source(tree: int, path: str, *, follows: bool) -> int:
    """Open what a plan names: to read, when it is a regular file; else only to refer to it."""
    if not path:
        fd = os.dup(tree)
        os.lseek(fd, 0, os.SEEK_SET)
        return fd
    name = os.fsencode(path)
    link = 0 if follows else os.O_NOFOLLOW
    fd = openat2(tree, name, os.O_PATH | link, resolve=_IN_ROOT)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return openat2(tree, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | link, resolve=_IN_ROOT)


def apply_mode(text: str, mode: int, *, is_directory: bool) -> int:
    """Return a mode after ``--chmod``: octal digits, or clauses as chmod(1) has them.

    :raises Refusal: it is neither.
    """
    if not text:
        return mode
    if text.isascii() and text.isdecimal():
        try:
            value = int(text, 8)
        except ValueError:
            value = -1
        if not 0 <= value <= 0o7777:
            raise Refusal("invalid", f"invalid chmod parameter: '{text}'. it should be octal string")
        return value
    for clause in text.split(","):
        match = _SYMBOLIC.fullmatch(clause)
        if match is None:
            raise Refusal("invalid", f"invalid chmod parameter: '{text}'. it should be octal string")
        mode = _apply_clause(mode, *match.groups(), is_directory=is_directory)
    return mode


def _apply_clause(mode: int, who: str, operator: str, what: str, *, is_directory: bool) -> int:
    executable = is_directory or bool(mode & 0o111)
    old = mode
    for shift in _shifts(who):
        bits = 0
        for letter in what:
            if letter in "rwx":
                bits |= {"r": 4, "w": 2, "x": 1}[letter]
            elif letter == "X":
                bits |= 1 if executable else 0
            elif letter in "ugo":
                bits |= old >> {"u": 6, "g": 3, "o": 0}[letter] & 7
        special = 0
        if "s" in what:
            special |= {6: stat.S_ISUID, 3: stat.S_ISGID, 0: 0}[shift]
        if "t" in what and shift == 0:
            special |= stat.S_ISVTX
        wanted = bits << shift | special
        if operator == "+":
            mode |= wanted
        elif operator == "-":
            mode &= ~wanted
        else:
            mode = mode & ~(7 << shift) | wanted
    return mode


def _shifts(who: str) -> Iterator[int]:
    for letter, shift in (("u", 6), ("g", 3), ("o", 0)):
        if not who or letter in who or "a" in who:
            yield shift


def _parts(path: bytes) -> Parts:
    parts = find_components(path)
    if parts is None:
        raise BadTar(f"{os.fsdecode(path)!r} is outside of the destination")
    return parts


def _show(parts: Parts) -> str:
    return "/" + os.fsdecode(b"/".join(parts))

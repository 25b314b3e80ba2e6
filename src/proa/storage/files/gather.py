# SPDX-License-Identifier: Apache-2.0
"""Finds what a COPY reads: resolves its sources in a read-only tree, lists the files, and digests them.

Runs in a worker thread of the daemon, on trees of strangers: everything is opened from a descriptor of the
tree's root, with links taken as if it were the root of all, and only regular files are read. The trees are
mounted read-only, so what was looked at stays what it was.

The digest covers names, types, modes, owners, links, extended attributes and contents, but no times: a
checkout of the same files is the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from proa.host.mount import Resolve, openat2
from proa.model.errors import InvalidParameter, NotFound

MAX_ENTRIES = 1_000_000  # files of one COPY
_PIECE = 1 << 20
_IN_ROOT = Resolve.IN_ROOT | Resolve.NO_MAGICLINKS
_WILD = re.compile(r"[*?\[]")

Kept = Callable[[str], bool]
"""Whether a path of the tree, without a leading slash, is there for this COPY."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One file to copy: where it is in the tree, and its name below the source that it came with ("" for the
    source itself). Links are followed on the way to a source, not below it."""

    path: str
    name: str
    is_directory: bool


@dataclass(slots=True, kw_only=True)
class Gathered:
    """One source of a COPY, matched in the tree. ``path`` is as matched, ``is_directory`` what it leads to;
    ``items`` begins with the source itself, a directory before what is in it."""

    path: str
    is_directory: bool
    items: list[Item] = field(default_factory=list)


class Gatherer:
    """Reads from one tree.

    :param root: a descriptor of the tree's root directory.
    :param kept: says what is left out.
    :param with_owners: owners are a part of the digest.
    """

    def __init__(self, root: int, *, kept: Kept, with_owners: bool) -> None:
        self._root = root
        self._kept = kept
        self._with_owners = with_owners
        self._count = 0

    def match(self, pattern: str, compiled: Callable[[str], re.Pattern[str]]) -> list[str]:
        """Return the paths that a source names, in order, without a leading slash.

        :param compiled: translates one component with wildcards.
        :raises NotFound: a name without wildcards leads to nothing.
        """
        path = posixpath.normpath("/" + pattern).lstrip("/")
        if _WILD.search(path) is None:
            if not self._exists(path) or (path and not self._kept(path) and not self._is_directory(path)):
                raise NotFound(path)
            return [path]
        return [found for found in self._expand("", path.split("/"), compiled) if self._kept(found)]

    def gather(self, path: str, digest: hashlib._Hash) -> Gathered:
        """List what is at a path, and feed its description to ``digest``.

        :raises InvalidParameter: there is too much.
        """
        fd = openat2(self._root, path or ".", os.O_PATH, resolve=_IN_ROOT)
        try:
            status = os.fstat(fd)
            found = Gathered(path=path, is_directory=stat.S_ISDIR(status.st_mode))
            self._describe(digest, "", status, fd)
        finally:
            os.close(fd)
        found.items.append(Item(path=path, name="", is_directory=found.is_directory))
        if found.is_directory:
            for item in self._walk(path, digest):
                found.items.append(item)
        return found

    def read(self, path: str, max_bytes: int) -> bytes:
        """Return a regular file. Raises NotFound, InvalidParameter."""
        try:
            fd = openat2(self._root, path, os.O_PATH, resolve=_IN_ROOT)
        except OSError as error:
            raise NotFound(path) from error
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise NotFound(path)
            if status.st_size > max_bytes:
                raise InvalidParameter(f"{path} has {status.st_size} bytes, at most {max_bytes} are allowed")
        finally:
            os.close(fd)
        with os.fdopen(openat2(self._root, path, os.O_RDONLY, resolve=_IN_ROOT), "rb") as file:
            return file.read(max_bytes + 1)

    # --- machinery ---

    def _exists(self, path: str) -> bool:
        try:
            os.close(openat2(self._root, path or ".", os.O_PATH, resolve=_IN_ROOT))
        except (OSError, ValueError):
            return False
        return True

    def _is_directory(self, path: str) -> bool:
        with contextlib.suppress(OSError):
            os.close(openat2(self._root, path or ".", os.O_PATH | os.O_DIRECTORY, resolve=_IN_ROOT))
            return True
        return False

    def _list(self, path: str) -> list[str]:
        try:
            fd = openat2(self._root, path or ".", os.O_RDONLY | os.O_DIRECTORY, resolve=_IN_ROOT)
        except OSError:
            return []
        try:
            return sorted(os.listdir(fd))  # noqa: PTH208
        finally:
            os.close(fd)

    def _expand(
        self, above: str, parts: Sequence[str], compiled: Callable[[str], re.Pattern[str]]
    ) -> Iterator[str]:
        if not parts:
            yield above
            return
        part, rest = parts[0], parts[1:]
        if _WILD.search(part) is None:
            path = _join(above, part)
            if self._exists(path):
                yield from self._expand(path, rest, compiled)
            return
        if part == "**":
            if rest:
                yield from self._expand(above, rest, compiled)
            for name in self._list(above):
                path = _join(above, name)
                if self._is_plain_directory(path):
                    yield from self._expand(path, parts, compiled)
                elif not rest:
                    yield path
            return
        pattern = compiled(part)
        for name in self._list(above):
            if pattern.fullmatch(name):
                yield from self._expand(_join(above, name), rest, compiled)

    def _is_plain_directory(self, path: str) -> bool:
        with contextlib.suppress(OSError):
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
            os.close(openat2(self._root, path, flags, resolve=_IN_ROOT))
            return True
        return False

    def _walk(self, source: str, digest: hashlib._Hash) -> Iterator[Item]:
        """Yield what is below a directory, links not followed. A directory that is left out is there all the
        same when something in it is not."""
        fd = openat2(self._root, source or ".", os.O_RDONLY | os.O_DIRECTORY, resolve=_IN_ROOT)
        pending = [(fd, "", iter(self._names(fd)))]
        waiting: list[tuple[Item, os.stat_result, int]] = []
        try:
            while pending:
                directory, above, names = pending[-1]
                name = next(names, None)
                if name is None:
                    pending.pop()
                    waiting = [entry for entry in waiting if entry[2] != directory]
                    os.close(directory)
                    continue
                inner = _join(above, name)
                path = _join(source, inner)
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                is_directory = stat.S_ISDIR(status.st_mode)
                item = Item(path=path, name=inner, is_directory=is_directory)
                kept = self._kept(path)
                if not kept and not is_directory:
                    continue
                opened = self._open(name, directory, status)
                if is_directory and not kept:
                    waiting.append((item, status, opened))
                else:
                    for held, held_status, held_fd in waiting:
                        self._describe(digest, held.name, held_status, held_fd)
                        yield self._counted(held)
                    waiting.clear()
                    self._describe(digest, inner, status, opened, directory=directory, file_name=name)
                    yield self._counted(item)
                if is_directory:
                    pending.append((opened, inner, iter(self._names(opened))))
                elif opened >= 0:
                    os.close(opened)
        finally:
            for directory, _, _ in pending:
                os.close(directory)

    def _names(self, fd: int) -> list[str]:
        return sorted(os.listdir(fd))

    def _open(self, name: str, directory: int, status: os.stat_result) -> int:
        if stat.S_ISDIR(status.st_mode):
            return os.open(
                name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory
            )
        if stat.S_ISREG(status.st_mode):
            return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        return -1

    def _counted(self, item: Item) -> Item:
        self._count += 1
        if self._count > MAX_ENTRIES:
            raise InvalidParameter(f"more than {MAX_ENTRIES} files in one instruction")
        return item

    def _describe(
        self,
        digest: hashlib._Hash,
        name: str,
        status: os.stat_result,
        fd: int,
        *,
        directory: int = -1,
        file_name: str = "",
    ) -> None:
        """Feed a file's description. Each part is preceded by its length, so no two trees read the same."""
        parts = [name.encode(errors="surrogateescape"), b"%o" % status.st_mode]
        if self._with_owners:
            parts.append(b"%d:%d" % (status.st_uid, status.st_gid))
        if stat.S_ISLNK(status.st_mode) and directory >= 0:
            parts.append(os.fsencode(os.readlink(file_name, dir_fd=directory)))
        elif stat.S_ISREG(status.st_mode):
            readable = self._reopen(fd) if directory < 0 else fd
            try:
                parts += _xattr_parts(readable)
                parts.append(_content_digest(readable))
            finally:
                if readable != fd:
                    os.close(readable)
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            parts.append(b"%d" % status.st_rdev)
        digest.update(b"%d " % len(parts) + b"".join(b"%d:%b" % (len(part), part) for part in parts))

    def _reopen(self, fd: int) -> int:
        """Open for reading what an O_PATH descriptor refers to: a regular file, of a tree that stays."""
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _content_digest(fd: int) -> bytes:
    content = hashlib.sha256()
    while piece := os.read(fd, _PIECE):
        content.update(piece)
    return content.digest()


def _xattr_parts(fd: int) -> list[bytes]:
    parts: list[bytes] = []
    for name in sorted(os.listxattr(fd)):
        if not name.startswith("trusted.overlay."):
            parts += [os.fsencode(name), os.getxattr(fd, name)]
    return parts


def _join(above: str, name: str) -> str:
    return f"{above}/{name}" if above and name else above or name

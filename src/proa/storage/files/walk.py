# SPDX-License-Identifier: Apache-2.0
"""Walks a tree that somebody else may be changing, by descriptors, never by a path.

A directory is opened by its name in the one above, links not followed, and the working directory is always
the directory that is being read; so whatever is renamed or replaced by a link meanwhile, nothing but the tree
is seen. Runs in the confined child, on a mount without devices: to open a file there cannot touch a device.

The order is the same each time: a directory before what is in it, names by their bytes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from proa.storage.files.tar_writer import TarWriter
from proa.storage.tar import BadTar

NAME_MAX = 4096  # bytes of a whole name; PATH_MAX
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# Of the host, or of overlayfs: neither means anything in another place.
_SKIPPED_XATTRS = ("trusted.overlay.", "security.selinux", "security.ima", "security.evm")
_VANISHED = (errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)


@dataclass(slots=True)
class Visit:
    """One file, or a directory being entered (``fd`` is it) or left (``is_end``).

    ``path`` is from the walk's root, without a slash at either end; ``status`` was taken without following
    links. A directory whose ``descend`` is set to False is not entered, and not left either.
    """

    path: bytes
    name: bytes
    status: os.stat_result
    fd: int = -1
    is_end: bool = False
    descend: bool = True

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)


def iter_tree(root: int, prefix: bytes = b"") -> Iterator[Visit]:
    """Yield what is in the directory ``root``, a descriptor; the root itself is not yielded.

    :raises BadTar: a name is too long to be written down.
    """
    # A descriptor stays open for each level; names of 4096 bytes have 2048 of them at most.
    levels: list[tuple[int, Visit | None, Iterator[bytes]]] = [(root, None, _names(root))]
    os.fchdir(root)
    try:
        while levels:
            _, entered, names = levels[-1]
            name = next(names, None)
            if name is None:
                fd, _, _ = levels.pop()
                if entered is not None:
                    entered.is_end = True
                    yield entered
                    os.close(fd)
                    os.fchdir(levels[-1][0])
                continue
            above = entered.path + b"/" if entered is not None else prefix
            visit = _visit(above + name, name)
            if visit is None:
                continue
            yield visit
            if visit.is_directory and visit.descend:
                levels.append((visit.fd, visit, _names(visit.fd)))
                os.fchdir(visit.fd)
            elif visit.fd >= 0:
                os.close(visit.fd)
    finally:
        for fd, entered, _ in levels:
            if entered is not None:
                os.close(fd)


def open_file(name: bytes) -> tuple[int, os.stat_result] | None:
    """Open a regular file of the working directory; None when it is gone, or is something else by now."""
    try:
        fd = os.open(name, _OPEN_FILE)
    except OSError as error:
        if error.errno in (*_VANISHED, errno.EACCES):
            return None
        raise
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        return None
    return fd, status


def read_xattrs(file: bytes | int) -> dict[bytes, bytes]:
    """Read the extended attributes of a descriptor, or of a name of the working directory (not followed)."""
    found: dict[bytes, bytes] = {}
    follow = isinstance(file, int)
    try:
        names = os.listxattr(file, follow_symlinks=follow)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENODATA, errno.EPERM, *_VANISHED):
            raise
        return found
    for name in names:
        if not name.startswith(_SKIPPED_XATTRS):
            with contextlib.suppress(OSError):  # it went meanwhile
                found[os.fsencode(name)] = os.getxattr(file, name, follow_symlinks=follow)
    return found


class MemberWriter:
    """Writes visited files as members; remembers files of several names."""

    def __init__(self, tar: TarWriter) -> None:
        self.tar = tar
        self._first: dict[tuple[int, int], bytes] = {}

    def write_directory(self, visit: Visit, name: bytes) -> None:
        self.tar.add(name, visit.status, xattrs=read_xattrs(visit.fd))

    def write(self, name_here: bytes, status: os.stat_result, name: bytes) -> None:
        """Write what is called ``name_here`` in the working directory as ``name``. Sockets are left out: they
        are nothing without their process. So is what has vanished."""
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFSOCK:
            return
        if status.st_nlink > 1:
            first = self._first.setdefault((status.st_dev, status.st_ino), name)
            if first is not name:
                self.tar.add_hard_link(name, status, first)
                return
        if kind == stat.S_IFREG:
            opened = open_file(name_here)
            if opened is None:
                self._first.pop((status.st_dev, status.st_ino), None)
                return
            fd, status = opened
            try:
                self.tar.add_file(name, status, fd, read_xattrs(fd))
            finally:
                os.close(fd)
            return
        link = b""
        if kind == stat.S_IFLNK:
            try:
                link = os.readlink(name_here)  # noqa: PTH115 (bytes)
            except OSError:
                return
        self.tar.add(name, status, link=link, xattrs=read_xattrs(name_here))


def write_tree(
    root: int,
    members: MemberWriter,
    *,
    prefix: bytes = b"",
    is_skipped: Callable[[Visit], bool] | None = None,
) -> None:
    """Write all that is below ``root``, each name after ``prefix``. Of a directory for which ``is_skipped``
    holds only itself is written."""
    for visit in iter_tree(root, prefix):
        if visit.is_end:
            continue
        if not visit.is_directory:
            members.write(visit.name, visit.status, visit.path)
            continue
        members.write_directory(visit, visit.path)
        if is_skipped is not None and is_skipped(visit):
            visit.descend = False


def _names(directory: int) -> Iterator[bytes]:
    return iter(sorted(os.fsencode(name) for name in os.listdir(directory)))


def _visit(path: bytes, name: bytes) -> Visit | None:
    if len(path) > NAME_MAX:
        raise BadTar(f"a name is longer than {NAME_MAX} bytes")
    try:
        status = os.lstat(name)
        if not stat.S_ISDIR(status.st_mode):
            return Visit(path, name, status)
        fd = os.open(name, _OPEN_DIRECTORY)
    except OSError as error:
        if error.errno in _VANISHED:
            return None
        raise
    return Visit(path, name, os.fstat(fd), fd)

# SPDX-License-Identifier: Apache-2.0
"""Copies a directory of an image into an empty volume: Docker's "copy-up".

The source is a stranger's, so it is walked by descriptor only, no link in it is ever followed, and what lies
outside its root cannot be reached. The copy has the owners, modes, times, extended attributes, hard links,
devices and holes of the original; the top directory's own attributes are copied as well. Blocks for as long
as it takes: it runs in a worker thread.

Source: openat2(2), RESOLVE_IN_ROOT; moby, container/volume copy ("populate volumes").
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from proa.host import mount

_PIECE = 128 * 1024
_ZEROS = bytes(_PIECE)
_HOLE_MIN = 4096  # shorter runs of zeros are not worth a hole
# Not for the copy: overlayfs's bookkeeping, and labels that the host's policy gives by place.
_SKIPPED_XATTRS = ("trusted.overlay.", "security.selinux")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def find_directory(root: int, path: str) -> int | None:
    """Open the directory at ``path`` of the image whose root directory is ``root``, links followed inside it.

    Returns a descriptor, or None when nothing is there.

    :raises NotADirectoryError: something else is there.
    """
    try:
        return mount.openat2(
            root, path.lstrip("/") or ".", os.O_RDONLY | os.O_DIRECTORY, resolve=mount.Resolve.IN_ROOT
        )
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return None
        if error.errno == errno.ENOTDIR and not _is_there(root, path):
            return None  # a component before the last one is a file
        raise


def copy_tree(source: int, target: Path) -> None:
    """Copy the content and attributes of the directory ``source`` into the empty directory ``target``."""
    descriptor = os.open(target, _DIRECTORY)
    try:
        _Copy().directory(source, descriptor)
    finally:
        os.close(descriptor)


def empty_tree(target: Path) -> None:
    """Delete what is in the directory ``target``, which may be somebody's mount: it stays itself."""
    with os.scandir(target) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                Path(entry.path).unlink()


class _Copy:
    """One copy; remembers files with several names: device and inode to the first copy's open descriptor."""

    def __init__(self) -> None:
        self._links: dict[tuple[int, int], tuple[str, ...]] = {}
        self._target = -1

    def directory(self, source: int, target: int) -> None:
        """Copy breadth is unbounded, depth is the image's: a path of PATH_MAX has at most 2,048 levels, so
        descriptors would run out before the stack did. Levels are therefore reopened by name."""
        self._target = target
        pending: list[tuple[str, ...]] = [()]
        done: list[tuple[str, ...]] = []
        while pending:
            parts = pending.pop()
            with _opened(source, parts) as from_, _opened(target, parts) as to:
                pending.extend((*parts, name) for name in self._entries(from_, to, parts))
            done.append(parts)
        # Attributes last, and of the deepest first: to fill a directory changes its time.
        for parts in reversed(done):
            with _opened(source, parts) as from_, _opened(target, parts) as to:
                status = os.fstat(from_)
                os.fchown(to, status.st_uid, status.st_gid)
                os.fchmod(to, stat.S_IMODE(status.st_mode))
                _copy_xattrs(f"/proc/self/fd/{from_}", f"/proc/self/fd/{to}", follow=True)
                os.utime(to, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _entries(self, source: int, target: int, parts: tuple[str, ...]) -> list[str]:
        """Copy all but directories, which are made, and returned to be filled."""
        directories = []
        for name in os.listdir(source):
            status = os.stat(name, dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                os.mkdir(name, 0o700, dir_fd=target)
                directories.append(name)
                continue
            if status.st_nlink > 1 and self._link(status, target, (*parts, name)):
                continue
            self._make(name, status, source, target)
        return directories

    def _link(self, status: os.stat_result, target: int, path: tuple[str, ...]) -> bool:
        """Make a further name of a file copied before; False when this is its first."""
        first = self._links.setdefault((status.st_dev, status.st_ino), path)
        if first is path:
            return False
        with _opened(self._target, first[:-1]) as directory:
            os.link(first[-1], path[-1], src_dir_fd=directory, dst_dir_fd=target, follow_symlinks=False)
        return True

    def _make(self, name: str, status: os.stat_result, source: int, target: int) -> None:
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFREG:
            _copy_file(name, status, source, target)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO):
            os.mknod(name, kind | 0o600, status.st_rdev, dir_fd=target)
        else:
            return  # a socket is nothing without its process
        os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
        if kind != stat.S_IFLNK:
            # After chown, which clears the set-user-id bits.
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=target)
        from_, to = f"/proc/self/fd/{source}/{name}", f"/proc/self/fd/{target}/{name}"
        _copy_xattrs(from_, to, follow=False)
        times = (status.st_atime_ns, status.st_mtime_ns)
        os.utime(name, ns=times, dir_fd=target, follow_symlinks=False)


@contextlib.contextmanager
def _opened(root: int, parts: tuple[str, ...]) -> Iterator[int]:
    path = "/".join(parts) or "."
    resolve = mount.Resolve.BENEATH | mount.Resolve.NO_SYMLINKS
    descriptor = mount.openat2(root, path, os.O_RDONLY | os.O_DIRECTORY, resolve=resolve)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _copy_file(name: str, status: os.stat_result, source: int, target: int) -> None:
    from_ = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    try:
        to = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
        try:
            _copy_data(from_, to, status.st_size)
        finally:
            os.close(to)
    finally:
        os.close(from_)


def _copy_data(source: int, target: int, size: int) -> None:
    holes = False
    while data := os.read(source, _PIECE):
        if len(data) >= _HOLE_MIN and data == _ZEROS[: len(data)]:
            os.lseek(target, len(data), os.SEEK_CUR)
            holes = True
            continue
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]
    if holes:
        os.ftruncate(target, size)


def _copy_xattrs(source: str, target: str, *, follow: bool) -> None:
    try:
        names = os.listxattr(source, follow_symlinks=follow)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return
    for name in names:
        if name.startswith(_SKIPPED_XATTRS):
            continue
        value = os.getxattr(source, name, follow_symlinks=follow)
        try:
            os.setxattr(target, name, value, follow_symlinks=follow)
        except OSError as error:
            # Not every file system has them all; Docker leaves those out too.
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                raise


def _is_there(root: int, path: str) -> bool:
    try:
        os.close(mount.openat2(root, path.lstrip("/"), os.O_PATH, resolve=mount.Resolve.IN_ROOT))
    except OSError:
        return False
    return True

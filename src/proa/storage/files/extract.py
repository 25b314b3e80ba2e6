# SPDX-License-Identifier: Apache-2.0
"""Unpacks a stranger's tar into a tree, as ``docker cp`` into a container does. Runs in the confined child.

The process's root is the tree's, and every name is opened component by component from a descriptor; a file is
made new under its name and written through its own descriptor, so a link put in its place meanwhile is not
followed. What was unpacked before a fault stays, as with tar.

Source: Engine API, PutContainerArchive; Docker Engine, pkg/archive, Unpack.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat

from proa.host.mount import Resolve, openat2
from proa.storage.files.paths import Refusal
from proa.storage.tar import BadTar, Entry, Kind, Stream, find_components, iter_entries

RESERVE_BYTES = 64 << 20  # of the file system, left free: an endless archive must not stop the host
RESERVE_INODES = 10_000
CHECK_EVERY_BYTES = 16 << 20  # how often free space is looked at
CHECK_EVERY_FILES = 512
PATH_MAX = 4095  # bytes of a whole name; PATH_MAX without its NUL
HOLE_MIN = 32 * 1024  # zeros that become a hole

_ZEROS = bytes(1 << 20)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD_FILE = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DEVICES = {Kind.CHARACTER: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK, Kind.FIFO: stat.S_IFIFO}
_OPAQUE = b"trusted.overlay.opaque"
_DROPPED_XATTRS = (b"trusted.overlay.",)
_REFUSED_XATTR = (errno.EOPNOTSUPP, errno.EPERM, errno.ERANGE, errno.EINVAL, errno.E2BIG, errno.ENOSPC)


class Extractor:
    """Unpacks below ``directory``, a descriptor; ``path`` is its name, for messages.

    :param strict: refuse to replace a directory by something else and the other way round.
    :param owner: who owns all that is made, None for what the archive says.
    :param is_upper: the archive is of an overlay's upper directory: its marks of opaque directories stay.
    """

    def __init__(
        self,
        directory: int,
        path: str,
        *,
        strict: bool,
        owner: tuple[int, int] | None,
        max_entries: int,
        is_upper: bool = False,
    ) -> None:
        self._directory = directory
        self._path = path
        self._strict = strict
        self._owner = owner
        self._is_upper = is_upper
        self._max_entries = max_entries
        self._parent: tuple[tuple[bytes, ...], int] = ((), os.dup(directory))
        self._times: list[
            tuple[tuple[bytes, ...], int]
        ] = []  # of directories: what is put in them changes them
        self._written = CHECK_EVERY_BYTES
        self._made = 0

    def extract(self, stream: Stream) -> None:
        """Unpack all members.

        :raises BadTar: it is broken, or a name leads out of the directory.
        :raises Refusal: a member cannot be made.
        """
        for entry in iter_entries(stream):
            parts = _components(entry.name, self._path)
            left = entry.stored
            if parts:
                try:
                    left = self._extract(entry, parts, stream)
                except (OSError, OverflowError) as error:
                    where = self._show_place(parts)
                    raise Refusal(_kind(error), f"{_verb(entry)} {where}: {_reason(error)}") from error
            stream.skip(left)
        for parts, mtime_ns in reversed(self._times):
            with contextlib.suppress(OSError):  # it was replaced meanwhile
                fd = self._open(parts)
                try:
                    os.utime(fd, ns=(mtime_ns, mtime_ns))
                finally:
                    os.close(fd)

    # --- one member ---

    def _extract(self, entry: Entry, parts: tuple[bytes, ...], stream: Stream) -> int:
        """Make one member; return how much of its content is still in the stream."""
        self._check_space(0)
        parent = self._open_parent(parts[:-1])
        name = parts[-1]
        old = _lstat(name, parent)
        merged = old is not None and stat.S_ISDIR(old.st_mode) and entry.kind is Kind.DIRECTORY
        in_place = False
        if old is not None and not merged:
            self._check_replaced(entry, old, name)
            in_place = not _remove(name, parent, old, entry)
        uid, gid = self._owner or (entry.uid, entry.gid)
        mtime_ns = entry.mtime * 1_000_000_000 + entry.mtime_nsec
        if entry.kind is Kind.FILE:
            flags = _OLD_FILE if in_place else _NEW_FILE
            fd = os.open(name, flags, 0o600, dir_fd=parent)
            try:
                if in_place and not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
                self._write(fd, entry, stream)
                _describe(fd, entry, uid, gid)
                os.utime(fd, ns=(mtime_ns, mtime_ns))
            finally:
                os.close(fd)
            return 0
        if entry.kind is Kind.DIRECTORY:
            if not merged:
                os.mkdir(name, 0o700, dir_fd=parent)
            fd = os.open(name, _DIRECTORY, dir_fd=parent)
            try:
                _describe(fd, entry, uid, gid)
                if self._is_upper and entry.xattrs.get(_OPAQUE) == b"y":
                    os.setxattr(fd, _OPAQUE, b"y")
            finally:
                os.close(fd)
            self._times.append((parts, mtime_ns))
        elif entry.kind is Kind.HARDLINK:
            self._link(entry, parent, name)
        else:
            self._make_special(entry, parent, name, uid, gid, mtime_ns)
        return entry.stored

    def _make_special(
        self, entry: Entry, parent: int, name: bytes, uid: int, gid: int, mtime_ns: int
    ) -> None:
        if entry.kind is Kind.SYMLINK:
            os.symlink(entry.link, name, dir_fd=parent)
        else:
            major, minor = entry.device
            if major > 0xFFF or minor > 0xFFFFF:
                raise BadTar(f"device {major}:{minor} does not exist")
            # umask is 0: the mode is right at once, and needs no second call that could meet a link.
            os.mknod(name, _DEVICES[entry.kind] | entry.mode & 0o777, os.makedev(major, minor), dir_fd=parent)
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        os.fchdir(parent)
        _set_xattrs(name, entry)
        os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _link(self, entry: Entry, parent: int, name: bytes) -> None:
        target = _components(entry.link, self._path)
        if not target:
            raise BadTar(f"{_show(entry.name)}: hard link to a directory")
        directory = self._open(target[:-1])
        try:
            os.link(target[-1], name, src_dir_fd=directory, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(directory)

    def _check_replaced(self, entry: Entry, old: os.stat_result, name: bytes) -> None:
        if not self._strict:
            return
        here = self._show_place((*self._parent[0], name))
        if stat.S_ISDIR(old.st_mode):
            raise Refusal("invalid", f'cannot overwrite directory {here} with non-directory "{self._path}"')
        if entry.kind is Kind.DIRECTORY:
            raise Refusal("invalid", f'cannot overwrite non-directory {here} with directory "{self._path}"')

    def _show_place(self, parts: tuple[bytes, ...]) -> str:
        return _show(b"/".join([os.fsencode(self._path.rstrip("/")), *parts]))

    def _write(self, fd: int, entry: Entry, stream: Stream) -> None:
        at = 0

        def put(data: memoryview) -> None:
            nonlocal at
            self._check_space(len(data))
            size = len(data)
            if size >= HOLE_MIN and data == memoryview(_ZEROS)[:size]:
                at += size
                return
            while data:
                done = os.pwrite(fd, data, at)
                at += done
                data = data[done:]

        for offset, length in entry.pieces if entry.pieces is not None else [(0, entry.size)]:
            at = offset
            stream.pass_on(length, put)
        os.ftruncate(fd, entry.size)

    # --- directories ---

    def _open_parent(self, parts: tuple[bytes, ...]) -> int:
        """Open the directory of a member, making what is missing; kept open for the members that follow."""
        known, fd = self._parent
        if known == parts:
            return fd
        try:
            fd = self._open(parts)
        except FileNotFoundError:
            fd = os.dup(self._directory)
            for depth in range(1, len(parts) + 1):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(parts[depth - 1], 0o755, dir_fd=fd)
                os.close(fd)
                fd = self._open(parts[:depth])
        os.close(self._parent[1])
        self._parent = (parts, fd)
        return fd

    def _open(self, parts: tuple[bytes, ...]) -> int:
        """Open a directory below ours. Links are followed, within the process's root."""
        flags = os.O_RDONLY | os.O_DIRECTORY
        return openat2(self._directory, b"/".join(parts) or b".", flags, resolve=Resolve.NO_MAGICLINKS)

    # --- limits ---

    def _check_space(self, size: int) -> None:
        """Count bytes, or with 0 a file; look at the file system now and then."""
        if size:
            self._written += size
        else:
            self._made += 1
            if self._made > self._max_entries:
                raise BadTar(f"it has more than {self._max_entries} files, the limit for a copy")
        if self._written < CHECK_EVERY_BYTES and (size or self._made % CHECK_EVERY_FILES):
            return
        self._written = 0
        space = os.fstatvfs(self._parent[1])
        few_bytes = space.f_bavail * space.f_frsize < min(
            RESERVE_BYTES, space.f_blocks * space.f_frsize // 20
        )
        few_inodes = space.f_files > 0 and space.f_favail < min(RESERVE_INODES, space.f_files // 20)
        if few_bytes or few_inodes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _components(name: bytes, path: str) -> tuple[bytes, ...]:
    """Cut a name into components below the directory.

    :raises BadTar: it leads out.
    """
    if len(name) > PATH_MAX:
        raise BadTar(f"a name of {len(name)} bytes, at most {PATH_MAX} allowed")
    parts = find_components(name)
    if parts is None:
        raise BadTar(f'{_show(name)} is outside of "{path}"')
    return parts


def _lstat(name: bytes, parent: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _remove(name: bytes, parent: int, old: os.stat_result, entry: Entry) -> bool:
    """Remove what is in the way. False: it is a file that something is mounted on (/etc/hosts), to be written
    in place."""
    try:
        if stat.S_ISDIR(old.st_mode):
            shutil.rmtree(os.fsdecode(name), dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)
    except OSError as error:
        if error.errno == errno.EBUSY and entry.kind is Kind.FILE and stat.S_ISREG(old.st_mode):
            return False
        raise
    return True


def _describe(fd: int, entry: Entry, uid: int, gid: int) -> None:
    """Owner first: to change it clears set-user-id bits and capabilities."""
    os.fchown(fd, uid, gid)
    os.fchmod(fd, entry.mode)
    _set_xattrs(fd, entry)


def _set_xattrs(file: int | bytes, entry: Entry) -> None:
    for name, value in entry.xattrs.items():
        if name.startswith(_DROPPED_XATTRS) or not name or b"\0" in name:
            continue
        try:
            os.setxattr(file, name, value, follow_symlinks=isinstance(file, int))
        except OSError as error:
            # Not every file system has them all, nor all that an archive makes up; Docker leaves those out
            # too.
            if error.errno not in _REFUSED_XATTR:
                raise


def _verb(entry: Entry) -> str:
    return {Kind.DIRECTORY: "mkdir", Kind.SYMLINK: "symlink", Kind.HARDLINK: "link"}.get(entry.kind, "open")


def _reason(error: OSError | OverflowError) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return (text or str(error)).lower()


def _kind(error: OSError | OverflowError) -> str:
    """A full disk and a broken one are not the client's fault; names and times that cannot be are."""
    if isinstance(error, OverflowError):
        return "invalid"
    return "failed" if error.errno in (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EMFILE) else "invalid"


def _show(name: bytes) -> str:
    text = "".join(c if c.isprintable() else "\ufffd" for c in name.decode(errors="replace"))
    return f'"{text if len(text) <= 200 else text[:200] + "…"}"'

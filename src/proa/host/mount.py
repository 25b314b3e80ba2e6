# SPDX-License-Identifier: Apache-2.0
"""The kernel's mount calls, by ctypes: the file-descriptor based API, umount2, openat2, and mountinfo.

Owns names and argument types, nothing else: what is mounted where, and when it goes, is the caller's. A call
that fails raises OSError with errno and the path concerned; ``fsconfig`` adds what the kernel wrote to the
context's log, because its EINVAL alone says nothing. The calls are short and may block for what they do
(unmounting a written file system waits for its disk): callers choose the thread.

The maintained wrappers were looked at and left: pyroute2 has no mounts, libmount's binding needs a Debian
package that an isolated environment does not see.

Source: fsopen(2), fsconfig(2), fsmount(2), move_mount(2), open_tree(2), mount_setattr(2), umount2(2),
openat2(2), proc_pid_mountinfo(5); numbers from include/uapi/linux/{mount,fcntl,openat2}.h and
include/uapi/asm-generic/unistd.h (since 5.2 the same on every architecture but alpha).
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
FSCONFIG_STRING_MAX = 255  # bytes; fs/fsopen.c takes strndup_user(value, 256) with its NUL
KERNEL_LOG_MAX = 4096

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442

_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_OPEN_TREE_CLONE = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6


class MountAttr(enum.IntFlag):
    """MOUNT_ATTR_* of one mount (not of the file system under it)."""

    NONE = 0
    RDONLY = 0x01
    NOSUID = 0x02
    NODEV = 0x04
    NOEXEC = 0x08
    NOATIME = 0x10
    IDMAP = 0x100000
    NOSYMFOLLOW = 0x200000


class Propagation(enum.IntEnum):
    """How mounts made later on either side of a copy spread to the other; mount_namespaces(7)."""

    KEEP = 0
    UNBINDABLE = 1 << 17
    PRIVATE = 1 << 18
    SLAVE = 1 << 19
    SHARED = 1 << 20


class Unmount(enum.IntFlag):
    NONE = 0
    FORCE = 1
    DETACH = 2  # out of the tree now, gone when the last user leaves
    EXPIRE = 4
    NOFOLLOW = 8


class Resolve(enum.IntFlag):
    """RESOLVE_* of openat2: how a path from outside may be walked."""

    NONE = 0
    NO_XDEV = 0x01
    NO_MAGICLINKS = 0x02
    NO_SYMLINKS = 0x04
    BENEATH = 0x08
    IN_ROOT = 0x10


class _MountAttrStruct(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def fsopen(fs_name: str) -> int:
    """Open a context in which a file system is configured. Returns a descriptor.

    :raises OSError: ENODEV when the kernel has no such file system.
    """
    return _call(fs_name, _SYS_FSOPEN, fs_name.encode(), _FSOPEN_CLOEXEC)


def fsconfig_string(context: int, key: str, value: str | Path) -> None:
    """Set one parameter. Its text is at most FSCONFIG_STRING_MAX bytes long, see ``option_path``."""
    text = os.fsencode(value)
    try:
        _call(f"{key}={value}", _SYS_FSCONFIG, context, _FSCONFIG_SET_STRING, key.encode(), text, 0)
    except OSError as error:
        raise _with_kernel_log(context, error) from None


def fsconfig_flag(context: int, key: str) -> None:
    """Set a parameter that has no value, such as ``ro``."""
    try:
        _call(key, _SYS_FSCONFIG, context, _FSCONFIG_SET_FLAG, key.encode(), None, 0)
    except OSError as error:
        raise _with_kernel_log(context, error) from None


def fsconfig_create(context: int, name: str | Path) -> None:
    """Make the file system from what was configured. ``name`` is only for the error."""
    try:
        _call(str(name), _SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
    except OSError as error:
        raise _with_kernel_log(context, error) from None


def fsmount(context: int, attributes: MountAttr = MountAttr.NONE) -> int:
    """Return a descriptor of a mount of the made file system, attached nowhere yet: closing it unmounts."""
    return _call("fsmount", _SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, int(attributes))


def open_tree(path: Path, *, clone: bool = True, recursive: bool = False) -> int:
    """Open a mount by path; ``clone`` copies it (a bind mount), attached nowhere yet."""
    flags = os.O_CLOEXEC | (_OPEN_TREE_CLONE if clone else 0) | (AT_RECURSIVE if recursive else 0)
    return _call(path, _SYS_OPEN_TREE, AT_FDCWD, os.fsencode(path), flags)


def copy_mount(directory: int, *, recursive: bool = True) -> int:
    """Copy the mount that a descriptor lies in, from what it refers to on, with the mounts below it."""
    flags = os.O_CLOEXEC | _OPEN_TREE_CLONE | AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    return _call("open_tree", _SYS_OPEN_TREE, directory, b"", flags)


def move_mount(mount: int, target: Path) -> None:
    """Attach a mount from ``fsmount`` or ``open_tree`` at ``target``."""
    _call(target, _SYS_MOVE_MOUNT, mount, b"", AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)


def move_mount_onto(mount: int, target: int) -> None:
    """Attach a mount on what the descriptor ``target`` refers to, whatever its name may be by now."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    _call("move_mount", _SYS_MOVE_MOUNT, mount, b"", target, b"", flags)


def mount_setattr(
    mount: int,
    *,
    set_attributes: MountAttr = MountAttr.NONE,
    clear_attributes: MountAttr = MountAttr.NONE,
    propagation: Propagation = Propagation.KEEP,
    user_namespace: int = 0,
    recursive: bool = False,
) -> None:
    """Change a mount given by descriptor. ``user_namespace`` goes with MountAttr.IDMAP."""
    how = _MountAttrStruct(set_attributes, clear_attributes, propagation, user_namespace)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _call("mount_setattr", _SYS_MOUNT_SETATTR, mount, b"", flags, ctypes.byref(how), ctypes.sizeof(how))


def mount(source: str, target: Path, fs_type: str, *, flags: int = 0, data: str = "") -> None:
    """The classic mount(2), for what an old kernel cannot do otherwise. ``data`` is at most a page long."""
    result = _libc.mount(
        source.encode(), os.fsencode(target), fs_type.encode(), ctypes.c_ulong(flags), os.fsencode(data)
    )
    if result < 0:
        raise _error(target)


def unmount(path: Path, flags: Unmount = Unmount.NOFOLLOW) -> None:
    """umount2(2).

    :raises OSError: EINVAL when nothing is mounted there, EBUSY, ENOENT.
    """
    if _libc.umount2(os.fsencode(path), ctypes.c_int(flags)) < 0:
        raise _error(path)


def ensure_unmounted(path: Path) -> None:
    """Take away everything that is mounted at ``path``; a mount still in use goes with its last user."""
    while True:
        try:
            unmount(path, Unmount.NOFOLLOW | Unmount.DETACH)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return
            raise


def openat2(
    directory: int, path: str | bytes, flags: int, *, resolve: Resolve = Resolve.NONE, mode: int = 0
) -> int:
    """Open ``path`` below the directory descriptor, walked as ``resolve`` says. Returns a descriptor.

    :raises OSError: ELOOP or EXDEV when the path leaves what ``resolve`` allows. EAGAIN (a rename raced with
        "..") is retried here.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    while True:
        try:
            size = ctypes.sizeof(how)
            return _call(path, _SYS_OPENAT2, directory, os.fsencode(path), ctypes.byref(how), size)
        except BlockingIOError:
            continue


def is_mount_point(path: Path) -> bool:
    """Tell whether another file system begins at ``path`` (a bind within one file system goes unseen)."""
    try:
        return path.lstat().st_dev != path.parent.lstat().st_dev
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def option_path(path: Path) -> Iterator[str]:
    """Give a name of ``path`` short enough for a mount option and free of what the option syntax divides by.

    Where the path itself does not serve, it is a descriptor's name in /proc: the kernel looks it up while it
    mounts, and keeps what it found.
    """
    text = os.fspath(path)
    if len(os.fsencode(text)) <= FSCONFIG_STRING_MAX and not re.search(r"[,:\\]", text):
        yield text
        return
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True, kw_only=True)
class MountInfo:
    """One line of mountinfo. ``root`` is the part of the file system that is mounted."""

    mount_id: int
    parent_id: int
    device: str  # major:minor
    root: str
    mount_point: Path
    options: tuple[str, ...]
    fs_type: str
    source: str
    super_options: tuple[str, ...]


def mount_table(path: Path = Path("/proc/self/mountinfo")) -> list[MountInfo]:
    """Read the mounts of this process's namespace, in the kernel's order (a later one covers an earlier)."""
    return [parse_mount_line(line) for line in path.read_text(errors="surrogateescape").splitlines()]


def parse_mount_line(line: str) -> MountInfo:
    """Parse a line of /proc/PID/mountinfo.

    Source: proc_pid_mountinfo(5).
    """
    before, _, after = line.partition(" - ")
    first = before.split(" ")
    fs_type, source, super_options = after.split(" ", 2)
    return MountInfo(
        mount_id=int(first[0]),
        parent_id=int(first[1]),
        device=first[2],
        root=_unescape(first[3]),
        mount_point=Path(_unescape(first[4])),
        options=tuple(first[5].split(",")),
        fs_type=fs_type,
        source=_unescape(source),
        super_options=tuple(super_options.split(",")),
    )


def _unescape(text: str) -> str:
    """Undo the kernel's octal escapes of blank, tab, newline, backslash and #."""
    if "\\" not in text:
        return text
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _call(what: str | bytes | Path, number: int, *arguments: object) -> int:
    result: int = _libc.syscall(
        ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    )
    if result < 0:
        raise _error(what)
    return result


def _error(what: str | bytes | Path) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), os.fsdecode(what))


def _with_kernel_log(context: int, error: OSError) -> OSError:
    """Add the context's log to the error. Source: fsopen(2): reading the descriptor gives a message."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        while len(lines) < KERNEL_LOG_MAX // 64:
            lines.append(os.read(context, KERNEL_LOG_MAX).decode(errors="replace").strip())
    reason = "; ".join([error.strerror or "", *lines])
    return OSError(error.errno, reason, error.filename)

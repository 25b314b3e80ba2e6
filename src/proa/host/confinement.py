# SPDX-License-Identifier: Apache-2.0
"""What a child program does to itself before it touches what strangers made.

Everything here is process-wide, so the daemon never calls it: only programs that it starts for one piece of
work (``proa.storage.files.program``). Standard library only, because such a program starts in 20 ms.

Source: unshare(2), setns(2), pivot_root(2), prctl(2), capabilities(7), setrlimit(2), fstatfs(2).
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
from collections.abc import Collection
from pathlib import Path

from proa.host import mount

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
PROC_SUPER_MAGIC = 0x9FA0
SYSFS_MAGIC = 0x62656572

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CAP_LAST = 40  # CAP_CHECKPOINT_RESTORE; those of later kernels are dropped by capset all the same
_CAPABILITY_VERSION_3 = 0x20080522
_MS_REC = 0x4000
_MS_PRIVATE = 1 << 18
_STATFS_BYTES = 256  # struct statfs is 120; its first member is the type

# Source: include/uapi/linux/capability.h
CAPABILITIES = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "DAC_READ_SEARCH": 2,
    "FOWNER": 3,
    "FSETID": 4,
    "SYS_ADMIN": 21,
    "MKNOD": 27,
    "SETFCAP": 31,
}

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Be killed when the parent ends, however it ends. Exits at once when it has ended already."""
    parent = os.getppid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def limit(**limits: int) -> None:
    """Set resource limits by name, such as ``AS=1 << 30``; a limit that is lower already stays."""
    for name, value in limits.items():
        number = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))


def enter_mounts(descriptor: int) -> None:
    """Go into the mount namespace of a descriptor; root and working directory become that namespace's."""
    _check(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(CLONE_NEWNS)), "setns")


def enter_users(descriptor: int) -> None:
    """Go into the user namespace of a descriptor, as its root; there is no way back."""
    _check(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(CLONE_NEWUSER)), "setns")
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def own_mounts() -> None:
    """Take a mount namespace of our own, from which nothing spreads out and into which nothing spreads."""
    _check(_libc.unshare(ctypes.c_int(CLONE_NEWNS)), "unshare")
    mount.mount("none", Path("/"), "", flags=_MS_REC | _MS_PRIVATE)


def own_network() -> None:
    """Take a network namespace of our own, with nothing in it."""
    _check(_libc.unshare(ctypes.c_int(CLONE_NEWNET)), "unshare")


def pivot_into(root: Path) -> None:
    """Make the mount point ``root`` the root, and let go of everything that is outside of it.

    Needs a mount namespace of our own.
    """
    os.chdir(root)
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    mount.unmount(Path(), mount.Unmount.DETACH)
    os.chdir("/")


def keep_capabilities(names: Collection[str]) -> None:
    """Give up all capabilities but these, for good, and every way to get new ones."""
    kept = {CAPABILITIES[name] for name in names}
    for number in range(_CAP_LAST + 1):
        if number not in kept:
            _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # EINVAL: the kernel does not know it
    mask = sum(1 << number for number in kept)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    data = struct.pack("6I", low, low, 0, high, high, 0)
    _check(_libc.capset(header, data), "capset")
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def file_system_type(descriptor: int) -> int:
    """Return the magic number of the file system that a descriptor is on."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    _check(_libc.fstatfs(ctypes.c_int(descriptor), buffer), "fstatfs")
    return int(struct.unpack_from("q", buffer)[0])


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), "prctl")


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)

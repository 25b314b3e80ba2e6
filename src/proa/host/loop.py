# SPDX-License-Identifier: Apache-2.0
"""Read-only loop devices, for kernels that cannot mount a file directly.

A device is told to clear itself when its last user leaves, so that whoever mounts it need not remember it,
and a daemon that dies leaves none behind.

Source: loop(4); include/uapi/linux/loop.h (LOOP_CONFIGURE since Linux 5.8).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_READ_ONLY = 1
_LO_FLAGS_AUTOCLEAR = 4
_LO_FLAGS_DIRECT_IO = 16
# struct loop_config: fd, block_size, struct loop_info64 (flags at 52 of it), 8 reserved u64.
_LOOP_CONFIG = struct.Struct("<II52xI176x64x")
_TRIES = 50  # another process may take the free device that the kernel named


def attach(file: Path) -> tuple[int, Path]:
    """Make a read-only block device of ``file``.

    Returns an open descriptor and the device's path; the device is gone when the descriptor is closed and
    nothing is mounted from it.
    """
    backing = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            device = _free_device()
            descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _configure(descriptor, backing)
            except OSError as error:
                os.close(descriptor)
                if error.errno != errno.EBUSY:
                    raise OSError(error.errno, error.strerror, str(file)) from error
                continue
            return descriptor, device
    finally:
        os.close(backing)
    raise OSError(errno.EBUSY, "no loop device is free", str(file))


def _free_device() -> Path:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        return Path(f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}")
    finally:
        os.close(control)


def _configure(descriptor: int, backing: int) -> None:
    # Direct I/O keeps the contents from being cached twice; where the disk below cannot do it, do without.
    flags = _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR
    for extra in (_LO_FLAGS_DIRECT_IO, 0):
        try:
            fcntl.ioctl(descriptor, _LOOP_CONFIGURE, _LOOP_CONFIG.pack(backing, 0, flags | extra))
        except OSError as error:
            if error.errno != errno.EINVAL or not extra:
                raise
        else:
            return

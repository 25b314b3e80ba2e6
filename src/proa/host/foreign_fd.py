# SPDX-License-Identifier: Apache-2.0
"""A descriptor that another process has open. Source: pidfd_getfd(2), Linux 5.6."""

from __future__ import annotations

import ctypes
import os

_SYS_PIDFD_GETFD = 438  # the same on all architectures


def take_fd(pid: int, fd: int) -> int:
    """Return a descriptor of what is ``fd`` in a process, closed on exec. Needs the right to trace it.

    :raises OSError: the process or its descriptor is not there, or may not be reached.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(pid)
    try:
        taken = int(libc.syscall(_SYS_PIDFD_GETFD, process, fd, 0))
    finally:
        os.close(process)
    if taken < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"descriptor {fd} of process {pid}: {os.strerror(error)}")
    return taken

# SPDX-License-Identifier: Apache-2.0
"""Sets the size of the terminal that a conmon holds.

conmon takes sizes through a FIFO, but when it has acted on one cannot be known: input sent after it may
overtake it, and a program then sees the old size. So the size is set here, on a duplicate of conmon's own
descriptor, and the FIFO is the way where the kernel forbids that.

Source: pidfd_getfd(2), TIOCSWINSZ(2const); containers/conmon, src/ctrl.c.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import termios
from pathlib import Path

MAX_SIZE = 65_535  # struct winsize has 16 bits
_FIFO_MAX_SIZE = 1000  # conmon drops larger ones
_RESIZE = 1  # of conmon's control messages
_SYS_PIDFD_GETFD = 438  # the same number on every architecture
_libc = ctypes.CDLL(None, use_errno=True)


def resize(conmon_pid: int, directory: Path, *, rows: int, columns: int) -> None:
    """Set the size; the program is told by SIGWINCH. Does nothing without a terminal, or after its end.

    :param conmon_pid: a conmon that is known to be alive, or not yet reaped.
    :param directory: the one of that conmon.
    """
    master = _find_master(conmon_pid)
    if master is None:
        return
    try:
        fd = _duplicate(conmon_pid, master)
    except ProcessLookupError:
        return
    except OSError:
        _resize_by_fifo(directory, rows=rows, columns=columns)
        return
    try:
        size = struct.pack("HHHH", min(rows, MAX_SIZE), min(columns, MAX_SIZE), 0, 0)
        with contextlib.suppress(OSError):  # hung up
            fcntl.ioctl(fd, termios.TIOCSWINSZ, size)
    finally:
        os.close(fd)


def _find_master(pid: int) -> int | None:
    """The number of the descriptor of a terminal's master side in that process."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if entry.readlink().name == "ptmx":
                    return int(entry.name)
    return None


def _duplicate(pid: int, fd: int) -> int:
    pidfd = os.pidfd_open(pid)
    try:
        copy = int(_libc.syscall(_SYS_PIDFD_GETFD, pidfd, fd, 0))
        if copy < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return copy
    finally:
        os.close(pidfd)


def _resize_by_fifo(directory: Path, *, rows: int, columns: int) -> None:
    message = f"{_RESIZE} {min(rows, _FIFO_MAX_SIZE)} {min(columns, _FIFO_MAX_SIZE)}\n"
    try:
        fd = os.open(directory / "ctl", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO):
            return
        raise
    try:
        os.write(fd, message.encode())
    except BlockingIOError:
        pass  # a FIFO full of sizes: the next one will come
    finally:
        os.close(fd)

# SPDX-License-Identifier: Apache-2.0
"""Notice the end of processes that are not our children: conmon and QEMU of an earlier daemon, or orphans.

A pid alone may be a new process of the same number. ``Handle`` pins one process by a pidfd, and its start
time tells whether a pid written down earlier still means the same process. Children are reaped by
``proa.host.process``, not here.

Source: pidfd_open(2), pidfd_send_signal(2), proc_pid_stat(5) field 22.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import anyio


async def wait_pid_exit(pid: int) -> None:
    """Wait until the process ``pid`` has ended (a zombie has). Returns at once when there is none."""
    handle = open_process(pid)
    if handle is None:
        return
    with contextlib.closing(handle):
        await handle.wait()


def open_process(pid: int, *, start_time: int | None = None) -> Handle | None:
    """Pin the process ``pid``; None when it has ended, or (with ``start_time``) is another one by now."""
    if pid <= 0:
        return None
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    found = get_start_time(pid)
    if found is None or (start_time is not None and found != start_time):
        os.close(fd)
        return None
    return Handle(pid, fd, found)


def get_start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of the process; None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold anything, blanks and parentheses included: count from its end.
    return int(stat[stat.rindex(b")") + 2 :].split()[19])


class Handle:
    """One process, pinned: signals cannot hit a stranger that got its number. Close it after use."""

    def __init__(self, pid: int, fd: int, start_time: int) -> None:
        self.pid = pid
        self.start_time = start_time
        self._fd = fd

    async def wait(self) -> None:
        """Wait for the end. May be called by several at once, and after the end."""
        # Its own descriptor for each caller: the event loop takes one reader per number.
        fd = os.dup(self._fd)
        try:
            await anyio.wait_readable(fd)
        finally:
            os.close(fd)

    def has_ended(self) -> bool:
        """Whether it has ended; true for a zombie too."""
        try:
            signal.pidfd_send_signal(self._fd, 0)
        except ProcessLookupError:
            return True
        # A zombie still takes signals; its state tells.
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return True
        return stat[stat.rindex(b")") + 2 :][:1] in (b"Z", b"X")

    def send_signal(self, number: int) -> bool:
        """Send a signal; False when the process has ended."""
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        """Let go of the process. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

# SPDX-License-Identifier: Apache-2.0
"""The QEMU process itself: what it inherits, how it is started, how it ends.

QEMU is started in a session of its own, with /dev/null and a log file for standard streams, so it outlives
the daemon. Its sockets are made here and inherited as listening descriptors: a client can connect, and send,
before QEMU has even been loaded. A process of an earlier daemon is taken up again by pid and start time.

What it is to be is ``machine``'s business, how that is spelled ``cmdline``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import Callable, Collection
from pathlib import Path

from proa.host import process, watch
from proa.host.process import Spawned
from proa.model.errors import Unavailable
from proa.runtime.vm import cmdline
from proa.runtime.vm.machine import Machine, Ports, RunAs
from proa.runtime.vm.protocol import plain_text

BACKLOG = 4  # clients that may wait while QEMU serves one
CONSOLE_BYTES = 8 * 1024  # of kernel messages that are kept: a panic and what led to it
LOG_TAIL_BYTES = 4096
_EMPTY_HUB = " is not connected to host network"  # QEMU's warning of each network card to spare

# Each VM has a user of its own, so that one QEMU that was broken out of cannot touch another. The range
# is claimed by nobody: systemd's own ranges end below it (systemd, docs/UIDS-GIDS.md).
_FIRST_UID = 0x7000_0000
_UIDS = 0x0FFF_0000


class HostProcess:
    """A running QEMU (or fs-server): our child, or a process left by an earlier daemon.

    :ivar start_time: clock ticks from boot; tells the process from a later one of the same number.
    """

    def __init__(self, process: Spawned | watch.Handle | None, *, pid: int, start_time: int) -> None:
        self._process = process
        self.pid = pid
        self.start_time = start_time

    @classmethod
    def of_child(cls, child: Spawned) -> HostProcess:
        return cls(child, pid=child.pid, start_time=watch.get_start_time(child.pid) or 0)

    @classmethod
    def ended(cls, pid: int) -> HostProcess:
        """One that is known to be gone."""
        return cls(None, pid=pid, start_time=0)

    @classmethod
    def find(cls, pid: int, start_time: int) -> HostProcess | None:
        """Take up a process that an earlier daemon started; None when it has ended."""
        handle = watch.open_process(pid, start_time=start_time)
        if handle is None:
            return None
        if handle.has_ended():
            handle.close()
            return None
        return cls(handle, pid=pid, start_time=start_time)

    def has_ended(self) -> bool:
        """Whether it is gone, reaped or not."""
        handle = watch.open_process(self.pid, start_time=self.start_time)
        if handle is None:
            return True
        with contextlib.closing(handle):
            return handle.has_ended()

    async def wait(self) -> None:
        """Wait for its end; a child is reaped. Any number of callers, any number of times."""
        if self._process is not None:
            await self._process.wait()

    def kill(self) -> None:
        """SIGKILL. Does nothing when it has ended."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)

    async def end(self) -> None:
        """Kill it and wait until it is gone."""
        self.kill()
        await self.wait()

    def close(self) -> None:
        """Let go of an ended process. Idempotent."""
        if isinstance(self._process, watch.Handle):
            self._process.close()
            self._process = None  # it has ended: nothing is left to signal or to wait for


class Console(asyncio.Protocol):
    """Keeps the end of what a guest prints on its serial console.

    A socket, not a file: a guest may print without end, and a file would fill the disk. What it prints while
    nobody is connected is lost.
    """

    def __init__(self) -> None:
        self._kept = bytearray()
        self._transport: asyncio.BaseTransport | None = None

    async def connect(self, home: Path) -> None:
        """Begin to listen, if there is somebody to listen to."""
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().create_unix_connection(lambda: self, str(home / "console"))

    def text(self) -> str:
        """The last CONSOLE_BYTES of what was printed."""
        return plain_text(self._kept.decode(errors="replace")).strip()

    def close(self) -> None:
        """Idempotent."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._kept += data
        del self._kept[:-CONSOLE_BYTES]


def launch(
    home: Path,
    plan: Callable[[Ports], Machine],
    *,
    fs_fd: int | None = None,
    pass_fds: Collection[int] = (),
    log: Path | None = None,
    exit_record: Path | None = None,
    seats: int = 0,
) -> HostProcess:
    """Start QEMU with its sockets ``monitor``, ``control``, ``console`` and its ``qemu.log`` in ``home``.

    :param plan: makes the machine, given what stands behind its ports.
    :param pass_fds: more descriptors that the machine names; they stay open here.
    :param seats: as in ``Shape``; a socket ``control-N`` is made for each.
    :raises ToolFailed: QEMU cannot be executed.
    """
    with contextlib.ExitStack() as stack:
        monitor = stack.enter_context(listen(home / "monitor"))
        control = stack.enter_context(listen(home / "control"))
        console = stack.enter_context(listen(home / "console"))
        stderr = os.open(home / "qemu.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, stderr)
        seat_fds = [stack.enter_context(listen(home / f"control-{n}")).fileno() for n in range(seats)]
        ports = Ports(
            monitor_fd=monitor.fileno(),
            control_fd=control.fileno(),
            console_fd=console.fileno(),
            fs_fd=fs_fd,
            log=log,
            exit_record=exit_record,
            seat_fds=seat_fds,
        )
        inherited = [monitor.fileno(), control.fileno(), console.fileno(), *seat_fds, *pass_fds]
        if fs_fd is not None:
            inherited.append(fs_fd)
        child = process.spawn_now(
            cmdline.render(plan(ports)),
            cwd=Path("/"),
            stderr=stderr,
            stdout=stderr,
            pass_fds=inherited,
            start_new_session=True,
        )
    return HostProcess.of_child(child)


def listen(path: Path) -> socket.socket:
    """Make a listening unix socket. Raises Unavailable when the path is too long for one."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        link.bind(os.fspath(path))
        link.listen(BACKLOG)
    except OSError as error:
        link.close()
        raise Unavailable(f"cannot make the socket {path}: {error}") from error
    return link


def user_of(identifier: str) -> int | None:
    """Return the uid and gid for the QEMU of a container; None when this process may not give it one."""
    uid = _FIRST_UID + int(identifier[:8], 16) % _UIDS
    return uid if os.geteuid() == 0 and _is_mapped(uid) else None


def rights_of(identifier: str, root: Path, version: str) -> RunAs | None:
    """Return what a QEMU of that version is to become; None when this process may not make it so.

    :param root: a directory of the machine's own, which only root may enter.
    """
    uid = user_of(identifier)
    if uid is None:
        return None
    number = re.match(r"(\d+)\.(\d+)", version)
    return RunAs(
        uid=uid,
        root=root,
        has_run_with=number is not None and (int(number[1]), int(number[2])) >= (8, 1),
    )


def _is_mapped(uid: int) -> bool:
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, count = map(int, line.split())
        if first <= uid < first + count:
            return True
    return False


def log_tail(home: Path) -> str:
    """Return the end of what QEMU wrote to stderr."""
    try:
        with (home / "qemu.log").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
            lines = plain_text(file.read().decode(errors="replace")).splitlines()
            return "\n".join(line for line in lines if _EMPTY_HUB not in line).strip()
    except OSError:
        return ""

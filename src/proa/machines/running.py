# SPDX-License-Identifier: Apache-2.0
"""A machine that runs: its QEMU process, from launch (or from being found) to its end, and what it is told.

QEMU is a session leader with a user, a control group and a network tap of its own; it outlives the daemon.
How it ended is read from its exit status (when it is our child), the last SHUTDOWN event and its stderr.

Source: QEMU QMP reference (system_powerdown, system_reset, stop, cont, quit, screendump, set_password).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from proa.host import process
from proa.host.cgroup import Cgroup, get_hierarchies
from proa.host.cgroup_usage import Usage
from proa.host.process import Spawned
from proa.machines import plan as plans
from proa.machines import tpm
from proa.machines.agent import GuestResult, run_in_guest
from proa.machines.console import BoundedLog, ConsoleStdio, SerialConsole
from proa.machines.home import MachineHome
from proa.machines.plan import Plan, Sockets
from proa.machines.watch import Event, watch_events
from proa.model.errors import Conflict, EngineError, Internal, InvalidParameter, StartFailed
from proa.model.machine import MachineId
from proa.runtime.vm import qemu
from proa.runtime.vm.home import Pid
from proa.runtime.vm.monitor import greeted_monitor
from proa.runtime.vm.qemu import HostProcess

START_TIMEOUT_S = 60.0  # for QEMU to open what it has and to answer; a second when the host is idle
QUIT_TIMEOUT_S = 10.0  # for QEMU to write what it holds of the disks
MAX_SCREENSHOT_BYTES = 64 * 1024 * 1024
VNC_PASSWORD_LENGTH = 8  # of RFC 6143, 7.2.2: DES takes no more
VNC_PASSWORD_S = 60  # in which a connection must begin

_PASSWORD_LETTERS = string.ascii_letters + string.digits
_SAID_WHEN_WELL = ("VNC server running on", "swtpm: Data client disconnected")
# Causes of SHUTDOWN, in words. Source: QEMU QAPI, ShutdownCause.
_CAUSES = {
    "guest-shutdown": "the guest powered off",
    "guest-reset": "the guest reset",
    "guest-panic": "the guest panicked",
    "host-qmp-quit": "stopped by force",
    "host-signal": "QEMU got a signal",
    "host-error": "QEMU met an error",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a run ended. ``crashed``: QEMU ended as nobody wanted."""

    crashed: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VncAccess:
    """Where a VNC client connects, and with what."""

    host: str
    port: int
    password: str
    valid_s: int


def cgroup_path(machine_id: MachineId) -> str:
    """Where QEMU is counted."""
    return f"/proa/machine-{machine_id}"


class RunningMachine:
    """One run. ``supervise`` must be run by the owner until it returns.

    :param child: QEMU when this daemon has started it.
    """

    def __init__(
        self, machine_id: MachineId, home: MachineHome, qemu_process: HostProcess, child: Spawned | None
    ) -> None:
        self.id = machine_id
        self.home = home
        self._process = qemu_process
        self._child = child
        self._console = SerialConsole(home.run / "console", BoundedLog(home.data / "console.log"))
        self._cause = ""
        self._is_speaking = False
        self.kill_wanted = False
        self.tpm: Spawned | None = None  # when this daemon has started it; it ends when QEMU does
        self.ended = anyio.Event()
        self.on_event: Callable[[str, Event], None] = lambda name, data: None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def start_time(self) -> int:
        """Of QEMU, in clock ticks from the host's boot."""
        return self._process.start_time

    async def wait(self) -> None:
        """Wait for the end of QEMU."""
        await self._process.wait()

    # --- life ---

    async def supervise(self) -> End:
        """Serve the console and listen until QEMU has ended; return how. Cancelled, QEMU goes on."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._console.run)
            group.start_soon(watch_events, self.home.run / "events", self._note)
            await self._process.wait()
            # What it said last is in the sockets, which end with it.
        self._process.close()
        return self._explain()

    async def release(self) -> None:
        """Take away what the run had on the host. Idempotent."""
        if self.tpm is not None:
            await self.tpm.stop()
        await _release(self.id, self.home)

    async def power_down(self) -> None:
        """Press the power button: a guest with ACPI begins to shut down. A paused one goes on for that."""
        async with greeted_monitor(self.home.monitor) as monitor:
            await monitor.execute("cont")
            await monitor.execute("system_powerdown")

    async def reset(self) -> None:
        """Press the reset button."""
        async with greeted_monitor(self.home.monitor) as monitor:
            await monitor.execute("system_reset")

    async def quit(self) -> None:
        """End QEMU, which writes what it holds; kill it when it does not. Returns when it has ended."""
        with contextlib.suppress(EngineError):
            async with greeted_monitor(self.home.monitor) as monitor:
                await monitor.execute("quit")
        with anyio.move_on_after(QUIT_TIMEOUT_S):
            await self._process.wait()
            return
        self.kill()
        await self._process.wait()

    def kill(self) -> None:
        """Pull the plug."""
        self.kill_wanted = True
        self._process.kill()

    async def pause(self) -> None:
        async with greeted_monitor(self.home.monitor) as monitor:
            await monitor.execute("stop")

    async def resume(self) -> None:
        async with greeted_monitor(self.home.monitor) as monitor:
            await monitor.execute("cont")

    async def is_paused(self) -> bool:
        """Whether its processors stand still."""
        async with greeted_monitor(self.home.monitor) as monitor:
            return not (await monitor.execute("query-status"))["running"]

    async def resize_disk(self, name: str, size: int) -> None:
        """Let a disk grow; the guest is told. Raises MonitorError."""
        async with greeted_monitor(self.home.monitor) as monitor:
            await monitor.execute("block_resize", {"node-name": name, "size": size})

    async def exec(
        self, command: Sequence[str], *, env: Sequence[str], stdin: bytes, timeout_s: float
    ) -> GuestResult:
        """Run a command by the guest's agent. Raises as ``agent.run_in_guest``."""
        with self.speaking() as path:
            return await run_in_guest(path, command, env=env, stdin=stdin, timeout_s=timeout_s)

    @contextlib.contextmanager
    def speaking(self) -> Iterator[Path]:
        """Have the guest's agent for oneself; yields its socket. Raises Conflict while another has it."""
        if self._is_speaking:
            raise Conflict("another command is being run by the guest's agent: it runs one at a time")
        self._is_speaking = True
        try:
            yield self.home.run / "agent"
        finally:
            self._is_speaking = False

    # --- looking at it ---

    def open_console(self) -> ConsoleStdio:
        return self._console.open()

    async def screenshot(self) -> bytes:
        """Return the screen as PNG. Raises InvalidParameter when it has none."""
        with contextlib.ExitStack() as files:
            # QEMU, which is another user, writes to memory of ours: there is no file to be found or swapped.
            memory = os.memfd_create("screenshot")
            files.callback(os.close, memory)
            writable = os.open(f"/proc/self/fd/{memory}", os.O_WRONLY | os.O_CLOEXEC)
            files.callback(os.close, writable)
            async with greeted_monitor(self.home.monitor) as monitor:
                await monitor.execute("add-fd", {"fdset-id": 1}, fd=writable)
                try:
                    await monitor.execute("screendump", {"filename": "/dev/fdset/1", "format": "png"})
                except Internal as error:
                    raise InvalidParameter(f"the machine has no screen to show: {error.message}") from error
                finally:
                    await monitor.execute("remove-fd", {"fdset-id": 1})
            return os.pread(memory, MAX_SCREENSHOT_BYTES, 0)

    async def open_vnc(self) -> VncAccess:
        """Let a VNC client in, with a password that is new. Raises InvalidParameter when it is headless."""
        password = "".join(secrets.choice(_PASSWORD_LETTERS) for _ in range(VNC_PASSWORD_LENGTH))
        async with greeted_monitor(self.home.monitor) as monitor:
            found = await monitor.execute("query-vnc")
            if not found.get("enabled"):
                raise InvalidParameter("the machine is headless: it has no screen")
            await monitor.execute("set_password", {"protocol": "vnc", "password": password})
            await monitor.execute("expire_password", {"protocol": "vnc", "time": f"+{VNC_PASSWORD_S}"})
        return VncAccess(
            host=str(found["host"]), port=int(found["service"]), password=password, valid_s=VNC_PASSWORD_S
        )

    def usage(self) -> Usage:
        """Return what QEMU takes of the host."""
        return Cgroup(cgroup_path(self.id), get_hierarchies()).usage()

    # --- machinery ---

    def _note(self, name: str, data: Event) -> None:
        if name == "SHUTDOWN":
            self._cause = str(data.get("reason", ""))
        self.on_event(name, data)

    def _explain(self) -> End:
        if self.kill_wanted:
            return End(crashed=False, reason="killed")
        status = None if self._child is None else self._child.status
        cause = _CAUSES.get(self._cause, self._cause)
        if status == 0 or (status is None and self._cause):
            return End(crashed=self._cause == "host-error", reason=cause or "QEMU ended")
        said = _words_of(self.home)
        if status is None:
            reason = "QEMU ended, and how is not known: another daemon had started it"
        elif status < 0:
            reason = f"QEMU was ended by signal {-status} ({signal.Signals(-status).name})"
        else:
            reason = f"QEMU ended with status {status}"
        return End(crashed=True, reason=f"{reason}: {said}" if said else reason)


async def launch(
    machine_id: MachineId, home: MachineHome, make_plan: Callable[[Sockets], Plan], *, with_tpm: bool = False
) -> RunningMachine:
    """Start QEMU, and its TPM, and wait until it answers, with everything open.

    :raises StartFailed: QEMU ended or does not answer; its last words are in the message, nothing is left.
    """
    home.create_run()
    with contextlib.ExitStack() as files:
        sockets = {}
        far = -1
        for name in ("monitor", "events", "console", "agent"):
            link = files.enter_context(qemu.listen(home.run / name))
            sockets[name] = link.fileno()
        if with_tpm:
            near, far = (files.enter_context(link).fileno() for link in socket.socketpair())
            sockets["tpm"] = near
        log = os.open(home.run / "qemu.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        files.callback(os.close, log)
        child = process.spawn_now(
            plans.render(make_plan(Sockets(**sockets))),
            cwd=Path("/"),
            stdout=log,
            stderr=log,
            pass_fds=list(sockets.values()),
            start_new_session=True,
        )
        running = RunningMachine(machine_id, home, HostProcess.of_child(child), child)
        if with_tpm:
            # After QEMU: it waits for its TPM and ends when nobody is there, but a TPM waits for ever.
            try:
                running.tpm = tpm.spawn(machine_id, home.tpm, link=far, log=log)
            except BaseException:
                await _undo(running)
                raise
    try:
        home.write_process(Pid(pid=running.pid, start_time=running.start_time))
        cgroup = Cgroup(cgroup_path(machine_id), get_hierarchies())
        cgroup.create()
        await anyio.to_thread.run_sync(cgroup.attach, running.pid)
        if running.tpm is not None:
            with contextlib.suppress(EngineError, OSError):  # it has ended: QEMU will tell
                await anyio.to_thread.run_sync(cgroup.attach, running.tpm.pid)
        with anyio.fail_after(START_TIMEOUT_S):
            await running.is_paused()
    except (EngineError, TimeoutError) as error:
        said = await _undo(running)
        raise StartFailed(f"the virtual machine cannot be started: {said or error}") from error
    except BaseException:
        await _undo(running)
        raise
    return running


def find(machine_id: MachineId, home: MachineHome) -> RunningMachine | None:
    """Take up the machine that an earlier daemon has started; None when its QEMU is gone."""
    noted = home.read_process()
    found = None if noted is None else HostProcess.find(noted.pid, noted.start_time)
    return None if found is None else RunningMachine(machine_id, home, found, None)


async def end_leftover(machine_id: MachineId, home: MachineHome) -> None:
    """End a QEMU that a daemon was killed over, whether it was noted or not. Idempotent."""
    running = find(machine_id, home)
    if running is not None:
        await _undo(running)
        return
    with contextlib.suppress(EngineError):
        async with greeted_monitor(home.monitor) as monitor:
            await monitor.execute("quit")
    await _release(machine_id, home)


async def _release(machine_id: MachineId, home: MachineHome) -> None:
    with contextlib.suppress(EngineError):
        await Cgroup(cgroup_path(machine_id), get_hierarchies()).delete()
    home.remove_run()


def _words_of(home: MachineHome) -> str:
    """The end of what QEMU wrote to stderr, without what it says of itself when all is well."""
    lines = qemu.log_tail(home.run).splitlines()
    return "\n".join(line for line in lines if not line.startswith(_SAID_WHEN_WELL))


async def _undo(running: RunningMachine) -> str:
    """Kill it and take away what it had; return its last words."""
    with anyio.CancelScope(shield=True):
        running.kill()
        await running.wait()
        said = _words_of(running.home)
        await running.release()
    return said

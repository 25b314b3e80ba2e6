# SPDX-License-Identifier: Apache-2.0
"""A VM as the engine's task: one clone from ``create`` to ``delete``, or one found again.

Owns QEMU's life. When the main process has ended and its output has been taken in, ``wait`` returns; when
the guest has synchronised its disks as well, QEMU is killed. ``delete`` returns after that: only then are
the disks free for the next start. What runs in the guest is ``guest``'s, what is left on the host is in
``home``.

Source: proa.runtime.seam.Task; docs/reference/agent-protocol.md, section 6.
"""

from __future__ import annotations

import contextlib
import errno
import math
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup

from proa.model.errors import (
    EngineError,
    Internal,
    InvalidParameter,
    OutcomeUnknown,
    StartFailed,
    TaskLost,
    Unavailable,
    WrongState,
)
from proa.model.ids import ContainerId, ExecId
from proa.model.task import (
    ExitStatus,
    Interface,
    ProcessSpec,
    ProcessTable,
    Resources,
    TaskSpec,
    TaskStats,
)
from proa.runtime.seam import FilesKind, FilesRequest, Process, Stdio
from proa.runtime.vm import limits, messages, plugging, ps, qemu
from proa.runtime.vm.channel import ANSWER_TIMEOUT_S, AgentError
from proa.runtime.vm.clone import Clone
from proa.runtime.vm.given_files import load, store
from proa.runtime.vm.home import Home
from proa.runtime.vm.log_bound import keep_bounded
from proa.runtime.vm.monitor import greeted_monitor
from proa.runtime.vm.process import GuestProcess
from proa.runtime.vm.protocol import Fields, FrameType, Key, ProtocolError, u32, u64

START_TIMEOUT_S = 60.0
FIND_TIMEOUT_S = 10.0  # for a running guest to answer a new daemon
KILL_ANSWER_S = 1.0  # a guest that does not take SIGKILL by then is switched off
STREAMS_TIMEOUT_S = 5.0  # for the rest of the output, which is already in the guest's memory
SYNC_TIMEOUT_S = 60.0  # for the guest to write its dirty pages; longer than any disk here should need
HELPER_TIMEOUT_S = 1.0  # for fs-server, which ends when QEMU hangs up
KILLED = 128 + signal.SIGKILL


class VmTask:
    """The task. Made by ``VmRuntime``.

    :param spec: None when it was found: it has begun long ago.
    """

    def __init__(self, container_id: ContainerId, clone: Clone, home: Home, spec: TaskSpec | None) -> None:
        self._id = container_id
        self._clone = clone
        self._home = home
        self._spec = spec
        self._guest = clone.guest
        self._is_paused = False
        self._must_take_up = False
        self._last_stats: TaskStats | None = None
        self._outcome: ExitStatus | TaskLost | None = None
        self._over = anyio.Event()  # the outcome is known
        self._settled = anyio.Event()  # QEMU is gone
        self._is_deleted = False

    @property
    def id(self) -> ContainerId:
        return self._id

    @property
    def pid(self) -> int:
        return self._clone.process.pid

    @property
    def clone(self) -> Clone:
        return self._clone

    @property
    def home(self) -> Home:
        return self._home

    # --- beginning and end ---

    async def start(self) -> None:
        """Begin the program. Raises StartFailed, WrongState."""
        if self._spec is None or self._outcome is not None:
            raise WrongState(f"container {self._id} has been started already")
        main = self._guest.main
        payload = messages.start(self._spec, credit=main.prepare_start(), is_prepared=self._clone.is_prepared)
        # The clone was told the time when it was configured; tell it once more, now that it is awake.
        self._guest.channel.post(FrameType.CLOCK, messages.clock(time.time_ns()))
        try:
            pid = await self._start(FrameType.START, payload)
        except BaseException:
            main.not_begun()
            raise
        await main.begun(pid)

    async def attach(self) -> Stdio:
        return await self._guest.main.open()

    async def wait(self) -> ExitStatus:
        await self._over.wait()
        if isinstance(self._outcome, ExitStatus):
            return self._outcome
        raise TaskLost(self._outcome.message if self._outcome else "the virtual machine is gone")

    async def watch_oom(self, tell: Callable[[], Awaitable[None]]) -> None:
        """The agent tells; an older one, or one that cannot be reached, with the end."""
        known = u64(Key.COUNT, 0) if self._spec is not None else b""
        with contextlib.suppress(AgentError, ProtocolError, OutcomeUnknown, Unavailable):
            while True:
                channel = self._guest.channel
                answer = await channel.request(FrameType.WATCH_OOM, known, timeout_s=math.inf)
                if known:
                    await tell()
                known = u64(Key.COUNT, answer.number(Key.COUNT))

    async def kill(self, signal: int) -> None:
        self._require_running()
        is_final = signal == KILLED - 128
        if self._is_paused:
            if not is_final:
                # It waits in the socket until the guest goes on, as a signal waits for a frozen process.
                self._guest.channel.post(FrameType.SIGNAL, _signal(signal))
                return
            await self.resume()
        try:
            await self._guest.channel.request(
                FrameType.SIGNAL,
                _signal(signal),
                timeout_s=KILL_ANSWER_S if is_final else ANSWER_TIMEOUT_S,
            )
        except AgentError as error:
            if error.errno == errno.ESRCH:
                raise WrongState(f"container {self._id} is not running") from error
            raise InvalidParameter(f"cannot send signal {signal}: {error.message}") from error
        except (OutcomeUnknown, Unavailable):
            if not is_final:
                raise
            self._home.write_exit(KILLED)
            self._clone.process.kill()

    async def delete(self, *, keep_writes: bool = True) -> None:
        with anyio.CancelScope(shield=True):
            if self._is_deleted:
                return
            self._is_deleted = True
            if isinstance(self._outcome, ExitStatus) and keep_writes:
                # Killed now, the guest would lose what it has not yet written.
                with anyio.move_on_after(SYNC_TIMEOUT_S):
                    await self._settled.wait()
            await self._release_host()
            self._guest.close()
            self._clone.console.close()
            with contextlib.suppress(EngineError):
                await limits.remove(self._clone.record.cgroup)
            self._home.remove()
            self._finish(TaskLost("the virtual machine was removed"))

    async def supervise(self) -> None:
        """Wait for the end of the program or of QEMU, and settle it. Run once by the owner of the task.

        Cancelled when the daemon ends; the VM goes on.
        """
        async with anyio.create_task_group() as racing:
            racing.start_soon(self._wait_for_guest, racing)
            racing.start_soon(self._wait_for_qemu, racing)
            racing.start_soon(keep_bounded, self._home, self._clone.record)
        await self._release_host()
        status = self._guest.main.status or self._home.read_exit()
        self._guest.close()
        self._clone.console.close()
        self._finish(status or TaskLost(self._explain_loss()))
        self._settled.set()

    # --- while it runs ---

    async def pause(self) -> None:
        self._require_running()
        async with self._clone.standing, greeted_monitor(self._home.monitor) as monitor:
            await monitor.execute("stop")
        self._is_paused = True

    async def resume(self) -> None:
        self._require_running()
        async with self._clone.standing, greeted_monitor(self._home.monitor) as monitor:
            await monitor.execute("cont")
        self._is_paused = False
        if self._must_take_up:
            await self.take_up()
        elif self._guest.is_linked:
            self._guest.channel.post(FrameType.CLOCK, messages.clock(time.time_ns()))

    async def exec(self, exec_id: ExecId, spec: ProcessSpec, *, attached: bool) -> Process:
        self._require_running()
        process = self._guest.add_process(spec)
        try:
            stdio = await process.open() if attached else None
            payload = messages.process(
                spec,
                number=process.number,
                capabilities=self._clone.record.capabilities,
                no_new_privileges=self._clone.record.no_new_privileges,
                credit=process.prepare_start(),
            )
            pid = await self._start(FrameType.EXEC, payload)
        except BaseException:
            self._guest.drop_process(process)
            raise
        await process.begun(pid)
        return VmProcess(self, process, stdio)

    async def open_files(self, request: FilesRequest) -> Process:
        self._require_running()
        if self._is_paused:
            raise WrongState(
                f"Container {self._id} is paused, unpause the container before copying its files"
            )
        process = self._guest.add_process(
            ProcessSpec(args=(), open_stdin=request.kind is FilesKind.WRITE, stdin_once=True)
        )
        try:
            stdio = await process.open()
            payload = messages.files(request, number=process.number, credit=process.prepare_start())
            pid = await self._start(FrameType.FILES, payload)
        except BaseException:
            self._guest.drop_process(process)
            raise
        await process.begun(pid)
        return VmProcess(self, process, stdio)

    async def sync(self) -> None:
        with _translated("write its files to the disk"):
            await self._guest.channel.request(FrameType.SYNC, timeout_s=SYNC_TIMEOUT_S)

    async def resize(self, *, rows: int, columns: int) -> None:
        await self.resize_process(self._guest.main, rows=rows, columns=columns)

    async def resize_process(self, process: GuestProcess, *, rows: int, columns: int) -> None:
        """Set the size of a process's terminal, if it runs and has one."""
        if not process.tty or process.status is not None or self._is_paused:
            return
        size = u32(Key.ROWS, rows) + u32(Key.COLUMNS, columns)
        with contextlib.suppress(AgentError):  # it has just ended
            await self._guest.channel.request(FrameType.RESIZE, messages.of_process(process.number, size))

    async def kill_process(self, process: GuestProcess) -> None:
        """Kill a process of an exec, with its session, if it runs."""
        if process.status is None:
            number = u32(Key.SIGNAL_NUMBER, signal.SIGKILL)
            with contextlib.suppress(AgentError):  # it has just ended
                await self._guest.channel.request(
                    FrameType.SIGNAL, messages.of_process(process.number, number)
                )

    async def update(self, resources: Resources) -> None:
        self._require_running()
        record = self._clone.record
        limits.check_update(resources, memory_bytes=record.memory_bytes, vcpus=record.vcpus)
        with _translated("change the limits"):
            payload = messages.update(memory_bytes=resources.memory_bytes, pids=resources.pids)
            await self._guest.channel.request(FrameType.UPDATE, payload)
        await limits.change(record.cgroup, self.pid, limits.around_qemu(resources, record.vcpus))

    async def edit_file(self, target: str, edit: Callable[[bytes], bytes]) -> None:
        found = await load(self, target)
        if found is not None and (changed := edit(found)) != found:
            await store(self, target, changed)

    def check_change(self, *, joins: bool) -> None:
        self._require_running()
        plugging.check_change(self._clone.record)
        if not joins:
            return
        if self._is_paused:
            raise WrongState(f"Container {self._id} is paused, unpause the container first")
        plugging.check_room(self._clone.record)

    async def set_networks(self, interfaces: Sequence[Interface]) -> None:
        self._require_running()
        record = self._clone.record
        with anyio.CancelScope(shield=True):  # a card half plugged in would be lost
            try:
                await plugging.change_networks(
                    self._home, record, self._guest.channel, interfaces, is_paused=self._is_paused
                )
            finally:
                self._clone.record = self._home.read() or record

    async def stats(self) -> TaskStats:
        self._require_running()
        if self._is_paused:  # a guest that stands still uses what it used
            return self._last_stats or TaskStats(read_at_ns=time.time_ns())
        async with self._asking(FrameType.STATS) as answer:
            self._last_stats = messages.stats(answer, vcpus=self._clone.record.vcpus, now_ns=time.time_ns())
        return self._last_stats

    async def processes(self, ps_args: str) -> ProcessTable:
        self._require_running()
        ps.parse_arguments(ps_args)  # refused before the guest is asked
        if self._is_paused:
            raise WrongState(
                f"Container {self._id} is paused, unpause the container before listing processes"
            )
        async with self._asking(FrameType.PROCESSES) as answer:
            return ps.render(
                ps_args,
                messages.processes(answer),
                memory_bytes=self._clone.record.memory_bytes,
                now_ns=time.time_ns(),
            )

    # --- being found ---

    async def take_up(self) -> bool:
        """Link to a guest of an earlier daemon; False when its program never began.

        A paused one is left alone until ``resume``.
        """
        async with greeted_monitor(self._home.monitor) as monitor:
            if self._home.copying.exists():  # an earlier daemon died while it copied the machine
                await monitor.execute("cont")
                self._home.copying.unlink(missing_ok=True)
            status = await monitor.execute("query-status")
        self._is_paused = self._must_take_up = status["status"] == "paused"
        if self._is_paused:
            self._guest.main.found_unknown()
            return True
        with _translated("find what runs in the virtual machine"):
            await self._guest.take_up(timeout_s=FIND_TIMEOUT_S)
        return self._guest.main.is_started

    # --- machinery ---

    async def _start(self, kind: FrameType, payload: bytes) -> int:
        """Ask the agent to start a process; return its pid. Raises StartFailed."""
        try:
            answer = await self._guest.channel.request(kind, payload, timeout_s=START_TIMEOUT_S)
            return answer.number(Key.PID)
        except AgentError as error:
            raise StartFailed(error.message, exit_code=error.code or 128) from error
        except (OutcomeUnknown, ProtocolError) as error:
            raise StartFailed(self._explain_loss()) from error

    @asynccontextmanager
    async def _asking(self, kind: FrameType) -> AsyncIterator[Fields]:
        """Ask for a reading; a malformed answer is the guest's fault, a missing one means it is going."""
        try:
            with _translated(kind.name):
                yield await self._guest.channel.request(kind)
        except OutcomeUnknown as error:
            raise WrongState(f"container {self._id} is not running") from error

    def _require_running(self) -> None:
        if self._outcome is not None or self._guest.main.status is not None:
            raise WrongState(f"container {self._id} is not running")

    def _finish(self, outcome: ExitStatus | TaskLost) -> None:
        if self._outcome is None:
            self._outcome = outcome
        self._over.set()

    async def _wait_for_guest(self, racing: TaskGroup) -> None:
        try:
            await self._guest.main.wait()
        except TaskLost:
            return  # the link is gone: QEMU's end tells
        with anyio.move_on_after(STREAMS_TIMEOUT_S):
            await self._guest.main.wait_streams()
        if self._guest.main.status is not None:
            self._finish(self._guest.main.status)
        with anyio.move_on_after(SYNC_TIMEOUT_S):
            await self._guest.synced.wait()
        racing.cancel_scope.cancel()

    async def _wait_for_qemu(self, racing: TaskGroup) -> None:
        await self._clone.process.wait()
        racing.cancel_scope.cancel()

    async def _release_host(self) -> None:
        """End QEMU and its file server."""
        await self._clone.process.end()
        fs_server = self._clone.fs_server
        if fs_server is not None:
            with anyio.move_on_after(HELPER_TIMEOUT_S):
                await fs_server.wait()
            await fs_server.end()
            fs_server.close()
        self._clone.process.close()

    def _explain_loss(self) -> str:
        said = "\n".join(filter(None, (qemu.log_tail(self._home.path), self._clone.console.text())))
        return f"the virtual machine went away: {said or 'QEMU was killed'}"


class VmProcess:
    """A process started by exec."""

    def __init__(self, task: VmTask, process: GuestProcess, stdio: Stdio | None) -> None:
        self._task = task
        self._process = process
        self._stdio = stdio

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stdio(self) -> Stdio | None:
        return self._stdio

    async def wait(self) -> ExitStatus:
        return await self._process.wait()

    async def kill(self) -> None:
        await self._task.kill_process(self._process)

    async def resize(self, *, rows: int, columns: int) -> None:
        await self._task.resize_process(self._process, rows=rows, columns=columns)


def _signal(number: int) -> bytes:
    return messages.of_process(messages.MAIN_PROCESS, u32(Key.SIGNAL_NUMBER, number))


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except AgentError as error:
        raise Internal(f"the virtual machine could not {what}: {error.message}") from error
    except ProtocolError as error:
        raise Internal(f"the virtual machine answered nonsense: {error}") from error

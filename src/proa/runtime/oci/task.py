# SPDX-License-Identifier: Apache-2.0
"""The running side of one container under conmon.

The task holds pinned processes (conmon and the container's first one), never the container's life: when the
engine dies, conmon and the container go on, and ``find`` makes a new task from the record. One background
task waits for conmon, which ends after it has written the last output to the log and the status to its file.

Starting, freezing, limiting and removing go straight to the kernel, where a crun or runc process would cost
5 to 25 ms each: the start is one byte through the runtime's own FIFO, the rest is the cgroup's.

Source: proa.runtime.seam.Task; OCI runtime-spec, runtime.md, Lifecycle.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from proa.host import process
from proa.host.cgroup import Cgroup
from proa.host.watch import Handle
from proa.model.errors import Internal, StartFailed, TaskLost, ToolFailed, WrongState
from proa.model.ids import ContainerId, ExecId
from proa.model.task import ExitStatus, IdMap, ProcessSpec, ProcessTable, Resources, TaskStats
from proa.runtime.oci import conmon, failures, stats, top
from proa.runtime.oci.binary import SealedBinary
from proa.runtime.oci.exec import SPEC, OciProcess, read_exit, start_process, wait_drained
from proa.runtime.oci.facts import HostFacts
from proa.runtime.oci.record import Home, Record
from proa.runtime.oci.spec import exec_entry
from proa.runtime.oci.stdio import OciStdio, Streams
from proa.runtime.oci.streams_owner import StreamsOwner
from proa.runtime.oci.terminal import resize
from proa.runtime.oci.user import User, find_user

START_TIMEOUT_S = 10.0  # the container's first process has nothing to do but to take the byte
END_TIMEOUT_S = 10.0  # a killed container is gone in milliseconds, unless the disk hangs
EXECS_END_TIMEOUT_S = 1.0
FILE_BYTES = 1024 * 1024  # what the container makes of its /etc/hosts beyond this is left alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The programs and facts that all tasks of one runtime share."""

    name: str
    binary: SealedBinary
    conmon: Path
    arguments: tuple[str, ...]  # of the runtime, before its command
    facts: HostFacts
    tasks: TaskGroup
    streams: StreamsOwner = field(default_factory=StreamsOwner)

    async def command(self, ids: IdMap | None, user: User) -> tuple[Path, tuple[str, ...]]:
        """Return what conmon runs, and what comes first on its command line.

        :param ids: of a container in a user namespace; ``user`` is whose process is started.
        """
        program = await self.binary.path()
        if ids is None:
            return program, self.arguments
        return self.streams.wrap(program, self.arguments, ids=ids, user=user)


class OciTask:
    """Made by ``OciRuntime``; ``watch`` must run from then on."""

    def __init__(
        self,
        container_id: ContainerId,
        *,
        tools: Tools,
        home: Home,
        record: Record,
        cgroup: Cgroup,
        first: Handle | None,
        supervisor: Handle | process.Spawned | None,
    ) -> None:
        self._id = container_id
        self._tools = tools
        self._home = home
        self._record = record
        self._cgroup = cgroup
        self._first = first
        self._supervisor = supervisor
        self._ended = anyio.Event()
        self._status: ExitStatus | None = None
        self._streams = Streams(
            home.directory,
            open_stdin=record.open_stdin,
            stdin_once=record.stdin_once,
            tasks=tools.tasks,
        )
        self._execs: set[OciProcess] = set()
        self._deleting = anyio.Lock()

    @property
    def id(self) -> ContainerId:
        return self._id

    @property
    def pid(self) -> int:
        return self._record.pid

    # --- life ---

    async def start(self) -> None:
        """Begin the user's program."""
        if self._first is None or self._ended.is_set() or self._first.has_ended():
            raise WrongState(f"container {self._id} has ended before it was started")
        try:
            started = await self._start_by_fifo()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENXIO):
                raise Internal(f"cannot start container {self._id}: {error}") from error
            started = False
        if not started:
            await self._start_by_runtime()

    async def attach(self) -> OciStdio:
        """Connect to the streams."""
        self._require_running()
        return await self._streams.attach()

    async def wait(self) -> ExitStatus:
        """Wait for the end."""
        await self._ended.wait()
        if self._status is None:
            raise TaskLost(f"container {self._id} ended without leaving its exit status")
        return self._status

    async def watch_oom(self, tell: Callable[[], Awaitable[None]]) -> None:
        """Call ``tell`` at each kill by the kernel."""
        await self._cgroup.watch_oom(tell)

    async def kill(self, signal: int) -> None:
        """Signal the first process."""
        if self._ended.is_set() or self._first is None or not self._first.send_signal(signal):
            raise WrongState(f"container {self._id} is not running")

    async def delete(self, *, keep_writes: bool = True) -> None:
        """Free everything but the log. What was written is on the host already."""
        async with self._deleting:
            if not self._ended.is_set():
                await self._end()
            await self._cgroup.delete()
            with anyio.move_on_after(EXECS_END_TIMEOUT_S):
                for each in list(self._execs):
                    await each.wait()
            shutil.rmtree(self._home.state, ignore_errors=True)
            shutil.rmtree(self._home.directory, ignore_errors=True)

    # --- in between ---

    async def pause(self) -> None:
        """Freeze everything in it."""
        self._require_running()
        await self._cgroup.set_frozen(True)

    async def resume(self) -> None:
        """Undo ``pause``."""
        self._require_running()
        await self._cgroup.set_frozen(False)

    async def resize(self, *, rows: int, columns: int) -> None:
        """Set the terminal's size."""
        if not self._ended.is_set() and self._supervisor is not None:
            resize(self._supervisor.pid, self._home.directory, rows=rows, columns=columns)

    async def update(self, resources: Resources) -> None:
        """Replace all limits."""
        self._require_running()
        self._cgroup.set_limits(resources, reset=True)

    async def edit_file(self, target: str, edit: Callable[[bytes], bytes]) -> None:
        """Change a file that was made for the container, in place: it is mounted."""
        for path in self._home.files.glob(f"*-{Path(target).name}"):
            await anyio.to_thread.run_sync(_edit, path, edit)

    async def stats(self) -> TaskStats:
        """Read the present use."""
        self._require_running()
        network_pid = 0 if self._record.host_network else self._record.pid
        return stats.read_stats(self._cgroup, network_pid=network_pid)

    async def processes(self, ps_args: str) -> ProcessTable:
        """List the processes inside."""
        self._require_running()
        return await top.list_processes(self._cgroup.pids(), ps_args)

    async def exec(self, exec_id: ExecId, spec: ProcessSpec, *, attached: bool) -> OciProcess:
        """Start another process inside."""
        self._require_running()
        user = self._find_user(spec)
        entry = self._exec_entry(spec, user)
        directory = self._home.execs / exec_id
        program, arguments = await self._tools.command(self._record.ids, user)
        plan = conmon.Plan(
            conmon=self._tools.conmon,
            runtime=program,
            runtime_args=arguments,
            container_id=self._id,
            name=exec_id,
            directory=directory,
            log_path=None,
            tty=spec.tty,
            open_stdin=spec.open_stdin and attached,
            exec_spec=directory / SPEC,
            exec_attach=attached,
        )
        try:
            started = await start_process(
                plan,
                entry,
                program=spec.args[0],
                tasks=self._tools.tasks,
                ended=self._execs.discard,
            )
        except StartFailed:
            if self._ended.is_set() or self._first is None or self._first.has_ended():
                raise WrongState(f"container {self._id} is not running") from None
            raise
        self._execs.add(started)
        return started

    # --- machinery ---

    async def watch(self) -> None:
        """Wait for conmon and keep how the container ended. Run once, by the owner's task group."""
        if self._supervisor is not None:
            await wait_drained(self._first, self._supervisor, self._streams)
        status = read_exit(self._home.directory / "exit" / self._id)
        if status is not None:
            self._status = replace(status, oom_killed=self._was_oom_killed())
        elif self._first is not None:
            # Somebody killed conmon: nobody reads the streams any more, and nobody will know the status.
            self._first.send_signal(9)
            await self._first.wait()
        self._ended.set()
        await self._release()

    async def _start_by_fifo(self) -> bool:
        """Do what the runtime's start does: crun's container waits for a byte, runc's for a reader.

        False when it takes neither. Source: crun, libcrun_status_write_exec_fifo; runc, handleFifoResult.
        """
        path = self._home.start_fifo
        if self._tools.name == "crun":
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with contextlib.closing(os.fdopen(fd, "wb", buffering=0)) as fifo:
                fifo.write(b"\0")
        else:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                with anyio.move_on_after(START_TIMEOUT_S):
                    await anyio.wait_readable(fd)
                if not os.read(fd, 1):
                    return False
            except BlockingIOError:
                return False
            finally:
                os.close(fd)
        path.unlink(missing_ok=True)  # its absence tells the runtime that the container was started
        return True

    async def _start_by_runtime(self) -> None:
        try:
            binary = await self._tools.binary.path()
            await process.run([binary, *self._tools.arguments, "start", self._id])
        except ToolFailed as error:
            raise failures.translate(error.stderr, program=self._record.program, action="start") from error

    async def _end(self) -> None:
        """Kill what runs, see that it ends."""
        self._cgroup.kill()
        if self._first is not None:
            self._first.send_signal(9)
        with anyio.move_on_after(END_TIMEOUT_S):
            await self._ended.wait()
            return
        # A process outside the cgroup holds the streams: conmon would wait for it forever.
        if self._supervisor is not None:
            self._supervisor.send_signal(9)
            await self._ended.wait()

    def _find_user(self, process_spec: ProcessSpec) -> User:
        # The container's files as it sees them now, mounts over /etc included.
        root = Path(f"/proc/{self._record.pid}/root")
        return find_user(root, process_spec.user, group_add=process_spec.group_add)

    def _exec_entry(self, process_spec: ProcessSpec, user: User) -> dict[str, object]:
        """The process as the runtime takes it: what the spec says, the rest as the first process has it."""
        return exec_entry(
            self._home.config.read_bytes(),
            process_spec,
            user=user,
            available=self._tools.facts.capabilities,
        )

    def _was_oom_killed(self) -> bool:
        return (self._home.directory / "oom").exists() or self._cgroup.oom_kills() > 0

    def _require_running(self) -> None:
        if self._ended.is_set():
            raise WrongState(f"container {self._id} is not running")

    async def _release(self) -> None:
        await self._streams.close()
        if self._first is not None:
            self._first.close()
        if isinstance(self._supervisor, Handle):
            self._supervisor.close()


def _edit(path: Path, edit: Callable[[bytes], bytes]) -> None:
    try:
        with path.open("r+b") as file:
            old = file.read(FILE_BYTES + 1)
            if len(old) > FILE_BYTES:
                return
            new = edit(old)
            if new != old:
                file.seek(0)
                file.write(new)
                file.truncate()
    except OSError as error:
        raise Internal(f"cannot change {path.name} of a container: {error}") from error

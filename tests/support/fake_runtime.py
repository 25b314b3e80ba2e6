# SPDX-License-Identifier: Apache-2.0
"""A runtime in memory that keeps the seam's law, with tasks that do what a test tells them.

``World`` is what outlives a daemon: the processes with their logs and exit statuses. A ``FakeRuntime`` is one
daemon's hand on it; a later daemon makes another one on the same world and finds its tasks there.

A task whose arguments name one of the world's programs runs that (a coroutine); any other just lives until a
test ends it (``World.end``) or a signal does.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from proa.model.errors import FeatureMissing, InvalidParameter, StartFailed, TaskLost, WrongState
from proa.model.ids import ContainerId, ExecId
from proa.model.task import (
    ExitStatus,
    NetworkKind,
    ProcessSpec,
    ProcessTable,
    Resources,
    RootfsKind,
    TaskSpec,
    TaskStats,
)
from proa.runtime.seam import SAVED_PARTS, Features, StreamId, Task
from tests.support.stage import Stage

SIGKILL = 9
_STREAM_NAMES = {StreamId.STDOUT: "stdout", StreamId.STDERR: "stderr"}

FEATURES = Features(
    rootfs=RootfsKind.DIRECTORY,
    network=NetworkKind.NAMESPACE,
    refused={},
    network_modes=("bridge", "none", "host", "container"),
    min_memory_bytes=6 * 1024 * 1024,
)


class FakeProcess:
    """A process in the world: a container's first one, or one of an exec."""

    def __init__(self, spec: ProcessSpec, pid: int, log_path: Path | None) -> None:
        self.spec = spec
        self.pid = pid
        self.started = False
        self.paused = False
        self.status: ExitStatus | None = None
        self.lost = False
        self.signals: list[int] = []
        self.ignores: set[int] = (
            set()
        )  # signals without effect; SIGKILL here is a process stuck in the kernel
        self.traps: dict[int, Callable[[], None]] = {}  # what signals do instead of ending it
        self.size: tuple[int, int] | None = spec.console_size
        self.ended = anyio.Event()
        self.streams: set[FakeStdio] = set()
        self._log_path = log_path
        self._pending: list[int] = []
        self._resumed = anyio.Event()
        self._input = bytearray()
        self._input_open = spec.open_stdin
        self._input_changed = anyio.Event()

    @property
    def is_running(self) -> bool:
        return self.started and not self.ended.is_set()

    # --- what a program does ---

    def write(self, data: bytes, stream: StreamId = StreamId.STDOUT) -> None:
        """Write to a standard stream."""
        stream = StreamId.STDOUT if self.spec.tty else stream
        for stdio in self.streams:
            stdio.push(stream, data)
        if self._log_path is None:
            return
        lines = data.split(b"\n")
        moment = datetime.now(UTC).isoformat().replace("+00:00", "000+00:00").encode()
        tagged = [(b"F", line) for line in lines[:-1]] + ([(b"P", lines[-1])] if lines[-1] else [])
        with self._log_path.open("ab") as log:
            for tag, line in tagged:
                log.write(b" ".join([moment, _STREAM_NAMES[stream].encode(), tag, line]) + b"\n")

    def pause(self) -> None:
        if not self.paused:
            self.paused = True
            self._resumed = anyio.Event()

    async def go_on(self) -> None:
        """Wait while paused."""
        await anyio.lowlevel.checkpoint()
        if self.paused:
            await self._resumed.wait()

    async def read(self) -> bytes:
        """Read from standard input; b"" at its end."""
        while not self._input and self._input_open:
            await self._input_changed.wait()
        data = bytes(self._input)
        self._input.clear()
        return data

    def end(self, code: int, *, oom_killed: bool = False) -> None:
        """End. The first end counts."""
        if self.ended.is_set():
            return
        self.status = ExitStatus(code=code, finished_at_ns=time.time_ns(), oom_killed=oom_killed)
        self._finish()

    def lose(self) -> None:
        """Vanish without a status."""
        self.lost = True
        self._finish()

    # --- what others do to it ---

    def feed(self, data: bytes) -> None:
        if not self._input_open or self.ended.is_set():
            raise anyio.BrokenResourceError
        self._input += data
        self._wake_reader()

    def close_input(self) -> None:
        self._input_open = False
        self._wake_reader()

    def signal(self, number: int) -> None:
        if self.paused:
            self._pending.append(number)
            return
        self.signals.append(number)
        if number in self.traps:
            self.traps[number]()
        elif number not in self.ignores:
            self.end(128 + number)

    def resume(self) -> None:
        self.paused = False
        self._resumed.set()
        pending, self._pending = self._pending, []
        for number in pending:
            self.signal(number)

    async def wait(self) -> ExitStatus:
        await self.ended.wait()
        if self.status is None:
            raise TaskLost("the task vanished without leaving its exit status")
        return self.status

    def _finish(self) -> None:
        self.ended.set()
        self.close_input()
        for stdio in self.streams:
            stdio.finish()

    def _wake_reader(self) -> None:
        self._input_changed.set()
        self._input_changed = anyio.Event()


Program = Callable[[FakeProcess], Awaitable[int]]


class FakeStdio:
    """One client's connection."""

    def __init__(self, process: FakeProcess) -> None:
        self._process = process
        self._sender, self._receiver = anyio.create_memory_object_stream[tuple[StreamId, bytes]](float("inf"))
        self._fed = False
        self.closed = False
        process.streams.add(self)
        if process.ended.is_set():
            self.finish()

    def push(self, stream: StreamId, data: bytes) -> None:
        if data:
            self._sender.send_nowait((stream, data))

    def finish(self) -> None:
        self._sender.close()

    async def receive(self) -> tuple[StreamId, bytes]:
        return await self._receiver.receive()

    async def send(self, data: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        self._process.feed(data)
        self._fed = True

    async def send_eof(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self._process.spec.stdin_once:
            self._process.close_input()

    async def aclose(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._process.streams.discard(self)
        if self._fed and self._process.spec.stdin_once:
            self._process.close_input()
        self._sender.close()
        self._receiver.close()


@dataclass(slots=True, eq=False)
class Trace:
    """All that there is of one task, whoever looks."""

    spec: TaskSpec
    process: FakeProcess
    execs: dict[ExecId, FakeProcess] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    kills: anyio.Event = field(default_factory=anyio.Event)  # set when memory has run out
    files: dict[str, bytes] = field(default_factory=dict)  # as they are now


class World:
    """What runs on this imaginary host. ``tasks`` owns the programs; None when there are none to run."""

    def __init__(self, tasks: TaskGroup | None = None) -> None:
        self.traces: dict[ContainerId, Trace] = {}
        self.programs: dict[tuple[str, ...], Program] = {}
        self.unknown: dict[str, int] = {}  # programs that cannot be started: exit code of the failure
        self.ignores: set[int] = set()  # what new processes ignore
        self._tasks = tasks
        self._last_pid = 5_000_000  # beyond any real one

    def end(self, container_id: str, code: int = 0, *, oom_killed: bool = False) -> None:
        """Let a container's first process end."""
        self[container_id].process.end(code, oom_killed=oom_killed)

    def __getitem__(self, container_id: str) -> Trace:
        return self.traces[ContainerId(container_id)]

    def make(self, spec: ProcessSpec, log_path: Path | None) -> FakeProcess:
        self._last_pid += 1
        process = FakeProcess(spec, self._last_pid, log_path)
        process.ignores |= self.ignores
        return process

    def run(self, process: FakeProcess) -> None:
        """Begin the program. Raises StartFailed."""
        args = process.spec.args
        if args[0] in self.unknown:
            code = self.unknown[args[0]]
            raise StartFailed(f'exec: "{args[0]}": executable file not found in $PATH', exit_code=code)
        process.started = True
        program = self.programs.get(args)
        if program is None:
            return
        if self._tasks is None:
            raise AssertionError("this world has nobody to run programs")
        self._tasks.start_soon(self._run, program, process)

    async def _run(self, program: Program, process: FakeProcess) -> None:
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                await process.ended.wait()
                group.cancel_scope.cancel()

            group.start_soon(watch)
            process.end(await program(process))


class FakeExec:
    """A seam Process."""

    def __init__(self, process: FakeProcess, stdio: FakeStdio | None) -> None:
        self._process = process
        self.stdio = stdio

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> ExitStatus:
        return await self._process.wait()

    async def kill(self) -> None:
        await anyio.lowlevel.checkpoint()
        self._process.end(128 + SIGKILL)

    async def resize(self, *, rows: int, columns: int) -> None:
        self._process.size = (rows, columns) if self._process.spec.tty else None


class FakeTask:
    """A seam Task: one daemon's hand on a trace."""

    def __init__(self, world: World, trace: Trace, stage: Stage) -> None:
        self._world = world
        self._trace = trace
        self._stage = stage

    @property
    def id(self) -> ContainerId:
        return self._trace.spec.id

    @property
    def pid(self) -> int:
        return self._trace.process.pid

    async def start(self) -> None:
        await self._stage.act("task.start")
        self._world.run(self._trace.process)

    async def attach(self) -> FakeStdio:
        await self._stage.act("task.attach")
        return FakeStdio(self._trace.process)

    async def wait(self) -> ExitStatus:
        return await self._trace.process.wait()

    async def kill(self, signal: int) -> None:
        await self._stage.act("task.kill")
        self._check_running()
        self._trace.process.signal(signal)

    async def pause(self) -> None:
        await self._stage.act("task.pause")
        self._check_running()
        self._trace.process.pause()

    async def resume(self) -> None:
        await self._stage.act("task.resume")
        self._trace.process.resume()

    async def exec(self, exec_id: ExecId, spec: ProcessSpec, *, attached: bool) -> FakeExec:
        await self._stage.act("task.exec")
        self._check_running()
        process = self._world.make(spec, None)
        stdio = FakeStdio(process) if attached else None
        self._world.run(process)
        self._trace.execs[exec_id] = process
        return FakeExec(process, stdio)

    async def resize(self, *, rows: int, columns: int) -> None:
        await self._stage.act("task.resize")
        if self._trace.process.spec.tty:
            self._trace.process.size = (rows, columns)

    async def update(self, resources: Resources) -> None:
        await self._stage.act("task.update")
        if resources.blkio_weight:
            raise FeatureMissing("fake", "BlkioWeight", "there is no disk")
        self._trace.resources = resources

    async def watch_oom(self, tell: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self._trace.kills.wait()
            self._trace.kills = anyio.Event()
            await tell()

    async def edit_file(self, target: str, edit: Callable[[bytes], bytes]) -> None:
        await self._stage.act("task.edit_file")
        self._trace.files[target] = edit(self._trace.files.get(target, b""))

    async def stats(self) -> TaskStats:
        await self._stage.act("task.stats")
        self._check_running()
        return TaskStats(read_at_ns=time.time_ns(), cpu_total_ns=1, memory_usage=4096, pids=1)

    async def processes(self, ps_args: str) -> ProcessTable:
        await self._stage.act("task.processes")
        self._check_running()
        if "--bad" in ps_args:
            raise InvalidParameter("ps: unknown option --bad")
        everyone = (self._trace.process, *self._trace.execs.values())
        return ProcessTable(
            titles=("PID", "CMD"),
            rows=tuple((str(one.pid), " ".join(one.spec.args)) for one in everyone if one.is_running),
        )

    async def delete(self, *, keep_writes: bool = True) -> None:
        await self._stage.act("task.delete")
        _clear(self._world, self.id)

    def _check_running(self) -> None:
        if not self._trace.process.is_running:
            raise WrongState(f"container {self.id} is not running")


class FakeRuntime:
    """A seam Runtime on a world. Steps are told to ``stage`` as create, find, forget and task.…"""

    def __init__(
        self, world: World, stage: Stage | None = None, *, name: str = "crun", features: Features = FEATURES
    ) -> None:
        self._world = world
        self._stage = stage or Stage()
        self.name = name
        self.features = features

    async def create(self, spec: TaskSpec) -> FakeTask:
        await self._stage.act("create")
        if spec.id in self._world.traces:
            raise AssertionError(f"task {spec.id} exists: an earlier one was not deleted")
        spec.log_path.parent.mkdir(parents=True, exist_ok=True)
        process = self._world.make(spec.process, spec.log_path)
        trace = Trace(spec=spec, process=process, resources=spec.resources, files=dict(spec.files))
        self._world.traces[spec.id] = trace
        return FakeTask(self._world, trace, self._stage)

    async def find(self, container_id: ContainerId) -> FakeTask | None:
        await self._stage.act("find")
        trace = self._world.traces.get(container_id)
        return None if trace is None else FakeTask(self._world, trace, self._stage)

    async def forget(self, container_id: ContainerId) -> None:
        await self._stage.act("forget")
        _clear(self._world, container_id)


class FakeForkingRuntime(FakeRuntime):
    """One that copies what runs: the copy runs the same program from its beginning."""

    async def fork(self, source: Task, spec: TaskSpec) -> FakeTask:
        await self._stage.act("fork")
        if source.id not in self._world.traces:
            raise AssertionError(f"task {source.id} is gone")
        task = await self.create(spec)
        await task.start()
        return task

    async def save(self, source: Task, directory: Path) -> Mapping[str, Any]:  # Any: as in the seam
        await self._stage.act("save")
        for part in SAVED_PARTS:
            (directory / part).write_bytes(f"{part} of {source.id}".encode())
        return {"saved": source.id}

    async def load(
        self, directory: Path, machine: Mapping[str, Any], spec: TaskSpec
    ) -> Task:  # Any: as above
        await self._stage.act("load")
        if (directory / "mem").read_bytes() != f"mem of {machine['saved']}".encode():
            raise AssertionError("another memory than was saved")
        task = await self.create(spec)
        await task.start()
        return task


def _clear(world: World, container_id: ContainerId) -> None:
    trace = world.traces.pop(container_id, None)
    if trace is None:
        return
    for process in (trace.process, *trace.execs.values()):
        process.end(128 + SIGKILL)


def features(
    *, refused: dict[str, str] | None = None, network_modes: Collection[str] = FEATURES.network_modes
) -> Features:
    """Return the features of a fake that cannot do something."""
    return Features(
        rootfs=RootfsKind.DIRECTORY,
        network=NetworkKind.NAMESPACE,
        refused=refused or {},
        network_modes=network_modes,
        min_memory_bytes=FEATURES.min_memory_bytes,
    )

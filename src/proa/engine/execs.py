# SPDX-License-Identifier: Apache-2.0
"""Further processes inside running containers. Source: Engine API, Exec.

An exec lives as long as the daemon, as Docker's do: it is a process of a container, not a record.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import anyio
from anyio.abc import TaskGroup

from proa.engine.container import Container, State
from proa.engine.creation import event_attributes
from proa.engine.events import EventBus
from proa.engine.links import link_env, live_links
from proa.engine.registry import Registry
from proa.engine.taskspec import process_env
from proa.engine.unit import Units
from proa.model.errors import Conflict, EngineError, InvalidParameter, NoSuchExec, StartFailed, WrongState
from proa.model.ids import ContainerId, ExecId, new_id
from proa.model.task import ProcessSpec
from proa.runtime.seam import Process, Stdio, StreamId

log = logging.getLogger(__name__)

KEPT_EXECS = 1000  # ended ones whose exit code can be asked; a health check makes 86,000 a day


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecRequest:
    """What POST /containers/{id}/exec asks."""

    cmd: tuple[str, ...]
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    tty: bool = False
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    privileged: bool = False
    detach_keys: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exec:
    """An exec as inspect shows it. ``exit_code`` is None until it has ended."""

    id: ExecId
    container_id: ContainerId
    request: ExecRequest
    running: bool = False
    started: bool = False
    exit_code: int | None = None
    pid: int = 0


class Execs:
    """Makes, starts and remembers execs."""

    def __init__(self, *, registry: Registry, units: Units, events: EventBus, tasks: TaskGroup) -> None:
        self._registry = registry
        self._units = units
        self._events = events
        self._tasks = tasks
        self._execs: dict[ExecId, Exec] = {}
        self._processes: dict[ExecId, Process] = {}
        self._ended: deque[ExecId] = deque()

    async def create(self, ref: str, request: ExecRequest) -> ExecId:
        """Register an exec. Raises InvalidParameter, WrongState when the container cannot run one."""
        container = self._registry.get(ref)
        self._check_state(container)
        if not request.cmd or not request.cmd[0]:
            raise InvalidParameter("No exec command specified")
        if request.working_dir and not request.working_dir.startswith("/"):
            raise InvalidParameter(f"Cwd must be an absolute path: {request.working_dir}")
        exec_id = ExecId(new_id())
        self._execs[exec_id] = Exec(id=exec_id, container_id=container.id, request=request)
        self._publish(container, f"exec_create: {' '.join(request.cmd)}", exec_id)
        return exec_id

    def get(self, exec_id: str) -> Exec:
        """Return an exec by its id. Raises NoSuchExec."""
        found = self._execs.get(ExecId(exec_id))
        if found is None:
            raise NoSuchExec(exec_id)
        return found

    def ids_of(self, container_id: ContainerId) -> list[ExecId]:
        """Return the running execs of a container, as inspect lists them."""
        return [one.id for one in self._execs.values() if one.container_id == container_id and one.running]

    def check_startable(self, exec_id: str) -> Exec:
        """Return an exec that ``start`` would start now. Raises NoSuchExec, Conflict."""
        one = self.get(exec_id)
        if one.running:
            raise Conflict(f"exec command {exec_id} is already running")
        if one.started:
            raise Conflict(f"exec command {exec_id} has already run")
        self._check_state(self._registry.get(one.container_id))
        return one

    async def start(
        self,
        exec_id: str,
        *,
        detach: bool = False,
        tty: bool | None = None,
        console_size: tuple[int, int] | None = None,
    ) -> Stdio | None:
        """Start it and return its streams, connected before its first output; None when detached.

        Raises StartFailed, WrongState, Conflict when it was started before.
        """
        one = self.check_startable(exec_id)
        container = self._registry.get(one.container_id)
        task = self._units[container.id].task
        if task is None:
            raise WrongState(f"container {container.id} is not running")
        spec = self._process_spec(container, one.request, tty, console_size)
        self._change(one.id, started=True, running=True)
        self._publish(container, f"exec_start: {' '.join(one.request.cmd)}", one.id)
        try:
            with anyio.CancelScope(shield=True):
                process = await task.exec(one.id, spec, attached=not detach)
        except (EngineError, OSError) as error:
            self._settle(one.id, _code_of(error))
            raise
        self._processes[one.id] = process
        self._change(one.id, pid=process.pid)
        ended = anyio.Event()
        self._tasks.start_soon(self._supervise, one.id, process, ended, name=f"exec {one.id[:12]}")
        return None if process.stdio is None else _ExecStdio(process.stdio, ended)

    def tell_detached(self, exec_id: str) -> None:
        """Publish that a client has left an exec by its detach keys."""
        one = self._execs.get(ExecId(exec_id))
        container = None if one is None else self._registry.find(one.container_id)
        if container is not None:
            self._publish(container, "exec_detach", exec_id)

    async def resize(self, exec_id: str, rows: int, columns: int) -> None:
        """Set the size of its terminal. Raises WrongState when it does not run."""
        one = self.get(exec_id)
        process = self._processes.get(one.id)
        if process is None:
            raise WrongState(f"cannot resize exec {exec_id}: it is not running")
        await process.resize(rows=rows, columns=columns)

    async def kill(self, exec_id: ExecId) -> None:
        """Kill it, if it runs, with all that it started, and wait until it has ended."""
        process = self._processes.get(exec_id)
        if process is not None:
            await process.kill()
            await process.wait()

    def forget_container(self, container_id: ContainerId) -> None:
        """Drop the execs of a container that has been removed."""
        for one in [one for one in self._execs.values() if one.container_id == container_id]:
            del self._execs[one.id]

    async def _supervise(self, exec_id: ExecId, process: Process, ended: anyio.Event) -> None:
        try:
            await self._watch(exec_id, process)
        finally:
            ended.set()

    async def _watch(self, exec_id: ExecId, process: Process) -> None:
        try:
            status = await process.wait()
            code = status.code
        except EngineError as error:
            log.warning("exec %s: %s", exec_id, error)
            code = 137
        except Exception:  # service loop: one exec's trouble must not end the daemon
            log.exception("watching exec %s", exec_id)
            code = 137
        self._processes.pop(exec_id, None)
        one = self._settle(exec_id, code)
        container = self._registry.find(one.container_id) if one is not None else None
        if container is not None:
            self._publish(container, "exec_die", exec_id, exitCode=str(code))

    def _settle(self, exec_id: ExecId, code: int) -> Exec | None:
        """Record the end of an exec, and forget the oldest ended ones when there are many."""
        one = self._change(exec_id, running=False, exit_code=code)
        self._ended.append(exec_id)
        while len(self._ended) > KEPT_EXECS:
            self._execs.pop(self._ended.popleft(), None)
        return one

    def _change(self, exec_id: ExecId, **changes: Any) -> Exec | None:  # Any: fields of Exec
        """Change what is known of an exec; None when its container has been removed meanwhile."""
        if exec_id not in self._execs:
            return None
        self._execs[exec_id] = changed = replace(self._execs[exec_id], **changes)
        return changed

    def _process_spec(
        self,
        container: Container,
        request: ExecRequest,
        tty: bool | None,
        console_size: tuple[int, int] | None,
    ) -> ProcessSpec:
        linked = link_env(live_links(container, self._registry), container.name) if container.links else ()
        del tty  # Docker takes the terminal from the create request; the start's word only shapes the stream
        return ProcessSpec(
            args=request.cmd,
            env=_merge(process_env(container, tty=request.tty, linked=linked), request.env),
            cwd=request.working_dir or container.config.working_dir or "/",
            user=request.user or container.config.user,
            group_add=tuple(container.host_config.group_add or ()),
            tty=request.tty,
            open_stdin=request.attach_stdin,
            stdin_once=True,
            console_size=console_size,
            privileged=request.privileged or container.host_config.privileged,
        )

    def _check_state(self, container: Container) -> None:
        if container.state is State.PAUSED:
            raise Conflict(f"container {container.id} is paused, unpause the container before exec")
        if container.state is State.RESTARTING:
            raise Conflict(f"Container {container.id} is restarting, wait until the container is running")
        if not container.is_alive:
            raise Conflict(f"container {container.id} is not running")

    def _publish(self, container: Container, action: str, exec_id: str, **extra: str) -> None:
        attributes = {**event_attributes(container), "execID": exec_id, **extra}
        self._events.publish("container", action, container.id, attributes)


class _ExecStdio:
    """The streams of an exec, whose end is told only when its exit status is known.

    ``docker exec`` asks for the status as soon as its stream ends.
    """

    def __init__(self, inner: Stdio, ended: anyio.Event) -> None:
        self._inner = inner
        self._ended = ended
        self.send = inner.send
        self.send_eof = inner.send_eof
        self.aclose = inner.aclose

    async def receive(self) -> tuple[StreamId, bytes]:
        try:
            return await self._inner.receive()
        except anyio.EndOfStream:
            await self._ended.wait()
            raise


def _code_of(error: Exception) -> int:
    """The exit code of an exec that could not be started: 127 when something was not found, else 126."""
    return 127 if isinstance(error, StartFailed) and error.exit_code == 127 else 126


def _merge(env: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    names = {entry.partition("=")[0] for entry in more}
    return (*(entry for entry in env if entry.partition("=")[0] not in names), *more)

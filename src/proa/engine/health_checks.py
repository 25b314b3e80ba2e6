# SPDX-License-Identifier: Apache-2.0
"""Runs the health checks of containers, and does what they ask for when they are not well.

A check is an exec, so it runs in either hull and its events are those of an exec. The state is part of the
container's record: a daemon that is started anew goes on where the one before it was.

Source: Engine API, ContainerState.Health; podman-run(1), --health-on-failure; the texts are the Docker
Engine's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import anyio
from anyio.abc import TaskGroup

from proa.engine.container import Container, HealthResult, State
from proa.engine.creation import event_attributes
from proa.engine.events import EventBus
from proa.engine.execs import ExecRequest, Execs
from proa.engine.health import UNHEALTHY, Plan, find_action, find_plan, judge
from proa.engine.registry import Registry
from proa.engine.unit import Unit
from proa.model.errors import EngineError
from proa.runtime.seam import Stdio

log = logging.getLogger(__name__)

OUTPUT_MAX_BYTES = 4096
TIMED_OUT = -1  # the exit code of a check that did not end, or could not be run
KILLED_CHECK_S = 2.0  # for a killed check to be gone


class HealthChecks:
    """Runs the checks. ``tasks`` owns what is done about unhealthy containers.

    :ivar stop: what stops a container, and ``restart``, by its id; given by the engine.
    """

    def __init__(self, *, registry: Registry, execs: Execs, events: EventBus, tasks: TaskGroup) -> None:
        self._registry = registry
        self._execs = execs
        self._events = events
        self._tasks = tasks
        self.stop: Callable[[str], Awaitable[None]] | None = None
        self.restart: Callable[[str], Awaitable[None]] | None = None

    async def watch(self, unit: Unit) -> None:
        """Check a running container again and again until cancelled; return at once when it has no check."""
        container = self._registry.find(unit.id)
        plan = find_plan(container.config) if container is not None else None
        while plan is not None and container is not None and container.health is not None:
            ran_s = (time.time_ns() - container.started_at_ns) / 1e9
            await anyio.sleep(plan.delay_s(container.health, ran_s))
            container = self._registry.find(unit.id)
            if container is not None and container.state is State.RUNNING:
                result = await self._probe(container, plan)
                container = await self._record(unit, plan, result)

    async def _probe(self, container: Container, plan: Plan) -> HealthResult:
        start_ns = time.time_ns()
        output = bytearray()
        try:
            code = await self._run(container, plan, output)
        except (EngineError, OSError) as error:
            code, output = TIMED_OUT, bytearray(str(error).encode())
        text = output[:OUTPUT_MAX_BYTES].decode(errors="replace")
        if len(output) > OUTPUT_MAX_BYTES:
            text += "..."
        return HealthResult(start_ns=start_ns, end_ns=time.time_ns(), exit_code=code, output=text)

    async def _run(self, container: Container, plan: Plan, output: bytearray) -> int:
        request = ExecRequest(cmd=plan.args, attach_stdout=True, attach_stderr=True)
        exec_id = await self._execs.create(container.id, request)
        with anyio.move_on_after(plan.timeout_s) as scope:
            stdio = await self._execs.start(exec_id)
            if stdio is not None:
                await _read(stdio, output)
        if not scope.cancelled_caught:
            code = self._execs.get(exec_id).exit_code
            return TIMED_OUT if code is None else code
        with anyio.CancelScope(shield=True), anyio.move_on_after(KILLED_CHECK_S):
            await self._execs.kill(exec_id)
        said = bytes(output)
        output[:] = f"Health check exceeded timeout ({_duration(plan.timeout_s)})".encode()
        if said:
            output += b": " + said
        return TIMED_OUT

    async def _record(self, unit: Unit, plan: Plan, result: HealthResult) -> Container | None:
        async with unit.lock:
            container = self._registry.find(unit.id)
            if container is None or container.health is None or not container.is_alive:
                return None
            health = judge(container.health, result, plan, started_at_ns=container.started_at_ns)
            changed = health.status != container.health.status
            container = replace(container, health=health)
            self._registry.put(container)
        if changed:
            action = f"health_status: {health.status}"
            self._events.publish("container", action, container.id, event_attributes(container))
            if health.status == UNHEALTHY:
                self._tasks.start_soon(self._act, unit, container, name=f"unhealthy {unit.id[:12]}")
        return container

    async def _act(self, unit: Unit, container: Container) -> None:
        """Do what the container asks for when it is unhealthy.

        ``kill`` is an end like any other, so that a restart policy applies; after ``stop`` none does.
        """
        action = find_action(container.config, container.host_config)
        if action != "none":
            log.warning("container %s is unhealthy: %s", container.id, action)
        try:
            if action == "kill":
                async with unit.lock:
                    if unit.task is not None:
                        await unit.task.kill(9)
            elif action == "stop" and self.stop is not None:
                await self.stop(container.id)
            elif action == "restart" and self.restart is not None:
                await self.restart(container.id)
        except (EngineError, OSError) as error:
            log.warning("container %s is unhealthy, but %s failed: %s", container.id, action, error)


async def _read(stdio: Stdio, output: bytearray) -> None:
    """Read to the end, and keep what fits and one byte more."""
    try:
        while True:
            _, data = await stdio.receive()
            output += data[: max(0, OUTPUT_MAX_BYTES + 1 - len(output))]
    except anyio.EndOfStream:
        return
    finally:
        with anyio.CancelScope(shield=True):
            await stdio.aclose()


def _duration(seconds: float) -> str:
    """Write a span as Go does in most cases: 1m30s, 2s, 500ms."""
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes:g}m{rest:g}s" if minutes else f"{rest:g}s"

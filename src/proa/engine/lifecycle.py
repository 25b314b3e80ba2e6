# SPDX-License-Identifier: Apache-2.0
"""Start, stop and everything between: the changes of a container's state, and the task behind each.

A record is stored before its change is told to anyone. A running task is watched by ``_supervise``, the one
place where a container's end is handled, whoever or whatever ended it. The unit's lock is held for every
change and never while waiting for a process to end.

Source: Engine API, ContainerStart, ContainerStop, ContainerRestart, ContainerKill, ContainerPause.
"""

from __future__ import annotations

import logging
import signal as signals
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from proa.engine.container import Container, State, check_transition
from proa.engine.creation import event_attributes
from proa.engine.events import EventBus
from proa.engine.health import at_end, at_start
from proa.engine.health_checks import HealthChecks
from proa.engine.launcher import Launched, Launcher
from proa.engine.log_files import LogKeeper, begin
from proa.engine.log_options import parse_log_config
from proa.engine.log_shipping import LogShipping
from proa.engine.registry import Registry
from proa.engine.restarts import count_short_runs, restart_delay_s, wants_restart
from proa.engine.signals import parse_signal
from proa.engine.unit import Unit, Units, WaitResult
from proa.model.errors import EngineError, NotModified, StartFailed, TaskLost, Unavailable, WrongState
from proa.model.task import ExitStatus
from proa.runtime.seam import Task

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 10  # docker stop's default
KILL_TIMEOUT_S = 30  # after SIGKILL a process can only hang in the kernel
LOST_EXIT_CODE = 137  # of a task that vanished: as if killed
REBOOT_EXIT_CODE = 255  # of one that is no longer there when the daemon starts


class Lifecycle:
    """Changes states. One for the whole engine; ``on_auto_remove`` is called for ``--rm`` containers."""

    def __init__(
        self,
        *,
        registry: Registry,
        units: Units,
        launcher: Launcher,
        events: EventBus,
        tasks: TaskGroup,
        health: HealthChecks,
        logs: LogKeeper,
        shipping: LogShipping,
    ) -> None:
        self._registry = registry
        self._units = units
        self._launcher = launcher
        self._events = events
        self._tasks = tasks
        self._health = health
        self._logs = logs
        self._shipping = shipping
        self.on_auto_remove: Callable[[Container], Awaitable[None]] | None = None

    # --- what users ask ---

    async def start(self, ref: str) -> None:
        """Start a container that does not run. Raises NotModified when it does.

        A ``--rm`` container that cannot be started is removed: its client waits for that.
        """
        unit = self._units[self._registry.get(ref).id]
        try:
            async with unit.lock:
                with self._units.checked(unit):
                    await self._start(unit)
        except (EngineError, OSError):
            failed = self._registry.find(unit.id)
            if failed is not None and failed.error and not failed.is_alive:
                await self._remove_if_asked(unit)
            raise

    async def _start(self, unit: Unit) -> None:
        container = self._registry.get(unit.id)
        if container.state is State.RUNNING:
            raise NotModified(f"container {container.id} is already running")
        if container.state is State.PAUSED:
            raise WrongState("cannot start a paused container, try unpause instead")
        check_transition(container, State.RUNNING)
        self._cancel_backoff(unit)
        await self._launch(unit, replace(container, restart_count=0, stopped_by_user=False))

    async def _remove_if_asked(self, unit: Unit) -> None:
        container = self._registry.find(unit.id)
        if container is not None and container.host_config.auto_remove and self.on_auto_remove is not None:
            with anyio.CancelScope(shield=True):
                await self.on_auto_remove(container)

    async def stop(self, ref: str, *, signal: str | None = None, timeout_s: int | None = None) -> None:
        """End a container: its stop signal, then SIGKILL after the time-out. -1 waits for ever.

        Raises NotModified when it does not run.
        """
        container = self._registry.get(ref)
        unit = self._units[container.id]
        number = parse_signal(signal or container.config.stop_signal or "SIGTERM")
        if container.state is State.RESTARTING:
            container = await self._abandon_restart(unit)
            if not container.is_alive:
                return
        if not container.is_alive:
            raise NotModified(f"container {container.id} is already stopped")
        await self._end(unit, number, self._timeout(container, timeout_s))
        self._publish("stop", self._registry.find(unit.id))

    async def restart(self, ref: str, *, signal: str | None = None, timeout_s: int | None = None) -> None:
        """Stop, if it runs, and start again."""
        container = self._registry.get(ref)
        unit = self._units[container.id]
        number = parse_signal(signal or container.config.stop_signal or "SIGTERM")
        with unit.held():  # an end on the way to a new start is no reason for --rm to remove it
            if container.state is State.RESTARTING:
                container = await self._abandon_restart(unit)
            if container.is_alive:
                await self._end(unit, number, self._timeout(container, timeout_s))
                self._publish("stop", self._registry.find(unit.id))
            await self.start(unit.id)
        self._publish("restart", self._registry.find(unit.id))

    async def kill(self, ref: str, signal: str = "SIGKILL") -> None:
        """Send a signal. Raises WrongState when the container does not run.

        A restart's delay is called off by a signal that would stop the container; others do nothing then.
        """
        container = self._registry.get(ref)
        number = parse_signal(signal or "SIGKILL")
        unit = self._units[container.id]
        ends = number in (signals.SIGKILL, parse_signal(container.config.stop_signal or "SIGTERM"))
        if container.state is State.RESTARTING:
            container = await self._abandon_restart(unit) if ends else self._registry.get(unit.id)
            if not container.is_alive:
                return
        async with unit.lock:
            container = self._registry.get(unit.id)
            if not container.is_alive or unit.task is None:
                raise WrongState(f"cannot kill container: {ref}: container {container.id} is not running")
            if ends:
                self._mark_stopped(unit, container)
            await self._signal(unit, unit.task, number)
            if container.state is State.PAUSED and number == signals.SIGKILL:
                await unit.task.resume()
        if number == signals.SIGKILL:
            await self._wait_until_ended(unit, KILL_TIMEOUT_S)

    async def pause(self, ref: str, *, passing: bool = False) -> None:
        """Freeze; ``passing``: until the engine thaws it itself, at the next start if need be.

        Raises WrongState.
        """
        unit = self._units[self._registry.get(ref).id]
        async with unit.lock:
            container = self._registry.get(unit.id)
            if container.state is State.PAUSED:
                raise WrongState(f"container {container.id} is already paused")
            if container.state is not State.RUNNING or unit.task is None:
                raise WrongState(f"container {container.id} is not running")
            # Recorded first: a frozen task that nobody takes for one could not be ended after our death.
            self._registry.put(replace(container, state=State.PAUSED, passing_pause=passing))
            try:
                with anyio.CancelScope(shield=True):
                    await unit.task.pause()
            except (EngineError, OSError):
                self._registry.put(container)
                raise
            self._publish("pause", container)

    async def unpause(self, ref: str) -> None:
        """Undo ``pause``. Raises WrongState."""
        unit = self._units[self._registry.get(ref).id]
        async with unit.lock:
            container = self._registry.get(unit.id)
            if container.state is not State.PAUSED or unit.task is None:
                raise WrongState(f"container {container.id} is not paused")
            await unit.task.resume()
            self._registry.put(replace(container, state=State.RUNNING, passing_pause=False))
            self._publish("unpause", container)

    async def end_for_removal(self, unit: Unit) -> None:
        """Kill what runs, without a grace period, and wait for its end."""
        if unit.task is not None:
            await self._end(unit, signals.SIGKILL, 0)
            return
        container = await self._abandon_restart(unit)
        if container.is_alive and unit.task is None:  # restore could not find out what became of it
            await self.lose(container, None)

    async def begin(
        self, unit: Unit, container: Container, launch: Callable[[Unit, Container], Awaitable[Launched]]
    ) -> None:
        """Begin a container by other means than the start of its program; as ``start`` in all else.

        Called with the lock.
        """
        await self._launch(unit, container, launch)

    # --- restore after a daemon's death ---

    def adopt(self, unit: Unit, task: Task) -> None:
        """Watch a task that an earlier daemon started."""
        unit.task = task
        container = self._registry.get(unit.id)
        policy = parse_log_config(container.host_config.log_config)
        try:
            self._logs.watch(Path(container.log_path), policy)
        except OSError as error:
            log.warning("keeping the log of container %s: %s", unit.id, error)
        self._tasks.start_soon(self._supervise, unit, task, name=f"supervise {unit.id[:12]}")

    async def lose(self, container: Container, task: Task | None) -> None:
        """Take down what an earlier daemon left of a container that no longer runs, or never began to.

        :param task: what is left of its task; None when there is no trace of one.
        """
        async with self._units[container.id].lock:
            lost = replace(container, launching=False, ending=True, pid=0, endpoints=(), ports=())
            if container.is_alive:
                lost = replace(
                    lost,
                    health=at_end(lost.health),
                    state=State.EXITED,
                    exit_code=REBOOT_EXIT_CODE,
                    finished_at_ns=time.time_ns(),
                )
            self._registry.put(lost)
            await self._launcher.take_down(container, task)
            self._registry.put(replace(lost, ending=False))

    def resume_restart(self, container: Container) -> None:
        """Go on with a restart whose delay an earlier daemon did not live to see the end of."""
        unit = self._units[container.id]
        self._tasks.start_soon(self._restart_later, unit, container, name=f"restart {unit.id[:12]}")

    # --- machinery ---

    async def _launch(
        self,
        unit: Unit,
        container: Container,
        launch: Callable[[Unit, Container], Awaitable[Launched]] | None = None,
    ) -> None:
        """Start the task of a container and begin to watch it. Called with the lock."""
        self._registry.put(replace(container, launching=True))
        # A client that hangs up must not leave half a container: the start is finished or undone.
        with anyio.CancelScope(shield=True):
            try:
                await self._shipping.check(container)
                self._keep_log(container)
                launched = await (launch or self._launcher.launch)(unit, container)
            except (EngineError, OSError) as error:
                unit.drop_pending()
                self._logs.unwatch(Path(container.log_path))
                self._record_failure(container, error)
                raise
            await self._connect_late(unit, launched.task)
            unit.task = launched.task
            unit.stop_requested = False
            running = replace(
                container,
                state=State.RUNNING,
                launching=False,
                forking=False,
                pid=launched.task.pid,
                exit_code=0,
                oom_killed=False,
                error="",
                health=at_start(container.config),
                started_at_ns=time.time_ns(),
                finished_at_ns=0,
                endpoints=launched.endpoints,
                ports=launched.ports,
            )
            self._registry.put(running)
            await self._tell_linking(running)
        self._shipping.watch(running)
        for endpoint in launched.endpoints:
            self._publish_network("connect", endpoint.network_id, running)
        self._publish_volumes("mount", running)
        self._publish("start", running)
        self._tasks.start_soon(self._supervise, unit, launched.task, name=f"supervise {unit.id[:12]}")

    async def _tell_linking(self, peer: Container) -> None:
        """Tell the containers that link to one where it is now.

        They are younger than it: locks are taken from the older to the younger.
        """
        for linking in self._registry.linking_to(peer.id):
            unit = self._units[linking.id]
            async with unit.lock:
                container = self._registry.find(linking.id)
                if container is None or unit.task is None:
                    continue
                try:
                    await self._launcher.tell_of_peer(unit.task, container, peer)
                except (EngineError, OSError) as error:
                    log.warning("hosts file of container %s: %s", linking.id, error)

    def _keep_log(self, container: Container) -> None:
        policy = parse_log_config(container.host_config.log_config)
        if container.host_config.log_config.type != "none":
            begin(Path(container.log_path), policy)
            self._logs.watch(Path(container.log_path), policy)

    async def _connect_late(self, unit: Unit, task: Task) -> None:
        """Connect the clients that attached while the task was being started."""
        try:
            await unit.bind_pending(task.attach)
        except (EngineError, OSError) as error:  # it may have ended already
            log.warning("attaching to container %s: %s", unit.id, error)
            unit.drop_pending()

    def _record_failure(self, container: Container, error: Exception) -> None:
        code = error.exit_code if isinstance(error, StartFailed) else 128
        failed = replace(container, launching=False, exit_code=code, error=str(error))
        if container.state is State.RESTARTING:
            failed = replace(failed, state=State.EXITED, finished_at_ns=time.time_ns())
        self._registry.put(failed)

    async def _supervise(self, unit: Unit, task: Task) -> None:
        """Wait for a task's end and handle it: record, tell, take down, then restart or remove."""
        try:
            status, error = await self._wait(unit, task)
            with anyio.CancelScope(shield=True):
                container, again = await self._handle_end(unit, task, status, error)
            if again:
                await self._restart_later(unit, container)
            elif not unit.holds:
                await self._remove_if_asked(unit)
        except Exception:  # service loop: one container's trouble must not end the daemon
            log.exception("watching container %s", unit.id)

    async def _wait(self, unit: Unit, task: Task) -> tuple[ExitStatus, str]:
        """Wait for a task's end, and look after its health and memory until then.

        Return also why it was lost.
        """
        error = ""
        async with anyio.create_task_group() as group:
            group.start_soon(self._health.watch, unit)
            group.start_soon(self._watch_oom, unit, task)
            try:
                status = await task.wait()
            except TaskLost as lost:
                error = str(lost)
                status = ExitStatus(code=LOST_EXIT_CODE, finished_at_ns=time.time_ns())
            group.cancel_scope.cancel()
        return status, error

    async def _watch_oom(self, unit: Unit, task: Task) -> None:
        """Record and tell at once that processes were killed: the container may go on without them."""

        async def tell() -> None:
            async with unit.lock:
                container = self._registry.find(unit.id)
                if container is None or unit.task is not task:
                    return
                if not container.oom_killed:
                    container = replace(container, oom_killed=True)
                    self._registry.put(container)
                self._publish("oom", container)

        try:
            await task.watch_oom(tell)
        except OSError as error:  # it is told at the end, then
            log.debug("watching the memory of container %s: %s", unit.id, error)

    async def _handle_end(
        self, unit: Unit, task: Task, status: ExitStatus, error: str
    ) -> tuple[Container, bool]:
        async with unit.lock:
            container = self._registry.get(unit.id)
            again = not unit.stop_requested and wants_restart(container, status)
            ended = replace(
                container,
                state=State.RESTARTING if again else State.EXITED,
                pid=0,
                exit_code=status.code,
                oom_killed=status.oom_killed or container.oom_killed,
                ending=True,
                error=error,
                finished_at_ns=status.finished_at_ns,
                health=at_end(container.health),
                short_runs=count_short_runs(container, status.finished_at_ns) if again else 0,
                stopped_by_user=unit.stop_requested,
                endpoints=(),
                ports=(),
            )
            self._registry.put(ended)
            if status.oom_killed and not container.oom_killed:
                self._publish("oom", ended)
            ran_s = max(status.finished_at_ns - container.started_at_ns, 0) // 1_000_000_000
            self._publish("die", ended, exitCode=str(status.code), execDuration=str(ran_s))
            # Clients are told now: they wait for the exit, not for our cleaning up.
            unit.announce_exit(WaitResult(code=status.code, error=error or None), final=not again)
            unit.task = None
            self._logs.unwatch(Path(container.log_path))
            await self._launcher.take_down(container, task)
            ended = replace(ended, ending=False)
            self._registry.put(ended)
            for endpoint in container.endpoints:
                self._publish_network("disconnect", endpoint.network_id, ended)
            self._publish_volumes("unmount", ended)
            return ended, again

    async def _restart_later(self, unit: Unit, container: Container) -> None:
        with anyio.CancelScope() as scope:
            unit.backoff = scope
            await anyio.sleep(restart_delay_s(container))
        unit.backoff = None
        if scope.cancelled_caught:
            return
        async with unit.lock:
            current = self._registry.find(unit.id)
            if current is None or current.state is not State.RESTARTING:
                return
            if current.host_config.restart_policy.name in ("", "no"):  # docker update, meanwhile
                self._registry.put(replace(current, state=State.EXITED))
                unit.announce_exit(WaitResult(code=current.exit_code), final=True)
                return
            try:
                await self._launch(unit, replace(current, restart_count=current.restart_count + 1))
            except (EngineError, OSError) as error:
                log.warning("restarting container %s: %s", unit.id, error)
                unit.announce_exit(WaitResult(code=128, error=str(error)), final=True)

    async def _end(self, unit: Unit, number: int, timeout_s: float | None) -> None:
        """Signal, wait, SIGKILL, wait. Returns when the end has been handled."""
        async with unit.lock:
            container = self._registry.get(unit.id)
            task = unit.task
            if task is None:
                if container.is_alive:
                    raise Unavailable(f"container {unit.id} could not be found when the daemon started")
                return
            self._mark_stopped(unit, container)
            await self._signal(unit, task, number)
            if container.state is State.PAUSED:
                await task.resume()
        if await self._wait_until_ended(unit, timeout_s if number != signals.SIGKILL else KILL_TIMEOUT_S):
            return
        async with unit.lock:
            if unit.task is task:
                await self._signal(unit, task, signals.SIGKILL)
        if not await self._wait_until_ended(unit, KILL_TIMEOUT_S):
            raise Unavailable(f"container {unit.id} did not end within {KILL_TIMEOUT_S} s of SIGKILL")

    async def _wait_until_ended(self, unit: Unit, timeout_s: float | None) -> bool:
        with anyio.move_on_after(timeout_s):
            with unit.waiting(unit.exit_waiters) as waiter:
                if unit.task is not None:
                    await waiter()
            async with unit.lock:  # held until all is taken down
                return True
        return unit.task is None

    async def _signal(self, unit: Unit, task: Task, number: int) -> None:
        try:
            await task.kill(number)
        except WrongState:
            return  # it ended by itself just now
        self._publish("kill", self._registry.find(unit.id), signal=str(number))

    def _mark_stopped(self, unit: Unit, container: Container) -> None:
        unit.stop_requested = True
        self._registry.put(replace(container, stopped_by_user=True))

    async def _abandon_restart(self, unit: Unit) -> Container:
        """Call off a restart that has not begun; return the record, which may be alive if it had."""
        self._cancel_backoff(unit)
        async with unit.lock:
            container = self._registry.get(unit.id)
            if container.state is State.RESTARTING:
                container = replace(container, state=State.EXITED, stopped_by_user=True)
                self._registry.put(container)
                unit.announce_exit(WaitResult(code=container.exit_code), final=True)
            return container

    def _cancel_backoff(self, unit: Unit) -> None:
        if unit.backoff is not None:
            unit.backoff.cancel()

    def _timeout(self, container: Container, asked: int | None) -> float | None:
        timeout = asked if asked is not None else container.config.stop_timeout
        if timeout is None:
            return STOP_TIMEOUT_S
        return None if timeout < 0 else timeout

    def _publish(self, action: str, container: Container | None, **extra: str) -> None:
        if container is not None:
            self._events.publish("container", action, container.id, {**event_attributes(container), **extra})

    def _publish_volumes(self, action: str, container: Container) -> None:
        for point in container.mounts:
            if point.type == "volume":
                attributes = {"container": container.id, "driver": point.driver}
                if action == "mount":
                    attributes |= {"destination": point.destination, "propagation": point.propagation}
                    attributes["read/write"] = str(point.rw).lower()
                self._events.publish("volume", action, point.name, attributes)

    def _publish_network(self, action: str, network_id: str, container: Container) -> None:
        name = next(
            (name for name, settings in container.networking.items() if settings.network_id == network_id), ""
        )
        self._events.publish(
            "network", action, network_id, {"container": container.id, "name": name, "type": "bridge"}
        )

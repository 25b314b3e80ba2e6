# SPDX-License-Identifier: Apache-2.0
"""All that the API asks of containers, in one place; the work is done by the modules it names.

creation makes records · lifecycle changes states · launcher runs tasks · removal takes away ·
queries answer · updates change · logs read.

Source: Engine API, Container.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio

from proa.engine.container import Container, State
from proa.engine.creation import Created, CreateRequest, Creation, event_attributes
from proa.engine.events import EventBus
from proa.engine.execs import Execs
from proa.engine.filters import Filters
from proa.engine.lifecycle import Lifecycle
from proa.engine.links import shown_aliases, shown_links
from proa.engine.log_options import log_attributes
from proa.engine.log_tail import end_of
from proa.engine.logs import LogQuery, LogRecord, read_log
from proa.engine.queries import Queries
from proa.engine.registry import Registry
from proa.engine.removal import Removal
from proa.engine.unit import Units, Waiter, WaitResult
from proa.engine.updates import UpdateRequest, Updates
from proa.model.config import ContainerConfig, HostConfig, NetworkingConfig
from proa.model.errors import InvalidParameter, NotImplementedHere, WrongState
from proa.model.task import ProcessTable, TaskStats
from proa.runtime.seam import Stdio, StreamId

_WAIT_CONDITIONS = ("", "not-running", "next-exit", "removed")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachQuery:
    """What POST /containers/{id}/attach asks. Detach keys are the API's matter."""

    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    logs: bool = False
    stream: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Containers:
    """The container use cases. ``ref`` is a name, an id or a unique id prefix; NoSuchContainer otherwise."""

    registry: Registry
    units: Units
    creation: Creation
    lifecycle: Lifecycle
    removal: Removal
    queries: Queries
    updates: Updates
    execs: Execs
    events: EventBus

    def get(self, ref: str) -> Container:
        """Return the record."""
        return self.registry.get(ref)

    async def create(
        self,
        name: str | None,
        config: ContainerConfig,
        host_config: HostConfig,
        networking: NetworkingConfig,
        platform: str = "",
    ) -> Created:
        """Make a container. See Creation.create for what is raised."""
        return await self.creation.create(
            CreateRequest(
                name=name or None, config=config, host=host_config, networking=networking, platform=platform
            )
        )

    async def list(
        self, *, all: bool, limit: int, filters: Filters, size: bool = False
    ) -> Sequence[Container]:
        """Return the containers that fit, newest first."""
        return self.queries.list(all_=all, limit=limit, filters=filters)

    def links(self, container: Container) -> Sequence[str]:
        """Return its links on the default bridge as inspect shows them."""
        return shown_links(container, self.registry)

    def aliases(self, container: Container) -> Sequence[str]:
        """Return the names that links of others gave it."""
        return shown_aliases(container, self.registry)

    async def sizes(self, container: Container) -> tuple[int, int]:
        """Return SizeRw and SizeRootFs in bytes."""
        return await self.queries.sizes(container)

    async def start(self, ref: str) -> None:
        await self.lifecycle.start(ref)

    async def stop(self, ref: str, *, signal: str | None = None, timeout_s: int | None = None) -> None:
        await self.lifecycle.stop(ref, signal=signal, timeout_s=timeout_s)

    async def restart(self, ref: str, *, signal: str | None = None, timeout_s: int | None = None) -> None:
        await self.lifecycle.restart(ref, signal=signal, timeout_s=timeout_s)

    async def kill(self, ref: str, signal: str = "SIGKILL") -> None:
        await self.lifecycle.kill(ref, signal)

    async def pause(self, ref: str) -> None:
        await self.lifecycle.pause(ref)

    async def unpause(self, ref: str) -> None:
        await self.lifecycle.unpause(ref)

    async def rename(self, ref: str, name: str) -> None:
        await self.updates.rename(ref, name)

    async def update(self, ref: str, request: UpdateRequest) -> Sequence[str]:
        return await self.updates.update(ref, request)

    async def remove(self, ref: str, *, force: bool, volumes: bool, link: bool = False) -> None:
        if link:
            await self.removal.remove_link(ref)
            return
        await self.removal.remove(ref, force=force, volumes=volumes)

    async def prune(self, filters: Filters) -> tuple[Sequence[str], int]:
        return await self.removal.prune(filters)

    async def top(self, ref: str, ps_args: str) -> ProcessTable:
        table = await self.queries.top(ref, ps_args)
        self._publish("top", self.registry.get(ref))
        return table

    async def stats(self, ref: str) -> TaskStats | None:
        return await self.queries.stats(ref)

    @asynccontextmanager
    async def waiter(self, ref: str, condition: str) -> AsyncIterator[Waiter]:
        """Register a wait: it counts from here on, so the answer's header may be sent before it ends.

        Raises InvalidParameter for a condition other than not-running, next-exit and removed.
        """
        if condition not in _WAIT_CONDITIONS:
            raise InvalidParameter(f'invalid condition: "{condition}"')
        container = self.registry.get(ref)
        unit = self.units[container.id]
        waiters = {
            "next-exit": unit.exit_waiters,
            "removed": unit.removal_waiters,
        }.get(condition, unit.stop_waiters)
        with unit.waiting(waiters) as waiter:
            if waiters is unit.stop_waiters and not (
                container.is_alive or container.state is State.RESTARTING
            ):
                waiter.finish(WaitResult(code=container.exit_code, error=container.error or None))
            yield waiter

    async def logs(self, ref: str, query: LogQuery) -> AsyncIterator[LogRecord]:
        """Yield the log. Raises InvalidParameter, NotImplementedHere when the container keeps none."""
        container = self.registry.get(ref)
        if not query.stdout and not query.stderr:
            raise InvalidParameter("Bad parameters: you must choose at least one stream")
        if container.host_config.log_config.type == "none":
            raise NotImplementedHere("configured logging driver does not support reading")
        if query.details:
            words = (f"{key}={value}" for key, value in sorted(log_attributes(container).items()))
            query = replace(query, prefix=",".join(words).encode() + b" ")
        end = end_of(self.registry, self.units[container.id])
        async for record in read_log(Path(container.log_path), query, end):
            yield record

    async def attach(self, ref: str, query: AttachQuery) -> Stdio:
        """Connect to the streams; before the start too, and then nothing of the output is missed."""
        container = self.registry.get(ref)
        if container.state is State.PAUSED:
            raise WrongState(f"container {container.id} is paused, unpause the container before attach")
        if container.state is State.RESTARTING:
            raise WrongState(f"container {container.id} is restarting, wait until the container is running")
        unit = self.units[container.id]
        self._publish("attach", container)
        live: Stdio | None = None
        if query.stream:
            live = await unit.task.attach() if unit.task is not None else unit.attach_pending()
        past = self.logs(ref, LogQuery(stdout=query.stdout, stderr=query.stderr)) if query.logs else None
        return _Attachment(live=live, past=past, query=query)

    def tell_detached(self, ref: str) -> None:
        """Publish that a client has left an attached container by its detach keys."""
        container = self.registry.find(ref)
        if container is not None:
            self._publish("detach", container)

    async def resize(self, ref: str, rows: int, columns: int) -> None:
        container = self.registry.get(ref)
        task = self.units[container.id].task
        if task is None:
            raise WrongState(f"container {container.id} is not running")
        await task.resize(rows=rows, columns=columns)
        self._publish("resize", container, height=str(rows), width=str(columns))

    def _publish(self, action: str, container: Container, **extra: str) -> None:
        self.events.publish("container", action, container.id, {**event_attributes(container), **extra})


class _Attachment:
    """Streams as one client asked for them: the past from the log first, then what comes, in its choice."""

    def __init__(
        self, *, live: Stdio | None, past: AsyncIterator[LogRecord] | None, query: AttachQuery
    ) -> None:
        self._live = live
        self._past = past
        self._query = query

    async def receive(self) -> tuple[StreamId, bytes]:
        if self._past is not None:
            async for record in self._past:
                return record.stream, record.data
            self._past = None
        if self._live is None:
            raise anyio.EndOfStream
        while True:
            stream, data = await self._live.receive()
            if self._query.stderr if stream is StreamId.STDERR else self._query.stdout:
                return stream, data

    async def send(self, data: bytes) -> None:
        if self._live is not None and self._query.stdin:
            await self._live.send(data)

    async def send_eof(self) -> None:
        if self._live is not None and self._query.stdin:
            await self._live.send_eof()

    async def aclose(self) -> None:
        if self._live is not None:
            await self._live.aclose()

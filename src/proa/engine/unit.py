# SPDX-License-Identifier: Apache-2.0
"""The live side of one container: its lock, its task, and who waits for it or is attached to it.

The record is in ``registry``; a unit holds only what dies with the daemon and is rebuilt by ``restore``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio

from proa.model.errors import NoSuchContainer
from proa.model.ids import ContainerId
from proa.runtime.seam import Stdio, StreamId, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitResult:
    """What POST /containers/{id}/wait answers."""

    code: int
    error: str | None = None


class Waiter:
    """One client's wait. It is registered before the client is told so, and so misses nothing."""

    def __init__(self) -> None:
        self._done = anyio.Event()
        self._result = WaitResult(code=0)

    def finish(self, result: WaitResult) -> None:
        """Let the waiting client go; the first result counts."""
        if not self._done.is_set():
            self._result = result
            self._done.set()

    async def __call__(self) -> WaitResult:
        """Wait for the result."""
        await self._done.wait()
        return self._result


class PendingStdio:
    """A client attached before its container runs: it waits for the start, then is the task's stream.

    ``docker run`` attaches first and starts second, so that no output is missed.
    """

    def __init__(self, on_close: Callable[[PendingStdio], None]) -> None:
        self._on_close = on_close
        self._bound = anyio.Event()
        self._inner: Stdio | None = None
        self._closed = False

    def bind(self, inner: Stdio | None) -> None:
        """Give it the task's stream, or None when the start failed or the container is gone."""
        self._inner = inner
        self._bound.set()

    @property
    def is_closed(self) -> bool:
        return self._closed

    async def receive(self) -> tuple[StreamId, bytes]:
        await self._bound.wait()
        if self._inner is None:
            raise anyio.EndOfStream
        return await self._inner.receive()

    async def send(self, data: bytes) -> None:
        await self._bound.wait()
        if self._inner is None:
            raise anyio.BrokenResourceError
        await self._inner.send(data)

    async def send_eof(self) -> None:
        await self._bound.wait()
        if self._inner is not None:
            await self._inner.send_eof()

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._on_close(self)
        if self._inner is not None:
            await self._inner.aclose()


@dataclass(slots=True, eq=False)
class Unit:
    """``lock`` guards every change of the container's state; it is the innermost lock of the engine.

    :ivar stop_requested: somebody asked for the end, so no restart policy applies.
    :ivar holds: restarts and removals under way: --rm does not apply to an end that they bring about.
    :ivar backoff: scope of a restart's delay, cancelled by stop and remove.
    """

    id: ContainerId
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    task: Task | None = None
    pending: list[PendingStdio] = field(default_factory=list)
    exit_waiters: set[Waiter] = field(default_factory=set)  # for the next end of a task
    stop_waiters: set[Waiter] = field(default_factory=set)  # for an end that no restart follows
    removal_waiters: set[Waiter] = field(default_factory=set)
    backoff: anyio.CancelScope | None = None
    stop_requested: bool = False
    holds: int = 0
    removed: bool = False

    def attach_pending(self) -> PendingStdio:
        """Register a client that attaches before the start."""
        stdio = PendingStdio(self._forget_pending)
        self.pending.append(stdio)
        return stdio

    async def bind_pending(self, open_stdio: Callable[[], Awaitable[Stdio]]) -> None:
        """Connect every client that waits for the start; one that fails stays pending."""
        while self.pending:
            stdio = self.pending[0]
            inner = await open_stdio()
            if stdio.is_closed:  # it left just now; nobody would read from what was opened for it
                await inner.aclose()
            else:
                self.pending.remove(stdio)
                stdio.bind(inner)

    def drop_pending(self) -> None:
        """End the streams of clients that wait for a start that will not come."""
        waiting, self.pending = self.pending, []
        for stdio in waiting:
            stdio.bind(None)

    @contextmanager
    def waiting(self, waiters: set[Waiter]) -> Iterator[Waiter]:
        """Register a waiter for the span of the block."""
        waiter = Waiter()
        waiters.add(waiter)
        try:
            yield waiter
        finally:
            waiters.discard(waiter)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep --rm from removing the container for the span of the block."""
        self.holds += 1
        try:
            yield
        finally:
            self.holds -= 1

    def announce_exit(self, result: WaitResult, *, final: bool) -> None:
        """Tell of a task's end; ``final`` when no restart follows."""
        for waiter in list(self.exit_waiters | (self.stop_waiters if final else set())):
            waiter.finish(result)

    def announce_removal(self, result: WaitResult) -> None:
        """Tell everybody who waits: nothing more will happen to this container."""
        for waiter in list(self.exit_waiters | self.stop_waiters | self.removal_waiters):
            waiter.finish(result)

    def _forget_pending(self, stdio: PendingStdio) -> None:
        if stdio in self.pending:
            self.pending.remove(stdio)


class Units:
    """The units by container id; made when first asked for."""

    def __init__(self) -> None:
        self._units: dict[ContainerId, Unit] = {}

    def __getitem__(self, container_id: ContainerId) -> Unit:
        unit = self._units.get(container_id)
        if unit is None:
            unit = self._units[container_id] = Unit(id=container_id)
        return unit

    def drop(self, container_id: ContainerId) -> None:
        self._units.pop(container_id, None)

    @contextmanager
    def checked(self, unit: Unit) -> Iterator[None]:
        """Guard work done after waiting for a lock: the container may have been removed meanwhile."""
        if unit.removed:
            raise NoSuchContainer(unit.id)
        yield

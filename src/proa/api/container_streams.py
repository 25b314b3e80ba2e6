# SPDX-License-Identifier: Apache-2.0
"""Routes of containers that answer piece by piece: attach, logs, stats, wait.

Source: Engine API, ContainerAttach, ContainerLogs, ContainerStats, ContainerWait.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import anyio
from msgspec import UNSET

from proa.api.request import JSON, Request
from proa.api.response import Response, json_response
from proa.api.router import Router
from proa.api.shapes_stats import reading
from proa.api.streams import detach_keys, hijack_type, logs_type, pump, send_pieces
from proa.engine.container import Container
from proa.engine.containers import AttachQuery
from proa.engine.logs import LogQuery, LogRecord
from proa.engine.unit import Waiter
from proa.model.errors import InvalidParameter, NoSuchContainer
from proa.model.task import TaskStats
from proa.runtime.seam import Stdio
from proa.wire import codec, routes
from proa.wire import containers as wire
from proa.wire.stdio import frame

STATS_INTERVAL_S = 1.0


class Backend(Protocol):
    """What these routes need of the engine. ``ref`` is a name, an id or a unique id prefix."""

    def get(self, ref: str) -> Container: ...
    def waiter(self, ref: str, condition: str) -> AbstractAsyncContextManager[Waiter]: ...
    def logs(self, ref: str, query: LogQuery) -> AsyncIterator[LogRecord]: ...
    async def attach(self, ref: str, query: AttachQuery) -> Stdio: ...
    def tell_detached(self, ref: str) -> None: ...
    async def stats(self, ref: str) -> TaskStats | None: ...


class ContainerStreamRoutes:
    def __init__(self, backend: Backend, *, stats_interval_s: float = STATS_INTERVAL_S) -> None:
        self._backend = backend
        self._stats_interval_s = stats_interval_s

    def register(self, router: Router) -> None:
        router.add(routes.CONTAINER_ATTACH, self.attach)
        router.add(routes.CONTAINER_LOGS, self.logs, watch=True)
        router.add(routes.CONTAINER_STATS, self.stats, watch=True)
        router.add(routes.CONTAINER_WAIT, self.wait, watch=True)

    async def attach(self, request: Request) -> None:
        query = request.query
        keys = detach_keys(query.text("detachKeys"))
        container = self._backend.get(request.params["id"])
        tty = container.config.tty
        stdio = await self._backend.attach(
            container.id,
            AttachQuery(
                stdin=query.flag("stdin"),
                stdout=query.flag("stdout"),
                stderr=query.flag("stderr"),
                logs=query.flag("logs"),
                stream=query.flag("stream"),
            ),
        )
        try:
            raw = await request.hijack(hijack_type(request, tty=tty))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await stdio.aclose()
            raise
        if await pump(stdio, raw, tty=tty, detach_keys=keys):
            self._backend.tell_detached(container.id)

    async def logs(self, request: Request) -> None:
        query = request.query
        container = self._backend.get(request.params["id"])
        records = self._backend.logs(
            container.id,
            LogQuery(
                stdout=query.flag("stdout"),
                stderr=query.flag("stderr"),
                since_ns=query.time_ns("since"),
                until_ns=query.time_ns("until"),
                tail=_tail(query.text("tail")),
                timestamps=query.flag("timestamps"),
                follow=query.flag("follow"),
                details=query.flag("details"),
            ),
        )
        content_type = logs_type(request, tty=container.config.tty)
        if container.config.tty:
            pieces = (record.data async for record in records)
        else:
            pieces = (frame(record.stream, record.data) async for record in records)
        await send_pieces(request, content_type, pieces)

    async def wait(self, request: Request) -> None:
        """The head goes out when the wait is registered: the CLI starts the container only then."""
        async with self._backend.waiter(request.params["id"], request.query.text("condition")) as waiter:
            await request.begin(JSON)
            result = await waiter()
        error = wire.WaitError(message=result.error) if result.error else UNSET
        await request.send(codec.encode(wire.ContainerWaited(status_code=result.code, error=error)) + b"\n")

    async def stats(self, request: Request) -> Response | None:
        """``stream`` (the default), one reading beside an earlier one, or with ``one-shot`` one alone."""
        stream, one_shot = request.query.flag("stream", default=True), request.query.flag("one-shot")
        if stream and one_shot:
            raise InvalidParameter("cannot have stream=true and one-shot=true")
        container = self._backend.get(request.params["id"])
        if not stream:
            return await self._stats_once(container, one_shot=one_shot)
        before: TaskStats | None = None
        await request.begin(JSON)
        while True:
            try:
                now = await self._backend.stats(container.id)
            except NoSuchContainer:
                return None
            await request.send(codec.encode(reading(container, now, before)) + b"\n")
            before = now
            await anyio.sleep(self._stats_interval_s)

    async def _stats_once(self, container: Container, *, one_shot: bool) -> Response:
        before = now = await self._backend.stats(container.id)
        if one_shot or now is None:
            return json_response(reading(container, now, None))
        await anyio.sleep(self._stats_interval_s)
        now = await self._backend.stats(container.id)
        return json_response(reading(container, now, before))


def _tail(text: str) -> int | None:
    """Return the number of lines; None is all. Docker takes "all" and whatever is no number for all."""
    return int(text) if text.isascii() and text.isdecimal() else None

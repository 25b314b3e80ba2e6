# SPDX-License-Identifier: Apache-2.0
"""Routes about the engine as a whole. Source: Engine API, tag System."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from proa.api import shapes_system as shapes
from proa.api.request import JSON, Request
from proa.api.response import Response, json_response
from proa.api.router import Router
from proa.api.streams import send_pieces
from proa.engine.events import Event
from proa.engine.filters import Filters
from proa.engine.machines.machines import MachineUsage
from proa.engine.system import DiskUsage, Info, Version
from proa.model.errors import InvalidParameter
from proa.wire import codec, routes

_PING_HEADERS = {
    "Builder-Version": "2",  # BuildKit's API; clients without it use the classic one
    "Swarm": "inactive",
    "Cache-Control": "no-cache, no-store, must-revalidate",
    "Pragma": "no-cache",
}
_KINDS = frozenset({"container", "image", "volume", "build-cache"})
_VM_KIND = "vm"  # proa's own, which only those get that ask for it


class Backend(Protocol):
    """What these routes need of the engine."""

    async def info(self) -> Info: ...
    async def version(self) -> Version: ...
    async def disk_usage(self) -> DiskUsage: ...
    def events(self, *, since_ns: int, until_ns: int, filters: Filters) -> AsyncIterator[Event]: ...


class MachinesBackend(Protocol):
    """What these routes need of full machines."""

    async def disk_usage(self) -> Sequence[MachineUsage]: ...


class SystemRoutes:
    def __init__(self, backend: Backend, machines: MachinesBackend | None = None) -> None:
        self._backend = backend
        self._machines = machines

    def register(self, router: Router) -> None:
        router.add(routes.PING, self.ping)
        router.add(routes.PING_HEAD, self.ping_head)
        router.add(routes.VERSION, self.version)
        router.add(routes.INFO, self.info)
        router.add(routes.EVENTS, self.events, watch=True)
        router.add(routes.DISK_USAGE, self.disk_usage)

    async def ping(self, request: Request) -> Response:
        return Response(content_type="text/plain; charset=utf-8", body=b"OK", headers=_PING_HEADERS)

    async def ping_head(self, request: Request) -> Response:
        return Response(content_type="text/plain; charset=utf-8", headers=_PING_HEADERS)

    async def version(self, request: Request) -> Response:
        return json_response(shapes.version(await self._backend.version()))

    async def info(self, request: Request) -> Response:
        return json_response(shapes.info(await self._backend.info()))

    async def events(self, request: Request) -> None:
        """One JSON document a line, from ``since`` to ``until`` or for ever."""
        since_ns, until_ns = request.query.time_ns("since"), request.query.time_ns("until")
        if until_ns and since_ns > until_ns:
            raise InvalidParameter("`since` time cannot be after `until` time")
        events = self._backend.events(since_ns=since_ns, until_ns=until_ns, filters=request.query.filters())
        await send_pieces(
            request, JSON, (codec.encode(shapes.event(event)) + b"\n" async for event in events)
        )

    async def disk_usage(self, request: Request) -> Response:
        kinds = frozenset(request.query.texts("type")) or _KINDS
        if unknown := kinds - _KINDS - {_VM_KIND}:
            raise InvalidParameter(f"unknown object type: {sorted(unknown)[0]}")
        usage = await self._backend.disk_usage()
        shape = shapes.disk_usage(usage, kinds, time.time_ns())
        if _VM_KIND in kinds and self._machines is not None:
            machines = shapes.machines_usage(await self._machines.disk_usage())
            shape = msgspec.structs.replace(shape, virtual_machines=machines)
        return json_response(shape)

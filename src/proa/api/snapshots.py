# SPDX-License-Identifier: Apache-2.0
"""Routes of snapshots of running containers. Source: docs/reference/containers-proa.yaml."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from proa.api.request import Request
from proa.api.response import NO_CONTENT, Response, json_response
from proa.api.router import Router
from proa.engine.creation import Created
from proa.engine.snapshots import Snapshot
from proa.wire import containers as wire
from proa.wire import own_routes as routes
from proa.wire.files import TAR
from proa.wire.snapshots import SnapshotSummary
from proa.wire.times import format_time


class Backend(Protocol):
    """What the routes need of the engine."""

    def list(self, container: str) -> Sequence[Snapshot]: ...
    async def create(self, ref: str, name: str) -> Snapshot: ...
    async def restore(self, snapshot: str, name: str) -> Created: ...
    async def remove(self, name: str) -> None: ...
    def export(self, name: str) -> AsyncIterator[bytes]: ...
    async def import_(self, stream: AsyncIterator[bytes], name: str) -> Snapshot: ...


class SnapshotRoutes:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def register(self, router: Router) -> None:
        router.add(routes.SNAPSHOT_CREATE, self.create)
        router.add(routes.SNAPSHOT_LIST, self.list)
        router.add(routes.SNAPSHOT_RESTORE, self.restore)
        router.add(routes.SNAPSHOT_DELETE, self.delete)
        router.add(routes.SNAPSHOT_EXPORT, self.export, watch=True)
        router.add(routes.SNAPSHOT_IMPORT, self.import_)

    async def list(self, request: Request) -> Response:
        return json_response([_shape(one) for one in self._backend.list(request.query.text("container"))])

    async def create(self, request: Request) -> Response:
        made = await self._backend.create(request.params["id"], request.query.text("name"))
        return json_response(_shape(made), 201)

    async def restore(self, request: Request) -> Response:
        made = await self._backend.restore(request.params["name"], request.query.text("name"))
        return json_response(wire.ContainerCreated(id=made.id, warnings=list(made.warnings)), 201)

    async def delete(self, request: Request) -> Response:
        await self._backend.remove(request.params["name"])
        return NO_CONTENT

    async def export(self, request: Request) -> None:
        pieces = self._backend.export(request.params["name"])
        await request.begin(TAR)
        async for piece in pieces:
            await request.send(piece)

    async def import_(self, request: Request) -> Response:
        made = await self._backend.import_(request.iter_body(), request.query.text("name"))
        return json_response(_shape(made), 201)


def _shape(one: Snapshot) -> SnapshotSummary:
    return SnapshotSummary(
        name=one.name,
        container=one.container_name,
        container_id=one.container_id,
        image=one.image,
        created=format_time(one.created_at_ns),
        size=one.size,
    )

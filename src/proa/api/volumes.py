# SPDX-License-Identifier: Apache-2.0
"""Routes of volumes. Source: Engine API, tag Volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from proa.api.refusals import refuse
from proa.api.request import Request
from proa.api.response import NO_CONTENT, Response, json_response
from proa.api.router import Router
from proa.api.shapes_volumes import volume
from proa.engine.filters import Filters
from proa.model.volume import Volume
from proa.wire import routes
from proa.wire import volumes as wire


class Backend(Protocol):
    """What these routes need of the engine."""

    async def create(
        self, name: str | None, *, driver: str, labels: Mapping[str, str], options: Mapping[str, str]
    ) -> Volume: ...
    def get(self, name: str) -> Volume: ...
    async def list(self, filters: Filters) -> Sequence[Volume]: ...
    async def remove(self, name: str, *, force: bool) -> None: ...
    async def prune(self, filters: Filters) -> tuple[Sequence[str], int]: ...


class VolumeRoutes:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def register(self, router: Router) -> None:
        router.add(routes.VOLUME_LIST, self.list)
        router.add(routes.VOLUME_CREATE, self.create)
        router.add(routes.VOLUME_PRUNE, self.prune)
        router.add(routes.VOLUME_INSPECT, self.inspect)
        router.add(routes.VOLUME_DELETE, self.delete)
        router.add(routes.VOLUME_UPDATE, refuse("only cluster volumes can be updated, and proa has none"))

    async def list(self, request: Request) -> Response:
        found = await self._backend.list(request.query.filters())
        return json_response(wire.VolumeList(volumes=[volume(one) for one in found]))

    async def create(self, request: Request) -> Response:
        body = await request.json(wire.VolumeCreateRequest) or wire.VolumeCreateRequest()
        made = await self._backend.create(
            body.name or None,
            driver=body.driver or "local",
            labels=body.labels or {},
            options=body.driver_opts or {},
        )
        return json_response(volume(made), 201)

    async def inspect(self, request: Request) -> Response:
        return json_response(volume(self._backend.get(request.params["name"])))

    async def delete(self, request: Request) -> Response:
        await self._backend.remove(request.params["name"], force=request.query.flag("force"))
        return NO_CONTENT

    async def prune(self, request: Request) -> Response:
        filters = dict(request.query.filters())
        if request.version < (1, 42):
            filters.setdefault("all", ("true",))  # older clients mean named volumes too
        names, freed = await self._backend.prune(filters)
        return json_response(wire.VolumesPruned(volumes_deleted=list(names), space_reclaimed=freed))

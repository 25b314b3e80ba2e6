# SPDX-License-Identifier: Apache-2.0
"""Routes that make, show, change and remove containers; ``container_streams`` has those that stream.

Source: Engine API, tag Container.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import msgspec

from proa.api import shapes_containers as shapes
from proa.api.request import Request
from proa.api.response import NO_CONTENT, Response, json_response
from proa.api.router import Router
from proa.api.streams import terminal_size
from proa.engine.container import Container
from proa.engine.creation import Created
from proa.engine.filters import Filters
from proa.engine.updates import UpdateRequest
from proa.model.config import ContainerConfig, HostConfig, NetworkingConfig
from proa.model.errors import InvalidParameter, NoSuchContainer
from proa.model.ids import ContainerId, ExecId
from proa.model.task import ProcessTable
from proa.wire import containers as wire
from proa.wire import routes


class Backend(Protocol):
    """What these routes need of the engine. ``ref`` is a name, an id or a unique id prefix."""

    def get(self, ref: str) -> Container: ...
    async def create(
        self,
        name: str | None,
        config: ContainerConfig,
        host_config: HostConfig,
        networking: NetworkingConfig,
        platform: str,
    ) -> Created: ...
    async def list(self, *, all: bool, limit: int, filters: Filters, size: bool) -> Sequence[Container]: ...
    async def sizes(self, container: Container) -> tuple[int, int]: ...
    def links(self, container: Container) -> Sequence[str]: ...
    def aliases(self, container: Container) -> Sequence[str]: ...
    async def start(self, ref: str) -> None: ...
    async def stop(self, ref: str, *, signal: str | None, timeout_s: int | None) -> None: ...
    async def restart(self, ref: str, *, signal: str | None, timeout_s: int | None) -> None: ...
    async def kill(self, ref: str, signal: str) -> None: ...
    async def pause(self, ref: str) -> None: ...
    async def unpause(self, ref: str) -> None: ...
    async def rename(self, ref: str, name: str) -> None: ...
    async def update(self, ref: str, request: UpdateRequest) -> Sequence[str]: ...
    async def remove(self, ref: str, *, force: bool, volumes: bool, link: bool) -> None: ...
    async def prune(self, filters: Filters) -> tuple[Sequence[str], int]: ...
    async def top(self, ref: str, ps_args: str) -> ProcessTable: ...
    async def resize(self, ref: str, rows: int, columns: int) -> None: ...


class ExecIds(Protocol):
    """The part of the engine's execs that inspect shows."""

    def ids_of(self, container_id: ContainerId) -> Sequence[ExecId]: ...


class ContainerRoutes:
    def __init__(self, backend: Backend, execs: ExecIds) -> None:
        self._backend = backend
        self._execs = execs

    def register(self, router: Router) -> None:
        router.add(routes.CONTAINER_LIST, self.list)
        router.add(routes.CONTAINER_CREATE, self.create)
        router.add(routes.CONTAINER_PRUNE, self.prune)
        router.add(routes.CONTAINER_INSPECT, self.inspect)
        router.add(routes.CONTAINER_TOP, self.top)
        router.add(routes.CONTAINER_START, self.start)
        router.add(routes.CONTAINER_STOP, self.stop)
        router.add(routes.CONTAINER_RESTART, self.restart)
        router.add(routes.CONTAINER_KILL, self.kill)
        router.add(routes.CONTAINER_PAUSE, self.pause)
        router.add(routes.CONTAINER_UNPAUSE, self.unpause)
        router.add(routes.CONTAINER_RENAME, self.rename)
        router.add(routes.CONTAINER_UPDATE, self.update)
        router.add(routes.CONTAINER_RESIZE, self.resize)
        router.add(routes.CONTAINER_DELETE, self.delete)
        router.add(routes.CONTAINER_LINK_DELETE, self.delete_link)

    # --- looking ---

    async def list(self, request: Request) -> Response:
        query = request.query
        size = query.flag("size")
        found = await self._backend.list(
            all=query.flag("all"), limit=query.number("limit") or 0, filters=query.filters(), size=size
        )
        now_ns = time.time_ns()
        return json_response(
            [
                shapes.summary(
                    one, await self._backend.sizes(one) if size else None, now_ns, self._backend.aliases(one)
                )
                for one in found
            ]
        )

    async def inspect(self, request: Request) -> Response:
        container = self._backend.get(request.params["id"])
        sizes = await self._backend.sizes(container) if request.query.flag("size") else None
        links = self._backend.links(container)
        return json_response(shapes.inspect(container, self._execs.ids_of(container.id), sizes, links))

    async def top(self, request: Request) -> Response:
        table = await self._backend.top(request.params["id"], request.query.text("ps_args", "-ef"))
        return json_response(
            wire.ContainerTop(titles=list(table.titles), processes=[list(row) for row in table.rows])
        )

    # --- changing ---

    async def create(self, request: Request) -> Response:
        body = await request.json(wire.ContainerCreateRequest)
        if body is None or body == wire.ContainerCreateRequest():
            raise InvalidParameter("config cannot be empty in order to create a container")
        created = await self._backend.create(
            request.query.text("name") or None,
            body.config(),
            body.host_config or HostConfig(),
            body.networking_config or NetworkingConfig(),
            request.query.text("platform"),
        )
        return json_response(wire.ContainerCreated(id=created.id, warnings=list(created.warnings)), 201)

    async def start(self, request: Request) -> Response:
        # The CLI sends no body, docker-py "null" or "{}"; a HostConfig here is a client from before API 1.24.
        if request.has_body and len((await request.body()).strip()) > len("null"):
            raise InvalidParameter(
                "starting container with non-empty request body was deprecated since API v1.22 "
                "and removed in v1.24"
            )
        await self._backend.start(request.params["id"])
        return NO_CONTENT

    async def stop(self, request: Request) -> Response:
        await self._backend.stop(
            request.params["id"],
            signal=request.query.text("signal") or None,
            timeout_s=request.query.number("t"),
        )
        return NO_CONTENT

    async def restart(self, request: Request) -> Response:
        await self._backend.restart(
            request.params["id"],
            signal=request.query.text("signal") or None,
            timeout_s=request.query.number("t"),
        )
        return NO_CONTENT

    async def kill(self, request: Request) -> Response:
        await self._backend.kill(request.params["id"], request.query.text("signal") or "SIGKILL")
        return NO_CONTENT

    async def pause(self, request: Request) -> Response:
        await self._backend.pause(request.params["id"])
        return NO_CONTENT

    async def unpause(self, request: Request) -> Response:
        await self._backend.unpause(request.params["id"])
        return NO_CONTENT

    async def rename(self, request: Request) -> Response:
        await self._backend.rename(request.params["id"], request.query.text("name"))
        return NO_CONTENT

    async def update(self, request: Request) -> Response:
        body = await request.json(wire.ContainerUpdateRequest) or wire.ContainerUpdateRequest()
        known = UpdateRequest.__dataclass_fields__
        for name, value in msgspec.structs.asdict(body).items():
            if value and name not in known:
                raise InvalidParameter(f"{name.replace('_', ' ')} cannot be updated")
        fields = {name: getattr(body, name) for name in known}
        warnings = await self._backend.update(request.params["id"], UpdateRequest(**fields))
        return json_response(wire.ContainerUpdated(warnings=list(warnings) or None))

    async def resize(self, request: Request) -> Response:
        rows, columns = terminal_size(request)
        await self._backend.resize(request.params["id"], rows, columns)
        return Response()

    async def delete(self, request: Request) -> Response:
        query = request.query
        await self._backend.remove(
            request.params["id"], force=query.flag("force"), volumes=query.flag("v"), link=query.flag("link")
        )
        return NO_CONTENT

    async def delete_link(self, request: Request) -> Response:
        """``docker rm --link web/db`` names a link by a path of two parts."""
        name = f"{request.params['id']}/{request.params['alias']}"
        if not request.query.flag("link"):
            raise NoSuchContainer(name)
        await self._backend.remove(name, force=False, volumes=False, link=True)
        return NO_CONTENT

    async def prune(self, request: Request) -> Response:
        ids, freed = await self._backend.prune(request.query.filters())
        return json_response(wire.ContainersPruned(containers_deleted=list(ids), space_reclaimed=freed))

# SPDX-License-Identifier: Apache-2.0
"""The route that copies running containers. Source: docs/reference/containers-proa.yaml."""

from __future__ import annotations

from typing import Protocol

from proa.api.request import Request
from proa.api.response import Response, json_response
from proa.api.router import Router
from proa.engine.creation import Created
from proa.wire import containers as wire
from proa.wire import own_routes as routes


class Backend(Protocol):
    """What the route needs of the engine."""

    async def fork(self, ref: str, name: str) -> Created: ...


class ForkingRoutes:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def register(self, router: Router) -> None:
        router.add(routes.CONTAINER_FORK, self.fork)

    async def fork(self, request: Request) -> Response:
        made = await self._backend.fork(request.params["id"], request.query.text("name"))
        return json_response(wire.ContainerCreated(id=made.id, warnings=list(made.warnings)), 201)

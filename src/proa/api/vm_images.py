# SPDX-License-Identifier: Apache-2.0
"""The route that makes an image of a full machine. Source: docs/reference/vms.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from proa.api.request import Request
from proa.api.response import Response, json_response
from proa.api.router import Router
from proa.model.ids import Digest
from proa.wire import vm_routes as routes
from proa.wire import vms as wire


class Backend(Protocol):
    """What this route needs of the engine."""

    async def make(
        self, ref: str, *, repository: str, tag: str, message: str, changes: Sequence[str]
    ) -> Digest: ...


class VmImageRoutes:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def register(self, router: Router) -> None:
        router.add(routes.VM_IMAGE, self.make)

    async def make(self, request: Request) -> Response:
        query = request.query
        made = await self._backend.make(
            request.params["id"],
            repository=query.text("repo"),
            tag=query.text("tag"),
            message=query.text("comment"),
            changes=query.texts("changes"),
        )
        return json_response(wire.VmImage(id=made), 201)

# SPDX-License-Identifier: Apache-2.0
"""Routes that make machines from machines. Source: docs/reference/vms.yaml, VmFork, VmExport, VmImport."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from proa.api.request import Request
from proa.api.response import Response, json_response
from proa.api.router import Router
from proa.model.machine import Machine
from proa.wire import vm_routes as routes
from proa.wire import vms as wire
from proa.wire.files import TAR


class CopiesBackend(Protocol):
    """What these routes need of the engine."""

    async def fork(self, ref: str, name: str) -> Machine: ...
    def open_export(self, ref: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]: ...
    async def import_archive(self, name: str, stream: AsyncIterator[bytes]) -> Machine: ...


class VmCopyRoutes:
    def __init__(self, backend: CopiesBackend) -> None:
        self._backend = backend

    def register(self, router: Router) -> None:
        router.add(routes.VM_FORK, self.fork)
        router.add(routes.VM_EXPORT, self.export, watch=True)
        router.add(routes.VM_IMPORT, self.import_archive)

    async def fork(self, request: Request) -> Response:
        return _created(await self._backend.fork(request.params["id"], request.query.text("name")))

    async def export(self, request: Request) -> None:
        async with self._backend.open_export(request.params["id"]) as pieces:
            await request.begin(TAR)
            async for piece in pieces:
                await request.send(piece)

    async def import_archive(self, request: Request) -> Response:
        name = request.query.text("name")
        return _created(await self._backend.import_archive(name, request.iter_body()))


def _created(made: Machine) -> Response:
    return json_response(wire.VmCreated(id=made.id, name=made.name), 201)

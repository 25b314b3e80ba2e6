# SPDX-License-Identifier: Apache-2.0
"""Routes that copy files into and out of machines that run, in the shape of those of containers.

Source: docs/reference/vms.yaml, VmArchive, VmArchiveInfo, VmPutArchive.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from proa.api.files import PathStat, archive_path, stat_header
from proa.api.request import Request
from proa.api.response import Response
from proa.api.router import Router
from proa.wire import vm_routes as routes
from proa.wire.files import TAR


class GuestFilesBackend(Protocol):
    """What these routes need of the engine."""

    async def stat(self, ref: str, path: str) -> PathStat: ...
    def open_archive(
        self, ref: str, path: str
    ) -> AbstractAsyncContextManager[tuple[PathStat, AsyncIterator[bytes]]]: ...
    async def put_archive(
        self, ref: str, path: str, stream: AsyncIterator[bytes], *, keep_owner: bool
    ) -> None: ...


class VmFileRoutes:
    def __init__(self, backend: GuestFilesBackend) -> None:
        self._backend = backend

    def register(self, router: Router) -> None:
        router.add(routes.VM_ARCHIVE_INFO, self.stat)
        router.add(routes.VM_ARCHIVE, self.get, watch=True)
        router.add(routes.VM_PUT_ARCHIVE, self.put)

    async def stat(self, request: Request) -> Response:
        stat = await self._backend.stat(request.params["id"], archive_path(request))
        return Response(headers=stat_header(stat))

    async def get(self, request: Request) -> None:
        path = archive_path(request)
        async with self._backend.open_archive(request.params["id"], path) as (stat, pieces):
            await request.begin(TAR, stat_header(stat))
            async for piece in pieces:
                await request.send(piece)

    async def put(self, request: Request) -> Response:
        await self._backend.put_archive(
            request.params["id"],
            archive_path(request),
            request.iter_body(),
            keep_owner=request.query.flag("copyUIDGID"),
        )
        return Response()

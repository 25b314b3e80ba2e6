# SPDX-License-Identifier: Apache-2.0
"""Routes that copy, list and export the files of containers, and make images of them.

Source: Engine API, ContainerArchive, ContainerArchiveInfo, PutContainerArchive, ContainerChanges,
ContainerExport, ImageCommit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from proa.api.request import JSON, Request
from proa.api.response import Response, json_response
from proa.api.router import Router
from proa.engine.commits import CommitQuery
from proa.model.config import ContainerConfig
from proa.model.errors import InvalidParameter
from proa.model.ids import Digest
from proa.wire import codec, routes
from proa.wire import files as wire
from proa.wire.times import format_time

_BATCH_BYTES = 64 * 1024


class PathStat(Protocol):
    """What is at a path, as the engine says it."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def mode(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...
    @property
    def target(self) -> str: ...


class Backend(Protocol):
    """What the routes of files need of the engine."""

    async def stat(self, ref: str, path: str) -> PathStat: ...
    def open_archive(
        self, ref: str, path: str
    ) -> AbstractAsyncContextManager[tuple[PathStat, AsyncIterator[bytes]]]: ...
    async def put_archive(
        self, ref: str, path: str, stream: AsyncIterator[bytes], *, strict: bool, as_user: bool
    ) -> None: ...
    def open_changes(self, ref: str) -> AbstractAsyncContextManager[AsyncIterator[tuple[int, str]]]: ...
    def open_export(self, ref: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]: ...


class CommitBackend(Protocol):
    """What the route of commit needs of the engine."""

    async def commit(self, ref: str, query: CommitQuery) -> Digest: ...


class FileRoutes:
    def __init__(self, backend: Backend, commits: CommitBackend) -> None:
        self._backend = backend
        self._commits = commits

    def register(self, router: Router) -> None:
        router.add(routes.CONTAINER_ARCHIVE_INFO, self.stat)
        router.add(routes.CONTAINER_ARCHIVE, self.get, watch=True)
        router.add(routes.PUT_CONTAINER_ARCHIVE, self.put)
        router.add(routes.CONTAINER_CHANGES, self.changes, watch=True)
        router.add(routes.CONTAINER_EXPORT, self.export, watch=True)
        router.add(routes.IMAGE_COMMIT, self.commit)

    async def stat(self, request: Request) -> Response:
        stat = await self._backend.stat(request.params["id"], archive_path(request))
        return Response(headers=stat_header(stat))

    async def get(self, request: Request) -> None:
        async with self._backend.open_archive(request.params["id"], archive_path(request)) as (stat, pieces):
            await request.begin(wire.TAR, stat_header(stat))
            async for piece in pieces:
                await request.send(piece)

    async def put(self, request: Request) -> Response:
        query = request.query
        await self._backend.put_archive(
            request.params["id"],
            archive_path(request),
            request.iter_body(),
            strict=query.flag("noOverwriteDirNonDir"),
            as_user=query.flag("copyUIDGID"),
        )
        return Response()

    async def changes(self, request: Request) -> None:
        """A stranger decides how many there are: they are sent in batches."""
        async with self._backend.open_changes(request.params["id"]) as changes:
            await request.begin(JSON)
            text = b"["
            comma = b""
            async for kind, path in changes:
                text += comma + codec.encode(wire.FilesystemChange(path=path, kind=kind))
                comma = b","
                if len(text) > _BATCH_BYTES:
                    await request.send(text)
                    text = b""
            await request.send(text + b"]\n")

    async def export(self, request: Request) -> None:
        async with self._backend.open_export(request.params["id"]) as pieces:
            await request.begin("application/octet-stream")
            async for piece in pieces:
                await request.send(piece)

    async def commit(self, request: Request) -> Response:
        query = request.query
        body = await request.json(ContainerConfig)
        ref = query.text("container")
        if not ref:
            raise InvalidParameter("bad parameter: container cannot be empty")
        image_id = await self._commits.commit(
            ref,
            CommitQuery(
                repository=query.text("repo"),
                tag=query.text("tag"),
                comment=query.text("comment"),
                author=query.text("author"),
                pause=not query.text("pause") or query.flag("pause"),
                changes=query.texts("changes"),
                config=body,
            ),
        )
        return json_response(wire.Committed(id=image_id), 201)


def archive_path(request: Request) -> str:
    """Return the path that a copy is about. Raises InvalidParameter."""
    path = request.query.text("path")
    if not path:
        raise InvalidParameter("bad parameter: path cannot be empty")
    if "\0" in path:
        raise InvalidParameter("bad parameter: path must not have a NUL")
    return path


def stat_header(stat: PathStat) -> dict[str, str]:
    """Return the header that says what is at a path."""
    message = wire.PathStat(
        name=stat.name,
        size=stat.size,
        mode=stat.mode,
        mtime=format_time(stat.mtime_ns),
        link_target=stat.target,
    )
    return {wire.PATH_STAT_HEADER: wire.encode_path_stat(message)}

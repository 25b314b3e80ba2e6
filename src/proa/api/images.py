# SPDX-License-Identifier: Apache-2.0
"""Routes of images. Source: Engine API, tag Image."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Protocol

from proa.api.request import JSON, Handler, Request
from proa.api.response import Response, json_response
from proa.api.router import Router
from proa.api.shapes_images import inspect, summary
from proa.engine.filters import Filters
from proa.model.errors import InvalidParameter
from proa.model.ids import Digest
from proa.model.image import Image
from proa.wire import codec, routes
from proa.wire.errors import Progress

TAR = "application/x-tar"


class Backend(Protocol):
    """What these routes need of the engine."""

    def get(self, ref: str) -> Image: ...
    async def list(self, *, all: bool, filters: Filters) -> Sequence[Image]: ...
    def history(self, ref: str) -> Sequence[Mapping[str, object]]: ...
    async def load(
        self, stream: AsyncIterator[bytes], *, on_progress: Callable[[Mapping[str, object]], None]
    ) -> Sequence[str]: ...
    def save(self, refs: Sequence[str]) -> AsyncIterator[bytes]: ...
    async def import_(
        self,
        stream: AsyncIterator[bytes],
        *,
        repository: str,
        tag: str,
        message: str,
        changes: Sequence[str],
        platform: str,
    ) -> Digest: ...
    async def tag(self, source: str, repository: str, tag: str) -> None: ...
    async def remove(self, ref: str, *, force: bool, no_prune: bool) -> Sequence[Mapping[str, str]]: ...
    async def prune(self, filters: Filters) -> tuple[Sequence[Mapping[str, str]], int]: ...


class ImageRoutes:
    """``pull`` answers the half of POST /images/create that asks a registry."""

    def __init__(self, backend: Backend, *, pull: Handler) -> None:
        self._backend = backend
        self._pull = pull

    def register(self, router: Router) -> None:
        router.add(routes.IMAGE_LIST, self.list)
        router.add(routes.IMAGE_CREATE, self.create, watch=True)
        router.add(routes.IMAGE_LOAD, self.load)
        router.add(routes.IMAGE_GET_ALL, self.save_all)
        router.add(routes.IMAGE_PRUNE, self.prune)
        router.add(routes.IMAGE_INSPECT, self.inspect)
        router.add(routes.IMAGE_HISTORY, self.history)
        router.add(routes.IMAGE_GET, self.save_one)
        router.add(routes.IMAGE_TAG, self.tag)
        router.add(routes.IMAGE_DELETE, self.delete)

    # --- looking ---

    async def list(self, request: Request) -> Response:
        found = await self._backend.list(all=request.query.flag("all"), filters=request.query.filters())
        return json_response([summary(image) for image in found])

    async def inspect(self, request: Request) -> Response:
        return json_response(inspect(self._backend.get(request.params["name"])))

    async def history(self, request: Request) -> Response:
        return json_response(self._backend.history(request.params["name"]))

    # --- in and out ---

    async def load(self, request: Request) -> Response:
        """Take in an archive. The answer comes when all of it is in, so that a broken one is a status."""
        lines = await self._backend.load(request.iter_body(), on_progress=_ignore)
        return _progress(*(Progress(stream=f"{line}\n") for line in lines))

    async def create(self, request: Request) -> Response | None:
        """Import a root file system (``fromSrc=-``), or pull an image (``fromImage``)."""
        query = request.query
        if query.text("fromImage"):
            return await self._pull(request)
        if query.text("fromSrc") != "-":
            raise InvalidParameter(
                "fromSrc must be -: proa imports from the request body, not from an address"
            )
        repository, tag = _split_tag(query.text("repo"), query.text("tag"))
        image_id = await self._backend.import_(
            request.iter_body(),
            repository=repository,
            tag=tag,
            message=query.text("message"),
            changes=query.texts("changes"),
            platform=query.text("platform"),
        )
        return _progress(Progress(status=image_id))

    async def save_one(self, request: Request) -> None:
        await self._save(request, [request.params["name"]])

    async def save_all(self, request: Request) -> None:
        names = [name for names in request.query.texts("names") for name in names.split(",") if name]
        if not names:
            raise InvalidParameter("no image names were given")
        await self._save(request, names)

    async def _save(self, request: Request, names: Sequence[str]) -> None:
        begun = False
        async for chunk in self._backend.save(names):
            if not begun:  # an unknown image shows with the first piece, and is a status then
                begun = True
                await request.begin(TAR)
            await request.send(chunk)

    # --- changing ---

    async def tag(self, request: Request) -> Response:
        repository, tag = _split_tag(request.query.text("repo"), request.query.text("tag"))
        await self._backend.tag(request.params["name"], repository, tag)
        return Response(status=201)

    async def delete(self, request: Request) -> Response:
        query = request.query
        return json_response(
            await self._backend.remove(
                request.params["name"], force=query.flag("force"), no_prune=query.flag("noprune")
            )
        )

    async def prune(self, request: Request) -> Response:
        entries, freed = await self._backend.prune(request.query.filters())
        return json_response({"ImagesDeleted": list(entries), "SpaceReclaimed": freed})


def _ignore(progress: Mapping[str, object]) -> None:
    """The answer has no progress: it comes at the end."""


def _progress(*lines: Progress) -> Response:
    return Response(content_type=JSON, body=b"".join(codec.encode(line) + b"\r\n" for line in lines))


def _split_tag(name: str, tag: str) -> tuple[str, str]:
    """Return name and tag when the tag is a part of the name ("busybox:1.36", "busybox@sha256:…")."""
    if tag:
        return name, tag
    if "@" in name:
        repository, _, digest = name.partition("@")
        return repository, digest
    repository, separator, rest = name.rpartition(":")
    return (repository, rest) if separator and "/" not in rest else (name, "")

# SPDX-License-Identifier: Apache-2.0
"""Routes of registries: pull, push, login, search, distribution.

Source: Engine API, ImageCreate, ImagePush, SystemAuth, ImageSearch, DistributionInspect, "Authentication".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from proa.api.progress import stream_progress
from proa.api.request import Request
from proa.api.response import Response, json_response
from proa.api.router import Router
from proa.engine.filters import Filters
from proa.engine.registries import Distribution
from proa.model.errors import InvalidParameter
from proa.model.registry import Credentials, LoggedIn, SearchResult
from proa.wire import codec, routes
from proa.wire import registries as wire

OnProgress = Callable[[Mapping[str, object]], None]


class Backend(Protocol):
    """What these routes need of the engine."""

    async def pull(
        self, name: str, tag: str, *, platform: str, credentials: Credentials, on_progress: OnProgress
    ) -> None: ...
    async def push(
        self, name: str, tag: str, *, platform: str, credentials: Credentials, on_progress: OnProgress
    ) -> None: ...
    async def log_in(self, credentials: Credentials) -> LoggedIn: ...
    async def search(
        self, term: str, *, limit: int | None, filters: Filters, credentials: Credentials
    ) -> Sequence[SearchResult]: ...
    async def inspect(self, name: str, credentials: Credentials) -> Distribution: ...


class RegistryRoutes:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def register(self, router: Router) -> None:
        router.add(routes.AUTH, self.auth)
        router.add(routes.IMAGE_SEARCH, self.search, watch=True)
        router.add(routes.IMAGE_PUSH, self.push, watch=True)
        router.add(routes.DISTRIBUTION_INSPECT, self.inspect, watch=True)

    async def pull(self, request: Request) -> None:
        """Registered as a part of POST /images/create, which imports too."""
        query = request.query
        credentials = _credentials(request)

        async def work(on_progress: OnProgress) -> None:
            await self._backend.pull(
                query.text("fromImage"),
                query.text("tag"),
                platform=query.text("platform"),
                credentials=credentials,
                on_progress=on_progress,
            )

        await stream_progress(request, work)

    async def push(self, request: Request) -> None:
        query = request.query
        await stream_progress(
            request,
            partial(
                self._push,
                request.params["name"],
                query.text("tag"),
                _platform(query.text("platform")),
                _credentials(request),
            ),
        )

    async def _push(
        self, name: str, tag: str, platform: str, credentials: Credentials, on_progress: OnProgress
    ) -> None:
        await self._backend.push(
            name, tag, platform=platform, credentials=credentials, on_progress=on_progress
        )

    async def auth(self, request: Request) -> Response:
        config = await request.json(wire.AuthConfig)
        if config is None:
            raise InvalidParameter("invalid JSON: got EOF while reading request body")
        done = await self._backend.log_in(_to_credentials(config))
        return json_response(wire.AuthResponse(status=done.status, identity_token=done.identity_token))

    async def search(self, request: Request) -> Response:
        query = request.query
        found = await self._backend.search(
            query.text("term"),
            limit=query.number("limit"),
            filters=query.filters(),
            credentials=_credentials(request),
        )
        return json_response(
            [
                wire.SearchResult(
                    description=result.description,
                    is_official=result.is_official,
                    is_automated=result.is_automated,
                    name=result.name,
                    star_count=result.stars,
                )
                for result in found
            ]
        )

    async def inspect(self, request: Request) -> Response:
        found = await self._backend.inspect(request.params["name"], _credentials(request))
        descriptor = found.descriptor
        return json_response(
            wire.DistributionInspect(
                descriptor=wire.Descriptor(
                    media_type=descriptor.media_type, digest=descriptor.digest, size=descriptor.size
                ),
                platforms=[
                    wire.Platform(os=os, architecture=architecture, variant=variant)
                    for os, architecture, variant in found.platforms
                ],
            )
        )


def _credentials(request: Request) -> Credentials:
    """Read X-Registry-Auth. Raises InvalidParameter."""
    try:
        return _to_credentials(wire.decode_auth(request.headers.get(wire.AUTH_HEADER.lower(), "")))
    except ValueError as error:
        raise InvalidParameter(f"invalid {wire.AUTH_HEADER} header: {error}") from error


def _to_credentials(config: wire.AuthConfig) -> Credentials:
    try:
        config = wire.split_auth(config)
    except ValueError as error:
        raise InvalidParameter(f"invalid credentials: {error}") from error
    return Credentials(
        username=config.username,
        password=config.password,
        identity_token=config.identitytoken,
        registry_token=config.registrytoken,
        server=config.serveraddress,
    )


def _platform(text: str) -> str:
    """Return os/architecture/variant of a push's platform, which is JSON (a pull's is not)."""
    if not text.startswith("{"):
        return text
    try:
        platform = codec.decode(text, wire.Platform)
    except ValueError as error:
        raise InvalidParameter(f"invalid platform: {error}") from error
    return "/".join(part for part in (platform.os, platform.architecture, platform.variant) if part)

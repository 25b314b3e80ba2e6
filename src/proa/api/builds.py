# SPDX-License-Identifier: Apache-2.0
"""Routes of builds. Source: Engine API, ImageBuild, BuildPrune."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator
from typing import Protocol, TypeVar

from proa.api.build_contexts import take_contexts
from proa.api.progress import Lines, stream_lines
from proa.api.query import Query
from proa.api.registries import to_credentials
from proa.api.request import Request
from proa.api.response import Response, json_response
from proa.api.router import Router
from proa.engine.building.request import ENTITLEMENTS, BuildRequest, Room, Tell
from proa.engine.filters import Filters
from proa.model.config import HostConfig, Ulimit
from proa.model.errors import InvalidParameter, NotImplementedHere
from proa.model.ids import Digest
from proa.model.registry import Credentials
from proa.wire import codec, routes
from proa.wire.builds import CONTEXTS_PARAMETER, REGISTRY_CONFIG_HEADER, SECRETS_HEADER
from proa.wire.registries import AuthConfig

T = TypeVar("T")

HEADER_MAX_BYTES = 256 * 1024


class Backend(Protocol):
    """What these routes need of the engine."""

    async def build(
        self, request: BuildRequest, context: AsyncIterator[bytes], tell: Tell, room: Room
    ) -> Digest: ...
    async def prune(self, filters: Filters, *, all: bool, keep_bytes: int = 0) -> tuple[list[str], int]: ...


class BuildRoutes:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def register(self, router: Router) -> None:
        router.add(routes.IMAGE_BUILD, self.build, watch=True)
        router.add(routes.BUILD_PRUNE, self.prune)

    async def build(self, request: Request) -> None:
        wanted, context = take_contexts(
            _read(request), request.query.text(CONTEXTS_PARAMETER), request.iter_body()
        )

        async def work(lines: Lines) -> None:
            await self._backend.build(wanted, context, lines.put, lines.room)

        await stream_lines(request, work)

    async def prune(self, request: Request) -> Response:
        query = request.query
        keep = max(query.number(name) or 0 for name in ("keep-storage", "reserved-space", "max-used-space"))
        removed, freed = await self._backend.prune(query.filters(), all=query.flag("all"), keep_bytes=keep)
        return json_response({"CachesDeleted": removed or None, "SpaceReclaimed": freed})


def _read(request: Request) -> BuildRequest:
    query = request.query
    if query.text("version") == "2":
        raise NotImplementedHere(
            "POST /build is the classic builder's: clients of BuildKit use /grpc (or DOCKER_BUILDKIT=0)"
        )
    if query.text("outputs"):
        raise InvalidParameter("outputs are not supported by the classic build API")
    return BuildRequest(
        dockerfile=query.text("dockerfile") or "Dockerfile",
        tags=tuple(tag for tag in query.texts("t") if tag),
        remote=query.text("remote"),
        build_args=_json(query, "buildargs", dict[str, str | None], {}),
        labels=_json(query, "labels", dict[str, str], {}),
        target=query.text("target"),
        no_cache=query.flag("nocache"),
        cache_from=tuple(_json(query, "cachefrom", list[str], [])),
        pull=query.flag("pull"),
        remove=query.flag("rm", default=True),
        quiet=query.flag("q"),
        squash=query.flag("squash"),
        platform=query.text("platform").lower(),
        host=_host(query),
        credentials=_credentials(request),
        secrets=_secrets(request),
        entitlements=_entitlements(query),
    )


def _entitlements(query: Query) -> frozenset[str]:
    """Read a parameter of ours. Raises InvalidParameter."""
    found = frozenset(query.texts("allow"))
    if not found <= ENTITLEMENTS:
        raise InvalidParameter(f"unknown entitlement {sorted(found - ENTITLEMENTS)[0]}")
    return found


def _host(query: Query) -> HostConfig:
    return HostConfig(
        memory=query.number("memory") or 0,
        memory_swap=query.number("memswap") or 0,
        cpu_shares=query.number("cpushares") or 0,
        cpu_period=query.number("cpuperiod") or 0,
        cpu_quota=query.number("cpuquota") or 0,
        cpuset_cpus=query.text("cpusetcpus"),
        cpuset_mems=query.text("cpusetmems"),
        cgroup_parent=query.text("cgroupparent"),
        shm_size=query.number("shmsize") or 0,
        network_mode=query.text("networkmode"),
        extra_hosts=query.texts("extrahosts") or None,
        security_opt=query.texts("securityopt") or None,
        ulimits=_json(query, "ulimits", list[Ulimit], []) or None,
        isolation=query.text("isolation"),
    )


def _json(query: Query, name: str, kind: type[T], default: T) -> T:
    text = query.text(name)
    if not text or text == "null":
        return default
    try:
        return codec.decode(text, kind)
    except ValueError as error:
        raise InvalidParameter(f"error reading {name}: {error}") from error


def _credentials(request: Request) -> dict[str, Credentials]:
    """Read X-Registry-Config: credentials by registry. Raises InvalidParameter."""
    found = _header(request, REGISTRY_CONFIG_HEADER, dict[str, AuthConfig])
    return {server: to_credentials(config) for server, config in (found or {}).items()}


def _secrets(request: Request) -> dict[str, bytes]:
    """Read proa's own header for ``RUN --mount=type=secret``. Raises InvalidParameter."""
    found = _header(request, SECRETS_HEADER, dict[str, str])
    try:
        return {name: base64.b64decode(data, validate=True) for name, data in (found or {}).items()}
    except binascii.Error as error:
        raise InvalidParameter(f"invalid {SECRETS_HEADER} header: {error}") from error


def _header(request: Request, name: str, kind: type[T]) -> T | None:
    text = request.headers.get(name.lower(), "")
    if not text:
        return None
    if len(text) > HEADER_MAX_BYTES:
        raise InvalidParameter(f"invalid {name} header: it is too long")
    try:
        padded = text.translate(str.maketrans("+/", "-_")).rstrip("=")
        data = base64.b64decode(padded + "=" * (-len(padded) % 4), altchars=b"-_", validate=True)
        return codec.decode(data, kind) if data.strip() not in (b"", b"null") else None
    except ValueError as error:
        raise InvalidParameter(f"invalid {name} header: {error}") from error

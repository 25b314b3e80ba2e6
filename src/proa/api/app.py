# SPDX-License-Identifier: Apache-2.0
"""The application: from the head of a request to its handler.

``build_app`` registers every route of ``proa.wire.routes`` and fails when one has no handler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import h11

from proa import __version__
from proa.api.connection import Connection
from proa.api.container_streams import Backend as ContainerStreamBackend
from proa.api.container_streams import ContainerStreamRoutes
from proa.api.containers import Backend as ContainerBackend
from proa.api.containers import ContainerRoutes, ExecIds
from proa.api.execs import Backend as ExecBackend
from proa.api.execs import ExecRoutes
from proa.api.images import Backend as ImageBackend
from proa.api.images import ImageRoutes
from proa.api.networks import Backend as NetworkBackend
from proa.api.networks import NetworkRoutes
from proa.api.query import Query
from proa.api.refusals import RefusedRoutes
from proa.api.request import Request
from proa.api.response import Response
from proa.api.router import Router, split_version
from proa.api.system import Backend as SystemBackend
from proa.api.system import SystemRoutes
from proa.api.volumes import Backend as VolumeBackend
from proa.api.volumes import VolumeRoutes
from proa.wire.routes import ROUTES
from proa.wire.system import API_VERSION


class Containers(ContainerBackend, ContainerStreamBackend, Protocol):
    """The container use cases of both modules of routes."""


class Execs(ExecBackend, ExecIds, Protocol):
    """The exec use cases."""


class Engine(Protocol):
    """The use cases by resource; ``proa.engine.engine.Engine`` is the real one."""

    @property
    def system(self) -> SystemBackend: ...
    @property
    def containers(self) -> Containers: ...
    @property
    def execs(self) -> Execs: ...
    @property
    def images(self) -> ImageBackend: ...
    @property
    def volumes(self) -> VolumeBackend: ...
    @property
    def networks(self) -> NetworkBackend: ...


class Application:
    """Finds the handler of a request and runs it."""

    def __init__(self, router: Router, *, server: str) -> None:
        self._router = router
        self._headers = (
            (b"Api-Version", API_VERSION.encode()),
            (b"Docker-Experimental", b"false"),
            (b"Ostype", b"linux"),
            (b"Server", server.encode()),
        )

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """Headers of every answer; clients negotiate the version by the first."""
        return self._headers

    async def __call__(self, head: h11.Request, connection: Connection) -> Response | None:
        path, _, query = _origin_form(head.target.decode("ascii", "replace")).partition("?")
        version, path = split_version(path)
        match = self._router.match(head.method.decode("ascii"), path)
        request = Request(
            method=head.method.decode("ascii"),
            path=path,
            version=version,
            headers={name.decode("ascii"): value.decode("latin-1") for name, value in head.headers},
            query=Query(query),
            params=match.params,
            exchange=connection,
        )
        if match.watch:
            return await connection.watched(match.handler(request))
        return await match.handler(request)


def _origin_form(target: str) -> str:
    """Drop the scheme and host that a client behind a proxy writes. Source: RFC 9112, section 3.2.2."""
    if target.startswith(("http://", "https://")):
        _, _, rest = target.partition("://")
        return "/" + rest.partition("/")[2]
    return target


def build_app(engine: Engine) -> Application:
    """Register every route. Raises AssertionError when one of ``proa.wire.routes`` has no handler."""
    router = Router()
    SystemRoutes(engine.system).register(router)
    ContainerRoutes(engine.containers, engine.execs).register(router)
    ContainerStreamRoutes(engine.containers).register(router)
    ExecRoutes(engine.execs).register(router)
    ImageRoutes(engine.images).register(router)
    VolumeRoutes(engine.volumes).register(router)
    NetworkRoutes(engine.networks).register(router)
    RefusedRoutes().register(router)
    missing = set(ROUTES.values()) - router.routes
    if missing:
        raise AssertionError(f"routes without a handler: {sorted(route.path for route in missing)}")
    return Application(router, server=f"proa/{__version__} (linux)")

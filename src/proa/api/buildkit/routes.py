# SPDX-License-Identifier: Apache-2.0
"""Routes of BuildKit's API: connections that become gRPC. Source: Engine API, Session; moby, POST /grpc.

gRPC and its messages take 110 ms to import: the first client pays for them, not the daemon's start.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, BinaryIO, Protocol

import anyio

from proa.api.request import Request
from proa.api.router import Router
from proa.engine.building.builds import CacheRecord
from proa.engine.building.request import BuildRequest, Room, Tell
from proa.engine.filters import Filters
from proa.model.errors import InvalidParameter
from proa.model.ids import Digest
from proa.wire import routes

if TYPE_CHECKING:
    from proa.api.buildkit.sessions import Sessions

ID_HEADER = "x-docker-expose-session-uuid"
SHARED_KEY_HEADER = "x-docker-expose-session-sharedkey"


class Backend(Protocol):
    """What BuildKit's services need of the engine."""

    async def build(
        self, request: BuildRequest, context: AsyncIterator[bytes], tell: Tell, room: Room
    ) -> Digest: ...
    async def records(self, filters: Filters | None = None) -> list[CacheRecord]: ...
    @property
    def host_gateway(self) -> IPv4Address | None: ...
    def knows_context(self, key: str) -> bool: ...
    def spool(self) -> BinaryIO: ...
    async def prune(self, filters: Filters, *, all: bool, keep_bytes: int = 0) -> tuple[list[str], int]: ...


class BuildKitRoutes:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._sessions: Sessions | None = None

    def register(self, router: Router) -> None:
        router.add(routes.SESSION, self.session)
        router.add(routes.GRPC, self.grpc)

    async def session(self, request: Request) -> None:
        """Call the client over its own connection for as long as it stays."""
        from proa.api.buildkit.transport import connected

        name = request.headers.get(ID_HEADER, "")
        _check_upgrade(request)
        if not name or len(name) > 128:
            raise InvalidParameter(f"a session needs the header {ID_HEADER}")
        sessions, shared_key = self._all(), request.headers.get(SHARED_KEY_HEADER, "")
        raw = await request.hijack("")
        async with connected(raw) as (channel, left), sessions.opened(name, channel, shared_key):
            await left.wait()

    async def grpc(self, request: Request) -> None:
        """Serve BuildKit's services for as long as the client stays."""
        from proa.api.buildkit.control import Client
        from proa.api.buildkit.transport import serve

        _check_upgrade(request)
        sessions = self._all()
        raw = await request.hijack("")
        async with anyio.create_task_group() as group:
            await serve(raw, Client(self._backend, sessions, group).services())
            group.cancel_scope.cancel()

    def _all(self) -> Sessions:
        from proa.api.buildkit.sessions import Sessions

        if self._sessions is None:
            self._sessions = Sessions()
        return self._sessions


def _check_upgrade(request: Request) -> None:
    if request.headers.get("upgrade", "").lower() != "h2c":
        raise InvalidParameter("this is gRPC: the request must ask for an upgrade to h2c")

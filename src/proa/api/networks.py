# SPDX-License-Identifier: Apache-2.0
"""Routes of networks. Source: Engine API, tag Network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec.structs import replace

from proa.api.request import Request
from proa.api.response import NO_CONTENT, Response, json_response
from proa.api.router import Router
from proa.api.shapes_networks import network, parse_request
from proa.engine.filters import Filters
from proa.model.config import EndpointSettings
from proa.model.errors import InvalidParameter
from proa.model.network import Endpoint, Network, NetworkRequest
from proa.wire import networks as wire
from proa.wire import routes


class Backend(Protocol):
    """What these routes need of the engine. ``ref`` is a name, an id or a unique id prefix."""

    async def create(self, request: NetworkRequest) -> Network: ...
    def get(self, ref: str) -> Network: ...
    async def list(self, filters: Filters) -> Sequence[Network]: ...
    def endpoints(self, network: Network) -> Sequence[Endpoint]: ...
    async def remove(self, ref: str) -> None: ...
    async def prune(self, filters: Filters) -> Sequence[str]: ...
    async def connect(self, ref: str, container_ref: str, settings: EndpointSettings) -> None: ...
    async def disconnect(self, ref: str, container_ref: str, *, force: bool) -> None: ...


class NetworkRoutes:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def register(self, router: Router) -> None:
        router.add(routes.NETWORK_LIST, self.list)
        router.add(routes.NETWORK_CREATE, self.create)
        router.add(routes.NETWORK_PRUNE, self.prune)
        router.add(routes.NETWORK_INSPECT, self.inspect)
        router.add(routes.NETWORK_DELETE, self.delete)
        router.add(routes.NETWORK_CONNECT, self.connect)
        router.add(routes.NETWORK_DISCONNECT, self.disconnect)

    async def list(self, request: Request) -> Response:
        found = await self._backend.list(request.query.filters())
        return json_response([network(one, ()) for one in found])

    async def create(self, request: Request) -> Response:
        body = await request.json(wire.NetworkCreateRequest) or wire.NetworkCreateRequest()
        made = await self._backend.create(parse_request(body))
        return json_response(wire.NetworkCreated(id=made.id), 201)

    async def inspect(self, request: Request) -> Response:
        found = self._backend.get(request.params["id"])
        return json_response(network(found, self._backend.endpoints(found)))

    async def delete(self, request: Request) -> Response:
        await self._backend.remove(request.params["id"])
        return NO_CONTENT

    async def connect(self, request: Request) -> Response:
        body = await request.json(wire.NetworkConnectRequest) or wire.NetworkConnectRequest()
        found = self._backend.get(request.params["id"])
        settings = replace(body.endpoint_config or EndpointSettings(), network_id=found.id)
        await self._backend.connect(found.id, _named(body.container), settings)
        return Response()

    async def disconnect(self, request: Request) -> Response:
        body = await request.json(wire.NetworkDisconnectRequest) or wire.NetworkDisconnectRequest()
        await self._backend.disconnect(request.params["id"], _named(body.container), force=body.force)
        return Response()

    async def prune(self, request: Request) -> Response:
        names = await self._backend.prune(request.query.filters())
        return json_response(wire.NetworksPruned(networks_deleted=list(names)))


def _named(container: str) -> str:
    if not container:
        raise InvalidParameter("container name or id is missing")
    return container

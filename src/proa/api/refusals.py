# SPDX-License-Identifier: Apache-2.0
"""Routes of the Engine API that proa answers with a sentence instead of the deed.

Source: Engine API, tags Swarm, Node, Service, Task, Secret, Config, Plugin; the sentence of a node outside a
swarm is dockerd's.
"""

from __future__ import annotations

from proa.api.request import Handler, Request
from proa.api.response import Response, json_response
from proa.api.router import Router
from proa.model.errors import NotFound, NotImplementedHere, Unavailable
from proa.wire import routes

_SWARM_PATHS = ("/swarm", "/nodes", "/services", "/tasks", "/secrets", "/configs")
_NO_SWARM = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node '
    "to swarm and try again."
)


def refuse(message: str) -> Handler:
    """Return a handler that answers 501 with this sentence."""

    async def handler(request: Request) -> Response:
        raise NotImplementedHere(message)

    return handler


class RefusedRoutes:
    """Swarm, plugins, building."""

    def register(self, router: Router) -> None:
        for path in _SWARM_PATHS:
            router.add_prefix(path, self.swarm)
        router.add(routes.PLUGIN_LIST, self.plugins)
        router.add_prefix("/plugins", self.plugin)
        router.add(routes.IMAGE_BUILD, refuse("proa cannot build images yet"))
        router.add(routes.BUILD_PRUNE, self.prune_builds)
        router.add(routes.SESSION, refuse("proa cannot build images yet"))
        router.add(routes.CONTAINER_ATTACH_WEBSOCKET, refuse("proa cannot attach by websocket yet"))

    async def swarm(self, request: Request) -> Response:
        raise Unavailable(_NO_SWARM)

    async def prune_builds(self, request: Request) -> Response:
        """There is no build cache, and so nothing to free: ``docker system prune`` asks for it too."""
        return json_response({"CachesDeleted": None, "SpaceReclaimed": 0})

    async def plugins(self, request: Request) -> Response:
        return json_response([])

    async def plugin(self, request: Request) -> Response:
        if request.method == "GET":
            raise NotFound(f'plugin "{request.path.removeprefix("/plugins/")}" not found')
        raise NotImplementedHere("proa has no plugins")

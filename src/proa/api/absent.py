# SPDX-License-Identifier: Apache-2.0
"""The parts of the Engine API that proa leaves out: swarm, plugins.

Each answers as an engine on which that part is not in use, so that clients which ask along the way (compose,
``docker info``, ``docker system prune``) go on, and users who want it read why not.

Source: Engine API, tags Swarm, Node, Service, Task, Secret, Config, Plugin; the sentences of a node
outside a swarm are dockerd's.
"""

from __future__ import annotations

from proa.api.request import Handler, Request
from proa.api.response import Response, json_response
from proa.api.router import Router
from proa.model.errors import EngineError, NotFound, NotImplementedHere, Unavailable
from proa.wire import routes
from proa.wire.routes import Route

NOT_A_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node '
    "to swarm and try again."
)
_NOT_IN_SWARM = "This node is not part of a swarm"
_NO_SWARM = "proa has no swarm: it runs containers on this host alone"
_NO_PLUGINS = "proa has no plugins: volumes, networks and logs are its own"

_MANAGED = """
    GET /swarm, POST /swarm/update, GET /swarm/unlockkey,
    GET /nodes, GET /nodes/{id}, DELETE /nodes/{id}, POST /nodes/{id}/update,
    GET /services, POST /services/create, GET /services/{id}, DELETE /services/{id},
    POST /services/{id}/update, GET /services/{id}/logs,
    GET /tasks, GET /tasks/{id}, GET /tasks/{id}/logs,
    GET /secrets, POST /secrets/create, GET /secrets/{id}, DELETE /secrets/{id}, POST /secrets/{id}/update,
    GET /configs, POST /configs/create, GET /configs/{id}, DELETE /configs/{id}, POST /configs/{id}/update
"""
_NAMED_PLUGIN = """
    GET /plugins/{name:path}/json, DELETE /plugins/{name:path}, POST /plugins/{name:path}/enable,
    POST /plugins/{name:path}/disable, POST /plugins/{name:path}/upgrade, POST /plugins/{name:path}/push,
    POST /plugins/{name:path}/set
"""


class AbsentRoutes:
    """Swarm, plugins."""

    def register(self, router: Router) -> None:
        for route in _routes(_MANAGED):
            router.add(route, _raising(Unavailable, NOT_A_MANAGER))
        for route in _routes("POST /swarm/leave, POST /swarm/unlock"):
            router.add(route, _raising(Unavailable, _NOT_IN_SWARM))
        for route in _routes("POST /swarm/init, POST /swarm/join"):
            router.add(route, _raising(Unavailable, _NO_SWARM))
        router.add(routes.PLUGIN_LIST, self.plugins)
        for route in _routes("GET /plugins/privileges, POST /plugins/pull, POST /plugins/create"):
            router.add(route, _raising(NotImplementedHere, _NO_PLUGINS))
        for route in _routes(_NAMED_PLUGIN):
            router.add(route, self.plugin)

    async def plugins(self, request: Request) -> Response:
        return json_response([])

    async def plugin(self, request: Request) -> Response:
        raise NotFound(f'plugin "{request.params["name"]}" not found')


def _routes(text: str) -> list[Route]:
    return [Route(*line.split()) for line in text.split(",")]


def _raising(kind: type[EngineError], message: str) -> Handler:
    async def handler(request: Request) -> Response:
        raise kind(message)

    return handler

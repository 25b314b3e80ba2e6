# SPDX-License-Identifier: Apache-2.0
"""Routes of the Engine API that proa answers with a sentence instead of the deed, until it can do it."""

from __future__ import annotations

from proa.api.request import Handler, Request
from proa.api.response import Response, json_response
from proa.api.router import Router
from proa.model.errors import NotImplementedHere
from proa.wire import routes


def refuse(message: str) -> Handler:
    """Return a handler that answers 501 with this sentence."""

    async def handler(request: Request) -> Response:
        raise NotImplementedHere(message)

    return handler


class RefusedRoutes:
    """Building."""

    def register(self, router: Router) -> None:
        router.add(routes.IMAGE_BUILD, refuse("proa cannot build images yet"))
        router.add(routes.BUILD_PRUNE, self.prune_builds)
        router.add(routes.CONTAINER_ATTACH_WEBSOCKET, refuse("proa cannot attach by websocket yet"))

    async def prune_builds(self, request: Request) -> Response:
        """There is no build cache, and so nothing to free: ``docker system prune`` asks for it too."""
        return json_response({"CachesDeleted": None, "SpaceReclaimed": 0})

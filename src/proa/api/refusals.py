# SPDX-License-Identifier: Apache-2.0
"""Routes of the Engine API that proa answers with a sentence instead of the deed, until it can do it."""

from __future__ import annotations

from proa.api.request import Handler, Request
from proa.api.response import Response
from proa.api.router import Router
from proa.model.errors import NotImplementedHere
from proa.wire import routes


def refuse(message: str) -> Handler:
    """Return a handler that answers 501 with this sentence."""

    async def handler(request: Request) -> Response:
        raise NotImplementedHere(message)

    return handler


class RefusedRoutes:
    """Streams that proa does not have yet."""

    def register(self, router: Router) -> None:
        router.add(routes.CONTAINER_ATTACH_WEBSOCKET, refuse("proa cannot attach by websocket yet"))

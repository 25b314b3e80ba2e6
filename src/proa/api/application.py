# SPDX-License-Identifier: Apache-2.0
"""From the head of a request to its handler: version, route, query. Source: Engine API, "Versioning"."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import h11

from proa.api.connection import Connection
from proa.api.query import Query
from proa.api.request import Request
from proa.api.response import Response
from proa.api.router import Router, split_version
from proa.wire.routes import API_VERSION

log = logging.getLogger(__name__)


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
    def router(self) -> Router:
        return self._router

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """Headers of every answer; clients negotiate the version by the first."""
        return self._headers

    async def __call__(self, head: h11.Request, connection: Connection) -> Response | None:
        path, _, query = _origin_form(head.target.decode("ascii", "replace")).partition("?")
        log.debug("%s %s", head.method.decode("ascii"), path)
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

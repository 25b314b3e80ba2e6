# SPDX-License-Identifier: Apache-2.0
"""Keeps web pages away from a TCP port without TLS.

Whoever can connect to such a port may drive the engine, and every page in a browser on this host can make the
browser connect: with a request of its own (it then carries ``Origin`` or ``Sec-Fetch-Site``, or is a form),
or by giving its own name this host's address (``Host`` then has that name). Clients of the Engine API send
none of these.

Source: Fetch standard, "Origin header" and "CORS-safelisted request-header"; W3C Fetch Metadata, section 2;
RFC 9110, section 7.2 (Host).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

import h11

from proa.api.connection import Connection, Dispatch
from proa.api.errors import RequestError
from proa.api.response import Response

_FORMS = (b"application/x-www-form-urlencoded", b"multipart/form-data")


class LoopbackGuard:
    """A ``Dispatch`` that answers 403 to what a web page could have sent."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        return self._dispatch.headers

    async def __call__(self, head: h11.Request, connection: Connection) -> Response | None:
        if reason := suspicion(head):
            raise RequestError(403, f"{reason}: this port without TLS does not serve web pages")
        return await self._dispatch(head, connection)


def suspicion(head: h11.Request) -> str:
    """Return why a request may come from a web page; "" when it cannot."""
    fields = dict(head.headers)
    host = fields.get(b"host", b"").decode("latin-1")
    if not is_loopback_name(host):
        return f'the Host header "{host}" is not a loopback address'
    if b"origin" in fields:
        return "the request has an Origin header"
    if fields.get(b"sec-fetch-site", b"none") != b"none":
        return "the request has a Sec-Fetch-Site header"
    kind = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind in _FORMS:
        return "the request is a form"
    return ""


def is_loopback_name(host: str) -> bool:
    """Tell whether HOST[:PORT] can only mean this host: localhost, 127.0.0.0/8 or [::1]."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False

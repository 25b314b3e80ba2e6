# SPDX-License-Identifier: Apache-2.0
"""Logging in to a registry, and searching Docker Hub's index.

Source: Engine API, SystemAuth, ImageSearch; Docker Engine 28, registry/auth.go and search.go.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import urlencode

import msgspec

from proa.distribution.authorizer import Authorizer
from proa.distribution.challenge import parse_challenges
from proa.distribution.endpoints import HUB_DOMAIN, HUB_URL, Endpoint
from proa.distribution.errors import Refused, RegistryFailed
from proa.distribution.transport import Transport, Unreachable, check, read_document
from proa.model.errors import Unauthenticated
from proa.model.registry import Credentials, LoggedIn, SearchResult

T = TypeVar("T")

INDEX_URL = "https://index.docker.io"
_SEARCH_MAX_BYTES = 4 * 1024 * 1024


class _Result(msgspec.Struct, frozen=True):
    name: str = ""
    description: str | None = None
    star_count: int = 0
    is_official: bool = False
    is_automated: bool = False


class _Results(msgspec.Struct, frozen=True):
    results: list[_Result] | None = None


async def log_in(transport: Transport, endpoint: Endpoint, credentials: Credentials) -> LoggedIn:
    """Ask the registry whether it knows the user.

    :raises Unauthenticated: it does not.
    :raises RegistryFailed: it cannot be asked.
    """
    return await _ask(transport, endpoint, endpoint.url, partial(_log_in, transport, credentials=credentials))


async def _log_in(transport: Transport, base: str, *, credentials: Credentials) -> LoggedIn:
    url = f"{base}/v2/"
    authorizer = Authorizer(transport, base, credentials, wants_identity=True)
    async with transport.send("GET", url) as answer:
        status, headers = answer.status, answer.headers.getall("WWW-Authenticate", [])
    if status == HTTPStatus.UNAUTHORIZED:
        try:
            authorization = await authorizer.answer(parse_challenges(headers), ())
        except Refused as error:
            if error.is_passing:
                raise
            raise Unauthenticated(f'Get "{url}": {error.message}') from error
        async with transport.send("GET", url, authorization=authorization) as answer:
            status = answer.status
    if status != HTTPStatus.OK:
        phrase = HTTPStatus(status).phrase if status in list(HTTPStatus) else ""
        sentence = f"login attempt to {url} failed with status: {status} {phrase}".strip()
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise Unauthenticated(sentence)
        raise RegistryFailed(sentence)
    return LoggedIn(status="Login Succeeded", identity_token=authorizer.identity_token)


async def search(
    transport: Transport, endpoint: Endpoint, term: str, limit: int, credentials: Credentials
) -> Sequence[SearchResult]:
    """Return repositories of the index that fit the term, at most ``limit``."""
    base = INDEX_URL if endpoint.url == HUB_URL else endpoint.url
    return await _ask(
        transport,
        endpoint,
        base,
        partial(_search, transport, term=term, limit=limit, credentials=credentials),
    )


async def _search(
    transport: Transport, base: str, *, term: str, limit: int, credentials: Credentials
) -> Sequence[SearchResult]:
    url = f"{base}/v1/search?{urlencode({'q': term, 'n': limit})}"
    authorization = ""
    if credentials.username and credentials.password:
        text = f"{credentials.username}:{credentials.password}".encode()
        authorization = f"Basic {base64.b64encode(text).decode()}"
    async with transport.send("GET", url, authorization=authorization) as answer:
        await check(answer, transport.timings)
        data = await read_document(answer, _SEARCH_MAX_BYTES, transport.timings)
    try:
        results = msgspec.json.decode(data, type=_Results).results or []
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RegistryFailed(f"invalid answer to a search: {error}") from error
    return [
        SearchResult(
            name=result.name,
            description=result.description or "",
            stars=result.star_count,
            is_official=result.is_official,
            is_automated=result.is_automated,
        )
        for result in results[:limit]
    ]


async def _ask(transport: Transport, endpoint: Endpoint, base: str, work: Callable[[str], Awaitable[T]]) -> T:
    """Do the work at ``base``; by plain HTTP when an insecure registry does not speak TLS."""
    try:
        return await work(base)
    except Unreachable:
        if not endpoint.is_insecure or transport.has_authority(endpoint.host):
            raise
        return await work("http://" + base.removeprefix("https://"))


def search_domain(term: str) -> tuple[str, str]:
    """Split ``host/term``; Docker Hub when there is no host."""
    first, slash, rest = term.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first):
        return first, rest
    return HUB_DOMAIN, term

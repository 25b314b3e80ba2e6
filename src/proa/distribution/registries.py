# SPDX-License-Identifier: Apache-2.0
"""All registries that this daemon can reach: the face of this package that the engine sees.

The HTTP client behind it is imported by the first call, in a thread: a daemon that never pulls never pays.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from anyio import to_thread

from proa.distribution.endpoints import credentials_for, find_endpoints, login_domain
from proa.distribution.errors import RegistryFailed
from proa.distribution.timings import Timings
from proa.distribution.trust import Trust
from proa.model.errors import InvalidParameter
from proa.model.registry import ANONYMOUS, Credentials, LoggedIn, RegistrySettings, SearchResult

if TYPE_CHECKING:
    from proa.distribution.repository import Repository
    from proa.distribution.transport import Transport

FETCH_PIECE_BYTES = 256 * 1024
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


class Registries:
    """Opens repositories, logs in, searches.

    :param environment: where proxies are named; None means the process's own.
    """

    def __init__(
        self,
        settings: RegistrySettings,
        *,
        environment: Mapping[str, str] | None = None,
        timings: Timings | None = None,
    ) -> None:
        self.settings = settings
        self.timings = timings or Timings()
        self._environment = os.environ if environment is None else environment
        self._trust = Trust(settings.certs_dirs)

    @asynccontextmanager
    async def open(
        self, domain: str, path: str, credentials: Credentials, *, push: bool = False
    ) -> AsyncIterator[Sequence[Repository]]:
        """Give the repository at each server of its registry, in the order in which they are to be asked.

        Mirrors get no credentials; for a push there are none.
        """
        module = await _load("repository")
        endpoints = await find_endpoints(domain, self.settings)
        own = credentials_for(domain, credentials)
        async with self._transport() as transport:
            yield [
                module.Repository(
                    transport, endpoint, path, ANONYMOUS if endpoint.is_mirror else own, push=push
                )
                for endpoint in endpoints
                if not (push and endpoint.is_mirror)
            ]

    async def log_in(self, credentials: Credentials) -> LoggedIn:
        """Check a user's credentials at ``credentials.server``. Raises Unauthenticated, RegistryFailed."""
        hub = await _load("hub")
        domain = login_domain(credentials.server)
        endpoint = (await find_endpoints(domain, self.settings))[-1]
        async with self._transport() as transport:
            answer: LoggedIn = await hub.log_in(transport, endpoint, credentials)
        return answer

    async def search(self, term: str, limit: int, credentials: Credentials) -> Sequence[SearchResult]:
        """Return repositories that fit a term (``host/term`` for another index than Docker Hub's)."""
        hub = await _load("hub")
        domain, text = hub.search_domain(term)
        endpoint = (await find_endpoints(domain, self.settings))[-1]
        async with self._transport() as transport:
            found: Sequence[SearchResult] = await hub.search(
                transport, endpoint, text, limit, credentials_for(domain, credentials)
            )
        return found

    @asynccontextmanager
    async def fetch(self, url: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give the content of an http or https address, piece by piece: what ADD reads.

        :raises RegistryFailed: the server cannot be reached, or does not keep to the protocol.
        :raises InvalidParameter: it answers with another status than 200.
        """
        async with self._transport() as transport, transport.send("GET", url) as answer:
            if answer.status != 200:
                raise InvalidParameter(f"invalid response status {answer.status}: {url}")
            yield answer.content.iter_chunked(FETCH_PIECE_BYTES)

    @asynccontextmanager
    async def fetch_from(self, url: str, offset: int) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """Give the content of an address from a byte on, and the byte that it does begin with: 0 when the
        server gives nothing but the whole.

        :raises RegistryFailed: as ``fetch``, and for a status that may pass (429, 5xx).
        :raises InvalidParameter: it answers with another status than 200 or 206.
        """
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        async with self._transport() as transport, transport.send("GET", url, headers=headers) as answer:
            if answer.status == 416 and offset:  # there is nothing after it
                yield offset, _nothing()
                return
            if answer.status == 429 or answer.status >= 500:
                raise RegistryFailed(f"response status {answer.status}: {url}", is_passing=True)
            if answer.status not in (200, 206):
                raise InvalidParameter(f"invalid response status {answer.status}: {url}")
            begins = 0
            if answer.status == 206:
                told = answer.headers.get("Content-Range", "")
                if not told.startswith(f"bytes {offset}-"):
                    raise RegistryFailed(f"{url}: asked for bytes from {offset} on, got {told[:80]!r}")
                begins = offset
            yield begins, answer.content.iter_chunked(FETCH_PIECE_BYTES)

    def proxies(self) -> Sequence[str]:
        """Return HTTP, HTTPS and exempted hosts as they may be shown: without passwords."""
        values = (
            self._environment.get(name) or self._environment.get(name.lower()) or "" for name in _PROXIES
        )
        return [_without_password(value) for value in values]

    @asynccontextmanager
    async def _transport(self) -> AsyncIterator[Transport]:
        module = await _load("transport")
        async with module.Transport(
            settings=self.settings, trust=self._trust, environment=self._environment, timings=self.timings
        ) as transport:
            yield transport


async def _nothing() -> AsyncIterator[bytes]:
    for piece in list[bytes]():
        yield piece


async def _load(name: str) -> ModuleType:
    return await to_thread.run_sync(importlib.import_module, f"proa.distribution.{name}")


def _without_password(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    if "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc=f"xxxxx:xxxxx@{parts.netloc.rpartition('@')[2]}"))

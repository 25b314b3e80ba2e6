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
from proa.distribution.timings import Timings
from proa.distribution.trust import Trust
from proa.model.registry import ANONYMOUS, Credentials, LoggedIn, RegistrySettings, SearchResult

if TYPE_CHECKING:
    from proa.distribution.repository import Repository
    from proa.distribution.transport import Transport

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

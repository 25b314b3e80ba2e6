# SPDX-License-Identifier: Apache-2.0
"""HTTP to registries: TLS of each host, proxies, redirects, deadlines. The one module that knows aiohttp.

It is imported by the first operation that needs a registry (see ``registries``): aiohttp takes a sixth of a
second, which the daemon's start shall not pay. Decision 0020.

A redirect is followed for GET and HEAD only, at most MAX_REDIRECTS times, never from TLS to plain HTTP, and
never from a registry elsewhere to this machine. ``Authorization`` goes to the host it was made for and to no
other. Compressed transfer is not asked for: what is hashed is what was stored.

Source: RFC 9110, section 15.4; Go, net/http, whose errors Docker's users know.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import TracebackType
from urllib.parse import urljoin, urlsplit

import aiohttp
import anyio
from aiohttp.abc import AbstractCookieJar
from anyio import to_thread
from yarl import URL

from proa import __version__
from proa.distribution.endpoints import host_name, is_insecure, is_internal, is_loopback
from proa.distribution.errors import ERROR_MAX_BYTES, Refused, RegistryFailed, parse_refusal
from proa.distribution.proxies import choose_proxy
from proa.distribution.timings import Timings
from proa.distribution.trust import Trust
from proa.model.registry import RegistrySettings

MAX_REDIRECTS = 10  # as Go's client
HEADER_MAX_BYTES = 32 * 1024  # of one header: signed addresses of storage clouds are long
READ_AHEAD_BYTES = 1024 * 1024  # taken from the network while a thread hashes and writes what came before
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

Answer = aiohttp.ClientResponse
Body = Callable[[], AsyncIterable[bytes]]
"""Makes the body of a request, anew for each attempt."""


class Unreachable(RegistryFailed):
    """No connection could be made: nothing has been said yet."""


class Transport:
    """Connections of one operation. An async context manager; they are closed at its end."""

    def __init__(
        self, *, settings: RegistrySettings, trust: Trust, environment: Mapping[str, str], timings: Timings
    ) -> None:
        self._settings = settings
        self._trust = trust
        self._environment = environment
        self.timings = timings
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Transport:
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            cookie_jar=_no_cookies(),
            connector=aiohttp.TCPConnector(limit=0),
            headers={"User-Agent": f"proa/{__version__} (linux)", "Accept-Encoding": "identity"},
            max_field_size=HEADER_MAX_BYTES,
            max_line_size=HEADER_MAX_BYTES,
            read_bufsize=READ_AHEAD_BYTES,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=self.timings.connect_s, sock_read=self.timings.idle_s
            ),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self._session.close()

    @asynccontextmanager
    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        authorization: str = "",
        body: Body | bytes | None = None,
    ) -> AsyncIterator[Answer]:
        """Make a request and give the head of its answer, of any status but a redirect that was followed.

        :raises Unreachable: no connection.
        :raises RegistryFailed: the answer is no HTTP, is late, or a redirect leads where it may not.
        """
        origin = origin_of(url)
        for _ in range(MAX_REDIRECTS + 1):
            sent = dict(headers or {})
            if authorization and origin_of(url) == origin:
                sent["Authorization"] = authorization
            async with self._exchange(method, url, sent, body) as answer:
                if answer.status not in _REDIRECTS or method not in ("GET", "HEAD"):
                    yield answer
                    return
                url = self._redirected(url, answer.headers.get("Location", ""))
        raise RegistryFailed(f'{method.title()} "{_shown(url)}": stopped after {MAX_REDIRECTS} redirects')

    @asynccontextmanager
    async def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: Body | bytes | None
    ) -> AsyncIterator[Answer]:
        """One request. Whatever breaks in it, in the block too, is one of our errors."""
        if not all("!" <= char <= "~" for char in url):  # it may be a stranger's, and is sent as it is
            raise RegistryFailed(f"{method.title()} {_shown(url)!r}: invalid URL")
        context = await self._context(url)
        data = body() if callable(body) else body
        failing = partial(_failure, method, url, timings=self.timings)
        async with AsyncExitStack() as stack:
            try:
                answer = await stack.enter_async_context(
                    self._session.request(
                        method,
                        URL(url, encoded=True),
                        headers=headers,
                        data=data,
                        allow_redirects=False,
                        ssl=context,
                        proxy=choose_proxy(url, self._environment),
                    )
                )
            except (aiohttp.ClientError, TimeoutError, ssl.SSLError, OSError, ValueError) as error:
                raise failing(error) from error
            try:
                yield answer
            except (aiohttp.ClientError, TimeoutError, ssl.SSLError) as error:
                raise failing(error) from error

    async def _context(self, url: str) -> ssl.SSLContext | bool:
        parts = urlsplit(url)
        if parts.scheme != "https":
            return True
        host = parts.netloc
        if host not in self._contexts:
            verify = self.has_authority(host) or not await is_insecure(host, self._settings)
            self._contexts[host] = await to_thread.run_sync(partial(self._trust.context, host, verify=verify))
        return self._contexts[host]

    def has_authority(self, host: str) -> bool:
        """Whether the host has an authority in certs.d, and must be verified."""
        return self._trust.has_authority(host)

    def _redirected(self, url: str, location: str) -> str:
        try:
            target = urljoin(url, location)
            before, after = urlsplit(url), urlsplit(target)
            is_sound = after.scheme in ("http", "https") and bool(after.hostname)
        except ValueError:
            is_sound = False
        if not location or not is_sound:
            raise RegistryFailed(f'Get "{_shown(url)}": a redirect leads nowhere')
        if before.scheme == "https" and after.scheme == "http" and not is_loopback(before.netloc):
            raise RegistryFailed(f'Get "{_shown(url)}": refusing a redirect from https to {_shown(target)}')
        if not is_internal(before.netloc) and _is_this_machine(after.netloc):
            raise RegistryFailed(f'Get "{_shown(url)}": refusing a redirect to {_shown(target)}')
        return target


async def read_document(answer: Answer, max_bytes: int, timings: Timings) -> bytes:
    """Return a whole body of at most ``max_bytes``. Raises RegistryFailed when it is longer, or too slow."""
    parts: list[bytes] = []
    total = 0
    with anyio.move_on_after(timings.document_s) as deadline:
        async for piece in answer.content.iter_any():
            total += len(piece)
            if total > max_bytes:
                raise RegistryFailed(
                    f"{_shown(str(answer.url))}: the answer is larger than {max_bytes} bytes"
                )
            parts.append(piece)
    if deadline.cancelled_caught:
        raise RegistryFailed(
            f"{_shown(str(answer.url))}: the answer takes longer than {timings.document_s:g} s",
            is_passing=True,
        )
    return b"".join(parts)


async def check(answer: Answer, timings: Timings) -> None:
    """Raise Refused when the answer's status is 400 or more."""
    if answer.status >= 400:
        raise Refused(parse_refusal(answer.status, await _read_some(answer, timings)))


async def _read_some(answer: Answer, timings: Timings) -> bytes:
    try:
        return await read_document(answer, ERROR_MAX_BYTES, timings)
    except RegistryFailed:
        return b""


def origin_of(url: str) -> tuple[str, str]:
    """Return what credentials are bound to: scheme and host with port."""
    parts = urlsplit(url)
    default = {"https": ":443", "http": ":80"}.get(parts.scheme, "")
    return parts.scheme, parts.netloc.lower().removesuffix(default)


def _no_cookies() -> AbstractCookieJar:
    return aiohttp.DummyCookieJar()


def _is_this_machine(host: str) -> bool:
    return is_loopback(host) or host_name(host).startswith(("169.254.", "fe80:"))


def _shown(url: str) -> str:
    """The URL without its query, which may hold a signature."""
    return url.partition("?")[0]


def _reason(error: OSError) -> str:
    if error.errno:
        return f"connect: {os.strerror(error.errno).lower()}"
    return str(error) or "connection closed"


def _failure(method: str, url: str, error: Exception, *, timings: Timings) -> RegistryFailed:
    """Return our error, in the words of Go's client."""
    request = f'{method.title()} "{_shown(url)}"'
    host = urlsplit(url).netloc
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Unreachable(f"{request}: dial tcp: lookup {host_name(host)}: no such host", is_passing=True)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", "") or str(error.certificate_error)
        return Unreachable(f"{request}: tls: failed to verify certificate: x509: {reason}")
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
        reason = str(getattr(error, "os_error", error))
        if "WRONG_VERSION_NUMBER" in reason or "RECORD_LAYER_FAILURE" in reason:
            return Unreachable(f"{request}: http: server gave HTTP response to HTTPS client")
        return Unreachable(f"{request}: tls: {reason}")
    if isinstance(error, aiohttp.ClientConnectorError):
        return Unreachable(f"{request}: dial tcp {host}: {_reason(error.os_error)}", is_passing=True)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Unreachable(
            f"{request}: dial tcp {host}: no connection within {timings.connect_s:g} s", is_passing=True
        )
    if isinstance(error, TimeoutError):
        return RegistryFailed(f"{request}: nothing came for {timings.idle_s:g} s", is_passing=True)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return Unreachable(f"{request}: proxyconnect: {error.status} {error.message}")
    if isinstance(error, aiohttp.ClientResponseError):
        return RegistryFailed(f"{request}: malformed HTTP response: {' '.join(error.message.split())}"[:500])
    if isinstance(error, aiohttp.InvalidURL | ValueError):
        return RegistryFailed(f"{request}: invalid URL: {error}"[:500])
    if isinstance(error, aiohttp.ClientPayloadError):
        return RegistryFailed(f"{request}: unexpected EOF", is_passing=True)
    return RegistryFailed(f"{request}: {error or 'EOF'}"[:500], is_passing=True)

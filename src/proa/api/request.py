# SPDX-License-Identifier: Apache-2.0
"""One request as a handler sees it: its parts, its body, and the ways to answer it piece by piece.

A handler either returns a ``Response``, or begins a stream or takes over the connection and returns None.
Until it has begun, an error becomes a plain status; afterwards the connection is cut, which is the only way
left to tell the client.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from proa.api.errors import RequestError
from proa.api.query import Query
from proa.api.response import Response
from proa.model.errors import InvalidParameter
from proa.wire import codec

T = TypeVar("T")

MAX_JSON_BYTES = (
    8 * 1024 * 1024
)  # the largest body we decode at once; a create with 1 MiB of labels fits well
JSON = "application/json"


class RawStream(Protocol):
    """A connection taken over: no HTTP any more, two directions that end independently."""

    async def receive(self) -> bytes:
        """Return the next bytes; b"" when the client has ended its direction."""
        ...

    async def send(self, data: bytes) -> None:
        """Write all of it. Raises anyio.BrokenResourceError when the client is gone."""
        ...

    async def send_eof(self) -> None:
        """End our direction. Raises anyio.BrokenResourceError."""
        ...

    def is_gone(self) -> bool:
        """Tell whether the client has closed both directions."""
        ...


class Exchange(Protocol):
    """What the connection does for a handler."""

    async def receive_body(self) -> bytes:
        """Return the next piece of the body; b"" at its end. Raises RequestError when it is cut off."""
        ...

    async def begin(self, status: int, content_type: str, headers: Mapping[str, str]) -> None:
        """Send the head of a streamed answer, at once."""
        ...

    async def send(self, data: bytes) -> None:
        """Send a piece of a streamed answer, at once. Raises anyio.BrokenResourceError."""
        ...

    async def hijack(self, content_type: str) -> RawStream:
        """Switch to the raw protocol (101 when the client asked for an upgrade, else 200)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request that has found its route. ``params`` are the names in the route's path, unquoted."""

    method: str
    path: str  # without the version prefix
    version: tuple[int, int]
    headers: Mapping[str, str]  # lower-case names
    query: Query
    params: Mapping[str, str]
    exchange: Exchange

    @property
    def has_body(self) -> bool:
        """Whether the head announced a body that is not empty."""
        return self.headers.get("content-length", "0") != "0" or "transfer-encoding" in self.headers

    async def begin(self, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        """Begin a streamed answer with status 200."""
        await self.exchange.begin(200, content_type, headers or {})

    async def send(self, data: bytes) -> None:
        """Send a piece of the streamed answer."""
        await self.exchange.send(data)

    async def hijack(self, content_type: str) -> RawStream:
        """Take over the connection."""
        return await self.exchange.hijack(content_type)

    async def iter_body(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives, however long it is."""
        while chunk := await self.exchange.receive_body():
            yield chunk

    async def body(self, limit: int = MAX_JSON_BYTES) -> bytes:
        """Return the whole body. Raises RequestError 413 beyond the limit."""
        if int(self.headers.get("content-length", "0")) > limit:
            raise RequestError(413, f"request body is larger than {limit} bytes")
        parts: list[bytes] = []
        total = 0
        async for chunk in self.iter_body():
            total += len(chunk)
            if total > limit:
                raise RequestError(413, f"request body is larger than {limit} bytes")
            parts.append(chunk)
        return b"".join(parts)

    async def json(self, kind: type[T]) -> T | None:
        """Decode the body; None when there is none. Raises InvalidParameter, which names the bad key."""
        content_type = self.headers.get("content-type", "")
        if not self.has_body:
            if content_type and _media_type(content_type) not in (JSON, "text/plain"):
                raise _wrong_type(content_type)
            return None
        if _media_type(content_type) != JSON:
            raise _wrong_type(content_type)
        data = await self.body()
        if not data.strip():
            raise InvalidParameter("invalid JSON: got EOF while reading request body")
        if data.strip() == b"null":  # Go's decoder leaves everything as it is
            return None
        try:
            return codec.decode(data, kind)
        except ValueError as error:
            raise InvalidParameter(f"invalid JSON: {error}") from error


Handler = Callable[[Request], Awaitable[Response | None]]


def _media_type(header: str) -> str:
    return header.partition(";")[0].strip().lower()


def _wrong_type(content_type: str) -> InvalidParameter:
    return InvalidParameter(f"unsupported Content-Type header ({content_type}): must be '{JSON}'")

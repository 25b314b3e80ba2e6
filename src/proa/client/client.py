# SPDX-License-Identifier: Apache-2.0
"""Typed calls of the Engine API.

The routes and messages are those of ``proa.wire``; a call names its route and the type of the answer:

    client.call(routes.CONTAINER_CREATE, query={"name": "x"}, body=request, returns=ContainerCreated)
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, TypeVar
from urllib.parse import urlencode

import msgspec

from proa.client.connection import Connection, Response
from proa.client.endpoint import Endpoint, environment_endpoint, host_endpoint
from proa.client.errors import ApiError, ConnectionLost, ProtocolError
from proa.wire import routes
from proa.wire.codec import decode
from proa.wire.errors import ErrorResponse
from proa.wire.filters import format_filters
from proa.wire.routes import API_VERSION, Route
from proa.wire.stdio import MULTIPLEXED, FrameReader

if TYPE_CHECKING:
    from proa.client.tls import TlsSocket

T = TypeVar("T")
_REPEATABLE = ("GET", "HEAD")
Query = Mapping[str, str | int | bool | Sequence[str] | None]


class Hijacked(msgspec.Struct, eq=False):
    """The raw connection of an attach or exec: output to read, input to send, half-close.

    :ivar multiplexed: output comes in frames of stdout and stderr; otherwise it is a terminal's, raw.
    """

    connection: Connection
    socket: socket.socket | TlsSocket
    multiplexed: bool
    leftover: bytes

    def iter_output(self) -> Iterator[tuple[int, bytes]]:
        """Yield (stream, data) until the daemon closes; stream 1 is stdout, 2 stderr."""
        reader = FrameReader()
        data = self.leftover or self._receive()
        while data:
            if self.multiplexed:
                yield from reader.feed(data)
            else:
                yield 1, data
            data = self._receive()

    def send(self, data: bytes) -> None:
        """Send standard input. Raises OSError when nobody reads it any more."""
        self.socket.sendall(data, socket.MSG_NOSIGNAL)

    def send_eof(self) -> None:
        """Say that no input follows. Idempotent."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the other side has left already

    def shut(self) -> None:
        """End both directions, so that a reader in another thread comes back."""
        with contextlib.suppress(OSError):  # the other side has left already
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.connection.close()

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(256 * 1024)
        except (ConnectionResetError, OSError):
            return b""


class Client:
    """Speaks to one daemon. Connections are kept and reused; a context manager closes them.

    :param endpoint: or its host alone; None takes what the environment names.
    :param version: of the API, "1.51"; None takes the newest that both sides know, asked once by a ping.
    """

    def __init__(self, endpoint: Endpoint | str | None = None, *, version: str | None = None) -> None:
        if isinstance(endpoint, str):
            endpoint = host_endpoint(endpoint)
        self.endpoint = endpoint or environment_endpoint()
        self._version = version
        self._idle: Connection | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def sibling(self) -> Client:
        """Return a client of the same daemon for another thread, which need not ask for the version again."""
        return Client(self.endpoint, version=self._version)

    def close(self) -> None:
        if self._idle is not None:
            self._idle.close()
            self._idle = None

    def call(
        self,
        route: Route,
        *,
        returns: type[T],
        query: Query | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        **path: str,
    ) -> T:
        """Make a call and decode its answer; ``returns=NoneType`` for one without content.

        Raises ApiError, ConnectionFailed, ProtocolError.
        """
        is_kept = self._idle is not None
        connection = self._take()
        try:
            response = self._request(connection, route, query, body, path, headers)
            data = response.read()
        except ConnectionLost:
            connection.close()
            if not is_kept or route.method not in _REPEATABLE:
                raise
            # It closed a connection that lay idle as we wrote to it: nothing was done.
            return self.call(route, returns=returns, query=query, body=body, headers=headers, **path)
        except BaseException:
            connection.close()
            raise
        self._give_back(connection)
        if returns is type(None):
            return returns()
        try:
            return decode(data, returns)
        except ValueError as error:
            raise ProtocolError(f"{route.method} {route.path}: {error}") from error

    def do(self, route: Route, *, query: Query | None = None, body: object = None, **path: str) -> None:
        """Make a call that has no answer but its success."""
        self.call(route, returns=type(None), query=query, body=body, headers=None, **path)

    @contextmanager
    def stream(
        self,
        route: Route,
        *,
        query: Query | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        **path: str,
    ) -> Iterator[Response]:
        """Make a call whose answer is read as it comes; on a connection of its own."""
        with Connection(self.endpoint) as connection:
            yield self._request(connection, route, query, body, path, headers)

    def iter_json(
        self,
        route: Route,
        kind: type[T],
        *,
        query: Query | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        **path: str,
    ) -> Iterator[T]:
        """Yield the JSON documents of an answer, one a line, as they come."""
        with self.stream(route, query=query, body=body, headers=headers, **path) as response:
            rest = b""
            for piece in response.iter_bytes():
                *lines, rest = (rest + piece).split(b"\n")
                for line in filter(bytes.strip, lines):
                    yield decode(line, kind)
            if rest.strip():
                yield decode(rest, kind)

    def hijack(
        self, route: Route, *, query: Query | None = None, body: object = None, tty: bool, **path: str
    ) -> Hijacked:
        """Make a call that turns its connection into a raw one (attach, exec start)."""
        connection = Connection(self.endpoint)
        try:
            headers = {"Connection": "Upgrade", "Upgrade": "tcp"}
            response = self._request(connection, route, query, body, path, headers)
        except BaseException:
            connection.close()
            raise
        kind = response.headers.get("content-type", "")
        return Hijacked(
            connection=connection,
            socket=connection.hijack(),
            multiplexed=kind == MULTIPLEXED or (not tty and response.status == 101),
            leftover=connection.leftover,
        )

    def _request(
        self,
        connection: Connection,
        route: Route,
        query: Query | None,
        body: object,
        path: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        sent = dict(headers or {})
        content: bytes | Iterable[bytes] | None = None
        if isinstance(body, bytes) or (
            isinstance(body, Iterable) and not isinstance(body, (dict, list, str))
        ):
            content, sent["Content-Type"] = body, "application/x-tar"
        elif body is not None:
            content, sent["Content-Type"] = msgspec.json.encode(body), "application/json"
        target = f"/v{self._negotiated(connection)}{route.url(**path)}{_query_string(query)}"
        response = connection.request(route.method, target, headers=sent, body=content)
        if response.status >= 400 or response.status == 304:
            raise ApiError(response.status, _error_message(response))
        return response

    def _negotiated(self, connection: Connection) -> str:
        """Return the API version to speak. Source: Engine API, SystemPingHead, Api-Version."""
        if self._version is None:
            response = connection.request(routes.PING_HEAD.method, routes.PING_HEAD.path, headers={})
            response.read()
            if response.status >= 400:
                self._refused_ping()
            theirs = response.headers.get("api-version", API_VERSION)
            self._version = min(theirs, API_VERSION, key=_version_key)
        return self._version

    def _refused_ping(self) -> NoReturn:
        """Ask again in the way that gets a sentence: an answer to HEAD has no body. Raises ApiError."""
        with Connection(self.endpoint) as other:
            response = other.request(routes.PING.method, routes.PING.path, headers={})
            raise ApiError(response.status, _error_message(response))

    def _take(self) -> Connection:
        connection, self._idle = self._idle, None
        if connection is not None and connection.is_stale:
            connection.close()
            connection = None
        return connection or Connection(self.endpoint)

    def _give_back(self, connection: Connection) -> None:
        if connection.is_reusable and self._idle is None:
            self._idle = connection
        else:
            connection.close()


def _version_key(version: str) -> tuple[int, ...]:
    """Return what versions are ordered by. Raises ProtocolError."""
    try:
        return tuple(int(part) for part in version.split("."))
    except ValueError as error:
        raise ProtocolError(f"the daemon names {version!r} as its API version") from error


def _query_string(query: Query | None) -> str:
    pairs: list[tuple[str, str]] = []
    for name, value in (query or {}).items():
        if value is None or value == "":
            continue
        if isinstance(value, bool):
            pairs.append((name, "1" if value else "0"))
        elif isinstance(value, (str, int)):
            pairs.append((name, str(value)))
        else:
            pairs += [(name, item) for item in value]
    return f"?{urlencode(pairs)}" if pairs else ""


def filters_query(filters: Mapping[str, Sequence[str]]) -> str | None:
    """Return the value of a ``filters`` parameter, None when there are none."""
    return format_filters(filters) or None


def _error_message(response: Response) -> str:
    body = response.read()
    try:
        return msgspec.json.decode(body, type=ErrorResponse).message
    except msgspec.MsgspecError:
        return body.decode("utf-8", "replace").strip() or f"the daemon answered with status {response.status}"

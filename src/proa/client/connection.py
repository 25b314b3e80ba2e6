# SPDX-License-Identifier: Apache-2.0
"""One HTTP/1.1 connection to a daemon, over a unix, TCP or TLS socket: requests, streams, and hijacking.

h11 knows the protocol; this module moves the bytes. A connection serves one request after another until a
stream is left unread or it is hijacked.

Source: RFC 9112; Engine API, ContainerAttach, "Hijacking".
"""

from __future__ import annotations

import select
import socket
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import h11

from proa.client.endpoint import Endpoint, TlsFiles
from proa.client.errors import ConnectionFailed, ConnectionLost, ProtocolError

if TYPE_CHECKING:
    from proa.client.tls import TlsSocket

_READ = 256 * 1024
CONNECT_TIMEOUT_S = 10.0


class Response:
    """The head of an answer, and its body piece by piece."""

    def __init__(self, connection: Connection, head: h11.Response | h11.InformationalResponse) -> None:
        self._connection = connection
        self.status = head.status_code
        self.headers: Mapping[str, str] = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in head.headers
        }

    def iter_bytes(self) -> Iterator[bytes]:
        """Yield the body as it comes. Raises ProtocolError when it is cut."""
        while True:
            try:
                event = self._connection.next_event()
            except h11.RemoteProtocolError as error:
                raise ProtocolError(f"the daemon's answer was cut: {error}") from error
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self._connection.finish_cycle()
                return
            else:
                raise ProtocolError("the daemon closed the connection in the middle of its answer")

    def read(self) -> bytes:
        """Return the whole body."""
        return b"".join(self.iter_bytes())


class Connection:
    """See the module. Close it, or use it as a context manager."""

    def __init__(self, endpoint: Endpoint, *, timeout_s: float | None = None) -> None:
        """Connect. Raises ConnectionFailed."""
        self._host = endpoint.host
        self._host_header = urlsplit(endpoint.host).netloc or "proa"
        self._socket = _connect(endpoint)
        self._socket.settimeout(timeout_s)
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=256 * 1024)

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_reusable(self) -> bool:
        """Whether another request can follow."""
        return self._h11.our_state is h11.IDLE and self._h11.their_state is h11.IDLE

    @property
    def is_stale(self) -> bool:
        """Whether the daemon has closed its end while the connection lay idle."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def close(self) -> None:
        self._socket.close()

    def request(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes] | None = None,
    ) -> Response:
        """Send a request and return the head of the answer.

        A body of pieces is sent chunked; when the daemon answers before its end, the rest is not sent.
        """
        sent = {"Host": self._host_header, **headers}
        if body is None or isinstance(body, bytes):
            if body is not None or method in ("POST", "PUT"):
                sent["Content-Length"] = str(len(body or b""))
        else:
            sent["Transfer-Encoding"] = "chunked"
        try:
            self._send(h11.Request(method=method, target=target, headers=list(sent.items())))
            self._send_body(body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon has answered already, and closed: its answer says why
        return self._head()

    def hijack(self) -> socket.socket | TlsSocket:
        """Take the socket out of HTTP, after a 101 or 200 of an attach; ``leftover`` first."""
        return self._socket

    @property
    def leftover(self) -> bytes:
        """What had been received beyond the head when the connection was hijacked."""
        data, _ = self._h11.trailing_data
        return data

    def next_event(self) -> object:
        """Return the next h11 event of the answer."""
        while True:
            event = self._h11.next_event()
            if event is not h11.NEED_DATA:
                return event
            try:
                data = self._socket.recv(_READ)
            except ConnectionResetError:
                data = b""
            try:
                self._h11.receive_data(data)
            except h11.RemoteProtocolError as error:
                raise ProtocolError(str(error)) from error

    def finish_cycle(self) -> None:
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()

    def _head(self) -> Response:
        while True:
            try:
                event = self.next_event()
            except h11.RemoteProtocolError as error:
                raise ProtocolError(f"{self._host} does not speak HTTP: {error}") from error
            if isinstance(event, h11.Response):
                return Response(self, event)
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    return Response(self, event)
                continue
            raise ConnectionLost("the daemon closed the connection without an answer")

    def _send_body(self, body: bytes | Iterable[bytes] | None) -> None:
        pieces = [body] if isinstance(body, bytes) else body or ()
        for piece in pieces:
            self._send(h11.Data(data=piece))
        self._send(h11.EndOfMessage())

    def _send(self, event: h11.Event) -> None:
        data = self._h11.send(event)
        if data:
            # The command line lets SIGPIPE end it; a daemon that answers early and closes must not.
            self._socket.sendall(data, socket.MSG_NOSIGNAL)


def _connect(endpoint: Endpoint) -> socket.socket | TlsSocket:
    host = endpoint.host
    try:
        parts = urlsplit(host)
        port = parts.port
    except ValueError as error:
        raise ConnectionFailed(host, error) from error
    try:
        if parts.scheme == "unix":
            connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connected.settimeout(CONNECT_TIMEOUT_S)
            connected.connect(parts.path)
            return connected
        if parts.scheme in ("tcp", "http", "https") and parts.hostname:
            return _connect_tcp(parts.hostname, port, endpoint.tls)
    except OSError as error:
        raise ConnectionFailed(host, error.strerror or error) from error
    raise ConnectionFailed(host, "use unix:///path or tcp://host:port")


def _connect_tcp(name: str, port: int | None, tls: TlsFiles | None) -> socket.socket | TlsSocket:
    if tls is None:
        return socket.create_connection((name, port or 2375), CONNECT_TIMEOUT_S)
    from proa.client.tls import TlsSocket, client_context  # only who speaks TLS waits for OpenSSL

    context = client_context(tls)
    connected = socket.create_connection((name, port or 2376), CONNECT_TIMEOUT_S)
    try:
        return TlsSocket(connected, context, name)
    except BaseException:
        connected.close()
        raise

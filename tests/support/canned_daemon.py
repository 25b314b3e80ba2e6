# SPDX-License-Identifier: Apache-2.0
"""A daemon of canned answers on a unix socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h11


@dataclass(slots=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Answer = bytes | Callable[[socket.socket, bytes], None]  # raw bytes, or what to do with a hijacked socket


@dataclass(slots=True)
class CannedDaemon:
    """Answers each request with what ``answers`` has for "METHOD /path", whatever the version prefix.

    :ivar hang_up: close each connection after its answer, without saying so.
    """

    path: Path
    api_version: str = "1.51"
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    hang_up: bool = False

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._converse, args=(client,), daemon=True).start()

    def _converse(self, client: socket.socket) -> None:
        with client:
            protocol = h11.Connection(h11.SERVER)
            while (request := _read(protocol, client)) is not None:
                self.requests.append(request)
                _, _, path = (
                    request.target.partition("/v") if request.target.startswith("/v") else ("", "", "")
                )
                path = "/" + path.partition("/")[2] if path else request.target
                key = f"{request.method} {path.partition('?')[0]}"
                if key == "HEAD /_ping":
                    answer: Answer = f"HTTP/1.1 200 OK\r\nApi-Version: {self.api_version}\r\n\r\n".encode()
                else:
                    answer = self.answers.get(key, reply(404, b'{"message":"page not found"}'))
                if callable(answer):
                    answer(client, protocol.trailing_data[0])
                    return
                client.sendall(answer)
                if self.hang_up:
                    return
                protocol = h11.Connection(h11.SERVER)


def _read(protocol: h11.Connection, client: socket.socket) -> Request | None:
    head: h11.Request | None = None
    body = b""
    while True:
        event = protocol.next_event()
        if event is h11.NEED_DATA:
            data = client.recv(65536)
            if not data:
                return None
            protocol.receive_data(data)
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        # It is paused when it is asked to upgrade.
        elif head is not None and (isinstance(event, h11.EndOfMessage) or event is h11.PAUSED):
            headers = {name.decode(): value.decode() for name, value in head.headers}
            return Request(head.method.decode(), head.target.decode(), headers, body)
        else:
            return None


def reply(status: int, body: bytes, kind: str = "application/json") -> bytes:
    """Return a whole answer."""
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@contextmanager
def canned_daemon(path: Path) -> Iterator[CannedDaemon]:
    """Serve at the path for the span of the block."""
    canned = CannedDaemon(path=path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(canned.path))
        listener.listen()
        threading.Thread(target=canned.serve, args=(listener,), daemon=True).start()
        yield canned
        listener.shutdown(socket.SHUT_RDWR)

# SPDX-License-Identifier: Apache-2.0
"""One client connection in HTTP/1.1, from its first byte to its close or to the takeover by a raw stream.

h11 knows the protocol and does no I/O; this module moves the bytes, sets the deadlines and runs one handler
at a time. Requests that arrive together wait in h11's buffer for their turn.

A body the handler did not want is read away when it is short; otherwise the answer says ``Connection: close``
and the connection lingers until the client has read it (closing a socket with unread data would destroy the
answer on its way).

Source: RFC 9112 (HTTP/1.1), RFC 9110 section 10.1.1 (Expect) and 7.8 (Upgrade); Engine API, "Hijacking".
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol

import anyio
import h11
from anyio import CancelScope

from proa.api.channel import Channel
from proa.api.errors import RequestError, describe
from proa.api.raw import ChannelRawStream
from proa.api.request import RawStream
from proa.api.response import Response, error_response

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024  # request line and headers; clients send less than one KiB
IDLE_S = 900.0  # between requests: Go's clients give up a pooled connection after 90 s, docker-py's never
HEAD_S = 60.0  # from the first byte of a request to the end of its head
BODY_S = 300.0  # between two pieces of a body
LINGER_S = 5.0  # for the client to read an early answer while it still sends its body
SHORT_BODY_BYTES = 1024 * 1024  # worth reading away to keep the connection

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}

Headers = list[tuple[bytes, bytes]]


class Dispatch(Protocol):
    """The application behind the connection."""

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """Headers of every answer."""
        ...

    async def __call__(self, head: h11.Request, connection: Connection) -> Response | None:
        """Answer one request: with a response, or None when the connection was used to answer."""
        ...


class Disconnected(Exception):
    """The client has gone; there is nobody left to answer."""


class Connection:
    """Serves one client, and is the ``Exchange`` of the request it is serving."""

    def __init__(self, channel: Channel, dispatch: Dispatch) -> None:
        self._channel = channel
        self._dispatch = dispatch
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._body_length: int | None = 0  # as announced; None when chunked
        self._wants_upgrade = b""  # to which protocol
        self._is_head = False
        self._body_done = anyio.Event()
        self._begun = False
        self._hijacked = False

    async def run(self, first: bytes = b"") -> None:
        """Serve requests until either side closes. ``first`` is what has been read already."""
        if first:
            self._http.receive_data(first)
        try:
            while await self._serve_one():
                self._http.start_next_cycle()
        except Disconnected:
            return
        except h11.LocalProtocolError:
            log.exception("an answer broke the rules of HTTP")

    async def _serve_one(self) -> bool:
        """Serve one request; tell whether another may follow."""
        self._body_done = anyio.Event()
        self._begun = False
        try:
            head = await self._next_head()
        except h11.RemoteProtocolError as error:
            await self._refuse(error)
            return False
        if head is None:
            return False
        response = await self._answer(head)
        if self._hijacked:
            return False
        if response is None and not self._begun:
            return False
        await self._finish(response)
        return await self._is_reusable()

    async def _answer(self, head: h11.Request) -> Response | None:
        """Run the handler; an error becomes a response while that is still possible."""
        try:
            return await self._dispatch(head, self)
        except Disconnected:
            raise
        except Exception as error:
            if self._hijacked and isinstance(error, anyio.BrokenResourceError):
                raise Disconnected from error
            status, message = describe(error)
            if self._begun or self._hijacked:
                log.warning("an answer was cut short: %s", message)
                raise Disconnected from error
            headers = error.headers if isinstance(error, RequestError) else None
            return error_response(status, message, headers)

    # --- reading ---

    async def _next_head(self) -> h11.Request | None:
        """Return the head of the next request; None when the connection ends or is idle for too long.

        Raises h11.RemoteProtocolError.
        """
        event = self._http.next_event()
        if event is h11.NEED_DATA:
            started = bool(self._http.trailing_data[0])
            with anyio.move_on_after(HEAD_S if started else IDLE_S) as scope:
                while event is h11.NEED_DATA:
                    await self._receive()
                    if not started:
                        started = True
                        scope.deadline = anyio.current_time() + HEAD_S
                    event = self._http.next_event()
        if not isinstance(event, h11.Request):
            return None
        self._body_length = _body_length(event)
        self._is_head = event.method == b"HEAD"
        self._wants_upgrade = next((value for name, value in event.headers if name == b"upgrade"), b"")
        if self._body_length == 0:
            self._http.next_event()  # the end of the message, which h11 knows already
            self._body_done.set()
        return event

    async def receive_body(self) -> bytes:
        """Return the next piece of the body, b"" at its end; tells a client that asked to send it."""
        while not self._body_done.is_set():
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                raise RequestError(400, f"broken request body: {error}") from error
            if isinstance(event, h11.Data):
                if event.data:
                    return bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self._body_done.set()
            elif event is h11.NEED_DATA:
                await self._ask_for_body()
                with anyio.move_on_after(BODY_S) as scope:
                    await self._receive()
                if scope.cancelled_caught:
                    raise RequestError(408, "the request body stopped coming")
            else:
                raise Disconnected
        return b""

    async def _ask_for_body(self) -> None:
        if self._http.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))

    async def _receive(self) -> None:
        self._http.receive_data(await self._channel.receive())

    async def watched(self, work: Awaitable[Response | None]) -> Response | None:
        """Run a handler that shall end when the client goes away. Raises Disconnected then."""
        outcome: Response | Exception | None = None
        gone = False

        async def watch(scope: CancelScope) -> None:
            nonlocal gone
            await self._body_done.wait()
            while len(self._http.trailing_data[0]) < MAX_HEAD_BYTES:
                data = await self._channel.receive()
                self._http.receive_data(data)
                if not data:
                    gone = True
                    scope.cancel()
                    return

        async with anyio.create_task_group() as group:
            group.start_soon(watch, group.cancel_scope)
            try:
                outcome = await work
            except Exception as error:  # noqa: BLE001 (raised again below, outside the task group)
                outcome = error
            group.cancel_scope.cancel()
        if gone:
            raise Disconnected
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    # --- writing ---

    async def begin(self, status: int, content_type: str, headers: Mapping[str, str]) -> None:
        """Send the head of a streamed answer."""
        fields = self._fields(content_type, headers)
        if not self._will_be_reusable():
            fields.append((b"Connection", b"close"))
        self._begun = True
        await self._send(_head(status, fields))

    async def send(self, data: bytes) -> None:
        """Send a piece of a streamed answer."""
        if data:
            await self._send(h11.Data(data=data))
            await anyio.lowlevel.checkpoint()  # a fast reader must not keep the loop for one stream

    async def hijack(self, content_type: str) -> RawStream:
        """Leave HTTP: 101 when the client asked for an upgrade, else 200 with no framing."""
        while not self._body_done.is_set():
            await self.receive_body()
        fields = self._fields(content_type, {})
        if self._http.next_event() is h11.PAUSED and self._wants_upgrade:
            protocol = b"h2c" if self._wants_upgrade.lower() == b"h2c" else b"tcp"
            fields += [(b"Connection", b"Upgrade"), (b"Upgrade", protocol)]
            head = self._http.send(
                h11.InformationalResponse(status_code=101, headers=fields, reason=b"UPGRADED")
            )
        else:
            lines = b"".join(b"%b: %b\r\n" % field for field in fields)
            head = b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n"
        leftover, ended = self._http.trailing_data
        self._hijacked = True
        await self._write(head)
        return ChannelRawStream(self._channel, leftover, ended=ended)

    async def _finish(self, response: Response | None) -> None:
        """Send a whole answer, or the end of a streamed one."""
        if response is None:
            await self._send(h11.EndOfMessage())
            return
        fields = self._fields(response.content_type, response.headers)
        if response.status not in (204, 304):
            fields.append((b"Content-Length", b"%d" % len(response.body)))
        if not self._will_be_reusable():
            fields.append((b"Connection", b"close"))
        data = self._http.send(_head(response.status, fields))
        if response.body and not self._is_head:
            data += self._http.send(h11.Data(data=response.body))
        data += self._http.send(h11.EndOfMessage())
        await self._write(data)

    async def _refuse(self, error: h11.RemoteProtocolError) -> None:
        """Answer what was not HTTP, when there is still somebody to read it."""
        if self._http.trailing_data[1] or self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        await self._finish(error_response(error.error_status_hint, f"malformed HTTP request: {error}"))
        await self._linger()

    def _fields(self, content_type: str, headers: Mapping[str, str]) -> Headers:
        fields = [*self._dispatch.headers, (b"Date", _date(int(time.time())))]
        if content_type:
            fields.append((b"Content-Type", content_type.encode()))
        fields += [(name.encode(), value.encode()) for name, value in headers.items()]
        return fields

    async def _send(
        self, event: h11.InformationalResponse | h11.Response | h11.Data | h11.EndOfMessage
    ) -> None:
        await self._write(self._http.send(event))

    async def _write(self, data: bytes) -> None:
        try:
            await self._channel.send(data)
        except anyio.BrokenResourceError as error:
            raise Disconnected from error

    # --- the end of an exchange ---

    def _will_be_reusable(self) -> bool:
        """Whether what is left of the request's body can be read away."""
        if self._body_done.is_set():
            return True
        if self._http.their_state is h11.ERROR or self._http.they_are_waiting_for_100_continue:
            return False  # whether the client will send the body it asked to send cannot be known
        return self._body_length is not None and self._body_length <= SHORT_BODY_BYTES

    async def _is_reusable(self) -> bool:
        """Read away the rest of the body; tell whether the connection can carry another request."""
        if self._http.our_state is not h11.DONE:
            if not self._body_done.is_set():
                await self._linger()
            return False
        with anyio.move_on_after(LINGER_S):
            try:
                while await self.receive_body():
                    pass
            except RequestError:
                return False
        return self._http.their_state is h11.DONE

    async def _linger(self) -> None:
        """Let the client read the answer although it has not finished its request."""
        with suppress(anyio.BrokenResourceError), anyio.move_on_after(LINGER_S):
            await self._channel.send_eof()
            while await self._channel.receive():
                pass


def _head(status: int, fields: Headers) -> h11.Response:
    return h11.Response(status_code=status, headers=fields, reason=_REASONS.get(status, b""))


def _body_length(head: h11.Request) -> int | None:
    """Return the announced length; None for a chunked body. h11 has checked both headers."""
    length = 0
    for name, value in head.headers:
        if name == b"transfer-encoding":
            return None
        if name == b"content-length":
            length = int(value)
    return length


_last_date = (0, b"")


def _date(now: int) -> bytes:
    """Return the Date header of this second."""
    global _last_date
    if _last_date[0] != now:
        _last_date = (now, formatdate(now, usegmt=True).encode())
    return _last_date[1]

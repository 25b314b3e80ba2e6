# SPDX-License-Identifier: Apache-2.0
"""One connection to a guest's agent: requests with their answers, and the traffic of its processes.

Owns the socket of the control port, not QEMU, nor the processes: frames that concern a process go to the
listener that was given. A request is refused unless the link is up; when the guest breaks the protocol, or
the other end goes, the link is down for good and every waiting request fails with OutcomeUnknown. A later
connection may be made by a new ``Channel``.

This is an ``asyncio.Protocol`` and not a pair of anyio tasks: frames are taken in the event loop's own
callback, so that a link costs no task, and an answer wakes its caller without a detour. Decision 0002 allows
asyncio behind one adapter; this is it.

Source: docs/reference/agent-protocol.md, sections 2 to 4.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from pathlib import Path
from typing import Protocol

import anyio

from proa.model.errors import Internal, OutcomeUnknown, Unavailable
from proa.runtime.vm import protocol
from proa.runtime.vm.protocol import Decoder, Fields, Frame, FrameType, Key, ProtocolError

log = logging.getLogger(__name__)

# Under software emulation on a busy host an answer may take seconds; a guest that needs longer is stuck.
ANSWER_TIMEOUT_S = 30.0


class AgentError(Exception):
    """The agent's answer was ERROR. ``code`` is what a failed start records, ``errno`` the guest's."""

    def __init__(self, message: str, *, code: int, errno: int) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.errno = errno


class Listener(Protocol):
    """Who is told of what the agent says unasked. Called in the event loop; must not block."""

    def on_frame(self, frame: Frame) -> None:
        """A frame of a process, or an event. May raise ProtocolError, which takes the link down."""
        ...

    def on_link_down(self) -> None:
        """The link is down. Called once."""
        ...


class _Waiter:
    """A request under way."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.answer: Frame | None = None


class Channel(asyncio.Protocol):
    """The link. Made by ``connect``; ``close`` when done with it.

    :ivar listener: may be replaced by who takes the link over.
    """

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self._nonce = secrets.token_bytes(protocol.NONCE_BYTES)
        self._decoder = Decoder(self._nonce)
        self._transport: asyncio.Transport | None = None
        self._waiters: dict[int, _Waiter] = {}
        self._next_request = 1
        self._unanswered = 0  # requests that were sent, whether anybody waits or not
        self._is_down = False
        self._has_room = anyio.Event()
        self._has_room.set()

    @classmethod
    async def connect(cls, path: Path, listener: Listener) -> Channel:
        """Connect and begin the protocol. The agent need not run yet: what is sent waits for it.

        :raises Unavailable: nobody listens on the socket.
        """
        loop = asyncio.get_running_loop()
        try:
            _, channel = await loop.create_unix_connection(lambda: cls(listener), str(path))
        except OSError as error:
            raise Unavailable(f"cannot reach the virtual machine: {error}") from error
        return channel

    @property
    def is_up(self) -> bool:
        return not self._is_down

    async def wait_for_room(self) -> None:
        """Wait until the guest takes what was sent before, or the link is down.

        For input: a guest that gives credit without end and reads nothing would have it all kept here.
        """
        await self._has_room.wait()

    def send(self, kind: FrameType, number: int, payload: bytes = b"") -> None:
        """Send a frame that has no answer. Does nothing when the link is down."""
        if self._transport is not None and not self._is_down:
            self._transport.write(protocol.frame(kind, number, payload))

    def post(self, kind: FrameType, payload: bytes = b"") -> None:
        """Send a request and ignore its answer, which must not matter."""
        self.send(kind, self._take_number(), payload)
        self._unanswered += 1

    async def request(
        self, kind: FrameType, payload: bytes = b"", *, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> Fields:
        """Send a request and return the fields of the answer.

        :raises AgentError: the answer is ERROR.
        :raises OutcomeUnknown: the link went down before the answer.
        :raises Unavailable: the link is down already, or no answer came in time.
        :raises Internal: the request cannot be put into a frame, or the answer is malformed.
        """
        if self._is_down:
            raise Unavailable("the link to the virtual machine's agent is down")
        number = self._take_number()
        waiter = self._waiters[number] = _Waiter()
        try:
            try:
                self.send(kind, number, payload)
            except ProtocolError as error:
                raise Internal(f"cannot tell the virtual machine: {error}") from error
            self._unanswered += 1
            with anyio.move_on_after(timeout_s):
                await waiter.done.wait()
        finally:
            del self._waiters[number]
        if waiter.answer is None:
            if waiter.done.is_set():
                raise OutcomeUnknown(f"the virtual machine went away during {kind.name}")
            raise Unavailable(f"the virtual machine did not answer {kind.name} within {timeout_s:g} s")
        return self._fields_of(waiter.answer)

    def close(self) -> None:
        """Leave. The guest goes on. Idempotent."""
        self._go_down()

    # --- machinery, called by the event loop ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(protocol.MARKER + self._nonce)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                self._dispatch(frame)
                if self._is_down:
                    return
        except ProtocolError as error:
            log.warning("a guest broke the agent protocol: %s", error)
            self._go_down()

    def pause_writing(self) -> None:
        if not self._is_down:
            self._has_room = anyio.Event()

    def resume_writing(self) -> None:
        self._has_room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._go_down()

    def _dispatch(self, frame: Frame) -> None:
        if frame.kind not in (FrameType.OK, FrameType.ERROR):
            self.listener.on_frame(frame)
            return
        if self._unanswered == 0:
            raise ProtocolError("an answer to nothing that was asked")
        self._unanswered -= 1
        waiter = self._waiters.get(frame.number)
        if waiter is not None and waiter.answer is None:  # else its asker has given up, or did not care
            waiter.answer = frame
            waiter.done.set()

    def _go_down(self) -> None:
        if self._is_down:
            return
        self._is_down = True
        self._has_room.set()
        if self._transport is not None:
            self._transport.abort()
        for waiter in self._waiters.values():
            waiter.done.set()
        self.listener.on_link_down()

    def _take_number(self) -> int:
        number = self._next_request
        self._next_request = number % 0xFFFF_FFFF + 1
        return number

    def _fields_of(self, frame: Frame) -> Fields:
        try:
            fields = Fields(frame.payload)
            if frame.kind is FrameType.OK:
                return fields
            code, errno = fields.number(Key.CODE), fields.number(Key.ERRNO)
        except ProtocolError as error:
            self._go_down()
            raise Internal(f"the virtual machine's agent answered nonsense: {error}") from error
        raise AgentError(protocol.plain_text(fields.text(Key.MESSAGE)[:4096]), code=code, errno=errno)

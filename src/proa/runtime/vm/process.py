# SPDX-License-Identifier: Apache-2.0
"""The host's view of one process in a guest: its streams, shared by any number of clients, and its end.

The agent knows one attachment for each process, with credit; here it is divided among the clients. Credit is
given back as the slowest client reads, so a stalled client holds back the process and nothing is lost; when
the last client leaves, the agent is told to go on without.

    agent ──STDOUT/STDERR──► GuestProcess ──copies──► VmStdio, VmStdio…
          ◄──CREDIT──────────              ◄─read────
          ◄──STDIN───────────              ◄─send────

Source: docs/reference/agent-protocol.md, sections 4 (ATTACH, DETACH) and 5.
"""

from __future__ import annotations

import contextlib

import anyio

from proa.model.errors import EngineError, TaskLost
from proa.model.task import ExitStatus
from proa.runtime.seam import StreamId
from proa.runtime.vm import messages
from proa.runtime.vm.channel import AgentError, Channel
from proa.runtime.vm.protocol import Fields, Frame, FrameType, ProtocolError, credit
from proa.runtime.vm.stdio import VmStdio

WINDOW_BYTES = 256 * 1024  # output that may be under way to the clients of one stream
_GRANT_BYTES = WINDOW_BYTES // 4  # credit is given back in pieces of at least this
# What an ended process may have left unread: a pipe and the agent's buffer, for each stream. Taken in at
# once, so that the machine need not wait for a slow reader before it ends.
_REST_BYTES = 2 * 1024 * 1024
_MAX_CREDIT = 2**31 - 1
FIRST_STDIN_CREDIT = 65_536


class GuestProcess:
    """A process on the wire.

    :ivar number: its id on the wire.
    :ivar pid: in the guest, 0 before it runs.
    :ivar status: how it ended, None before.
    """

    def __init__(self, number: int, *, tty: bool, open_stdin: bool, stdin_once: bool) -> None:
        self.number = number
        self.pid = 0
        self.tty = tty
        self.status: ExitStatus | None = None
        self.takes_input = open_stdin
        self.stdin_once = stdin_once
        self.stdin_credit = 0
        self.input_changed = anyio.Event()  # replaced each time credit or the state of stdin changes
        self._channel: Channel | None = None
        self._ended = anyio.Event()
        self._is_started = False
        self._is_attached = False
        self._attaching = anyio.Lock()  # one ATTACH or DETACH at a time
        self._clients: list[VmStdio] = []
        self._credit = {StreamId.STDOUT: 0, StreamId.STDERR: 0}  # what the agent may still send
        self._open_streams = {StreamId.STDOUT, StreamId.STDERR}
        self._streams_ended = anyio.Event()

    # --- beginning ---

    def link_up(self, channel: Channel) -> None:
        """From now on this is how the agent is reached."""
        self._channel = channel

    def prepare_start(self) -> int | None:
        """Return what START or EXEC shall say of the attachment; None when no client is there.

        Output may come before the answer, so it counts from now on.
        """
        if not self._clients:
            return None
        self._note_attached()
        return WINDOW_BYTES

    async def begun(self, pid: int) -> None:
        """The agent has started it."""
        self.pid = pid
        self._is_started = True
        if self.takes_input:
            self.stdin_credit += FIRST_STDIN_CREDIT
            self._wake_input()
        await self.settle_attachment()  # clients may have come or gone meanwhile

    def not_begun(self) -> None:
        """The agent could not start it; it may be tried again."""
        self._is_attached = False

    def found_unknown(self) -> None:
        """It runs in a guest that stands still and cannot be asked."""
        self._is_started = True

    def found(self, record: messages.ProcessRecord) -> None:
        """It runs, or has ended, as a new link was told."""
        self.pid = record.pid
        self._is_started = True
        self.stdin_credit = record.stdin_credit if self.takes_input else 0
        if record.exit is not None:
            self.end(record.exit)

    # --- clients ---

    async def open(self) -> VmStdio:
        """Connect a client; it receives all output from now on.

        :raises EngineError: the guest could not be told.
        """
        client = VmStdio(self)
        self._clients.append(client)
        try:
            if self._is_started:
                await self.settle_attachment()
        except BaseException:
            self._clients.remove(client)
            raise
        if not self._open_streams:
            client.finish()
        return client

    async def close(self, client: VmStdio) -> None:
        """A client has left. Idempotent."""
        if client not in self._clients:
            return
        self._clients.remove(client)
        self.grant()
        if not self._clients:
            with anyio.CancelScope(shield=True), contextlib.suppress(EngineError):
                await self.settle_attachment()

    async def settle_attachment(self) -> None:
        """Tell the agent whether anybody listens, if it believes otherwise."""
        async with self._attaching:
            wanted = bool(self._clients)
            if wanted == self._is_attached or not self._is_started or not self._open_streams:
                return
            if self._channel is None or not self._channel.is_up:
                self.link_down()
                return
            kind = FrameType.ATTACH if wanted else FrameType.DETACH
            if wanted:
                self._note_attached()  # output may come before the answer
            more = messages.attach_credit(WINDOW_BYTES) if wanted else b""
            try:
                await self._channel.request(kind, messages.of_process(self.number, more))
            except AgentError:
                self.link_down()  # the agent has forgotten it: there is nothing more to read
            self._is_attached = wanted

    def grant(self) -> None:
        """Give back credit for what the slowest client has read."""
        if not self._is_attached or self._channel is None:
            return
        for stream in self._open_streams:
            waiting = max((client.waiting_bytes(stream) for client in self._clients), default=0)
            missing = WINDOW_BYTES - waiting - self._credit[stream]
            if missing >= _GRANT_BYTES:
                self._give(stream, missing)

    def _give(self, stream: StreamId, count: int) -> None:
        if self._channel is not None:
            self._credit[stream] += count
            self._channel.send(FrameType.CREDIT, self.number, credit(stream, count))

    def _note_attached(self) -> None:
        self._is_attached = True
        self._credit = dict.fromkeys(self._credit, WINDOW_BYTES)

    # --- input ---

    @property
    def can_take_input(self) -> bool:
        """Whether input may still reach the process, now or once it runs."""
        return self.takes_input and self.status is None

    async def wait_for_room(self) -> None:
        """Wait until the guest takes what it was sent before."""
        if self._channel is not None:
            await self._channel.wait_for_room()

    def write_input(self, data: bytes) -> None:
        """Send input for which there is credit."""
        self.stdin_credit -= len(data)
        if self._channel is not None:
            self._channel.send(FrameType.STDIN, self.number, data)

    def end_input(self) -> None:
        """Close standard input, once all that was written has been read. Idempotent."""
        if self.can_take_input and self._channel is not None:
            self._channel.send(FrameType.STDIN_EOF, self.number)
        self._stop_input()

    @property
    def is_started(self) -> bool:
        return self._is_started

    @property
    def is_over(self) -> bool:
        """It has ended and nothing of its output is to come."""
        return self.status is not None and (not self._open_streams or not self._is_attached)

    # --- what the agent says ---

    def on_frame(self, frame: Frame) -> None:
        """Take a frame that names this process. Raises ProtocolError."""
        match frame.kind:
            case FrameType.STDOUT:
                self._on_output(StreamId.STDOUT, frame.payload)
            case FrameType.STDERR:
                self._on_output(StreamId.STDERR, frame.payload)
            case FrameType.OUT_EOF:
                if len(frame.payload) != 1:
                    raise ProtocolError("an OUT_EOF frame has the wrong length")
                self._on_stream_end(frame.payload[0])
            case FrameType.CREDIT:
                self._on_credit(*frame.credit())
            case FrameType.STDIN_CLOSED:
                self._stop_input()
            case FrameType.EXITED:
                self.end(messages.exit_status(Fields(frame.payload)))
            case _:
                raise ProtocolError(f"{frame.kind.name} about a process")

    def end(self, status: ExitStatus) -> None:
        """It has ended. What is left in its pipes is taken in at once."""
        if self.status is not None:
            return
        self.status = status
        self._stop_input()
        if self._is_attached:
            for stream in self._open_streams:
                self._give(stream, _REST_BYTES)
        self._ended.set()

    def link_down(self) -> None:
        """Nothing more will come. Clients see the end of the streams, and waiters learn of no end."""
        self._channel = None
        self._open_streams.clear()
        self._stop_input()
        for client in self._clients:
            client.finish()
        self._streams_ended.set()
        self._ended.set()

    # --- waiting ---

    async def wait(self) -> ExitStatus:
        """Wait for the end. Raises TaskLost when the link went down before."""
        await self._ended.wait()
        if self.status is None:
            raise TaskLost("the virtual machine went away before the process ended")
        return self.status

    async def wait_streams(self) -> None:
        """Wait until all output has been taken in; at once when nobody is attached."""
        if self._is_attached:
            await self._streams_ended.wait()

    # --- machinery ---

    def _on_output(self, stream: StreamId, data: bytes) -> None:
        if len(data) > self._credit[stream] or stream not in self._open_streams:
            raise ProtocolError(f"output of process {self.number} beyond its credit")
        self._credit[stream] -= len(data)
        for client in self._clients:
            client.feed(stream, data)
        if not self._clients:
            self.grant()

    def _on_stream_end(self, number: int) -> None:
        if number not in (StreamId.STDOUT, StreamId.STDERR):
            raise ProtocolError(f"the end of stream {number}")
        self._open_streams.discard(StreamId(number))
        if not self._open_streams:
            for client in self._clients:
                client.finish()
            self._streams_ended.set()

    def _on_credit(self, stream: int, count: int) -> None:
        if stream != StreamId.STDIN or self.stdin_credit + count > _MAX_CREDIT:
            raise ProtocolError(f"credit of {count} bytes for stream {stream}")
        self.stdin_credit += count
        self._wake_input()

    def _stop_input(self) -> None:
        self.takes_input = False
        self._wake_input()

    def _wake_input(self) -> None:
        self.input_changed.set()
        self.input_changed = anyio.Event()

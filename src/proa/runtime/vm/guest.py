# SPDX-License-Identifier: Apache-2.0
"""A running guest as the host talks to it: its processes by number, and the link that may go and come back.

Owns the channel and the table of processes; sorts what the agent says unasked to the process it concerns. The
QEMU process is ``task``'s. A link that breaks while QEMU runs is made anew on the next use.

Source: docs/reference/agent-protocol.md, sections 2 (reconnecting), 4 (LIST, RELEASE) and 6.
"""

from __future__ import annotations

from pathlib import Path

import anyio

from proa.model.errors import Unavailable
from proa.model.task import ProcessSpec
from proa.runtime.vm import messages, protocol
from proa.runtime.vm.channel import Channel
from proa.runtime.vm.messages import MAIN_PROCESS
from proa.runtime.vm.process import GuestProcess
from proa.runtime.vm.protocol import Frame, FrameType, ProtocolError


class Guest:
    """The link and the processes behind it.

    :ivar main: the first process, before and after it runs.
    :ivar synced: set when all that was written is on the disks, after the end of the main process.
    """

    def __init__(self, control: Path, *, tty: bool, open_stdin: bool, stdin_once: bool) -> None:
        self._control = control
        self._channel: Channel | None = None
        self._next_number = MAIN_PROCESS + 1
        self.synced = anyio.Event()
        self.main = GuestProcess(MAIN_PROCESS, tty=tty, open_stdin=open_stdin, stdin_once=stdin_once)
        self._processes: dict[int, GuestProcess] = {MAIN_PROCESS: self.main}

    @property
    def is_linked(self) -> bool:
        return self._channel is not None and self._channel.is_up

    @property
    def channel(self) -> Channel:
        """The link. Raises Unavailable when there never was one."""
        if self._channel is None:
            raise Unavailable("the virtual machine's agent cannot be reached")
        return self._channel

    async def connect(self) -> Channel:
        """Begin the link. What is sent waits for the guest, which need not run yet. Raises Unavailable."""
        self._channel = channel = await Channel.connect(self._control, self)
        self.main.link_up(channel)
        return channel

    def adopt(self, channel: Channel) -> Channel:
        """``connect`` by a link that was made before there was a container, in the pool."""
        channel.listener = self
        self._channel = channel
        self.main.link_up(channel)
        return channel

    async def take_up(self, *, timeout_s: float) -> None:
        """Link to a guest that an earlier daemon configured, and learn what runs in it.

        :raises EngineError: it does not answer.
        :raises AgentError: it does not know the protocol.
        """
        channel = await self.connect()
        await channel.request(FrameType.HELLO, messages.hello(protocol.VERSION), timeout_s=timeout_s)
        answer = await channel.request(FrameType.LIST, timeout_s=timeout_s)
        for record in messages.records(answer):
            self._next_number = max(self._next_number, record.number + 1)
            if record.is_main:
                self.main.found(record)
            elif record.exit is not None:
                channel.post(FrameType.RELEASE, messages.of_process(record.number))

    def add_process(self, spec: ProcessSpec) -> GuestProcess:
        """Give a number to a process that is about to be started."""
        number, self._next_number = self._next_number, self._next_number % 0xFFFF_FFFF + 1
        process = GuestProcess(number, tty=spec.tty, open_stdin=spec.open_stdin, stdin_once=spec.stdin_once)
        if self._channel is not None:
            process.link_up(self._channel)
        self._processes[number] = process
        return process

    def drop_process(self, process: GuestProcess) -> None:
        """Forget a process that could not be started."""
        self._processes.pop(process.number, None)

    def close(self) -> None:
        """Leave the guest alone. Idempotent."""
        if self._channel is not None:
            self._channel.close()

    # --- what the agent says ---

    def on_frame(self, frame: Frame) -> None:
        """Raises ProtocolError."""
        process = self._processes.get(frame.number)
        if frame.kind is FrameType.SYNCED:
            self.synced.set()
        elif process is not None:
            process.on_frame(frame)
            if process.is_over and process is not self.main:
                del self._processes[frame.number]
                if self._channel is not None:
                    self._channel.post(FrameType.RELEASE, messages.of_process(frame.number))
        elif frame.kind in (FrameType.STDOUT, FrameType.STDERR):
            raise ProtocolError(f"output of process {frame.number}, which nobody attached to")

    def on_link_down(self) -> None:
        for process in self._processes.values():
            process.link_down()

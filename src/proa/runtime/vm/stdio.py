# SPDX-License-Identifier: Apache-2.0
"""One client's connection to the streams of a process in a guest.

Holds what the client has not read yet; how much that may be is the process's affair (``process``), which
hands out credit to the agent.

Source: proa.runtime.seam.Stdio.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import anyio

from proa.runtime.seam import StreamId
from proa.runtime.vm.protocol import split_input

if TYPE_CHECKING:
    from proa.runtime.vm.process import GuestProcess


class VmStdio:
    """Made by ``GuestProcess.open``."""

    def __init__(self, process: GuestProcess) -> None:
        self._process = process
        self._pieces: deque[tuple[StreamId, bytes]] = deque()
        self._waiting = {StreamId.STDOUT: 0, StreamId.STDERR: 0}
        self._changed = anyio.Event()
        self._is_finished = False
        self._has_fed = False
        self._is_closed = False

    async def receive(self) -> tuple[StreamId, bytes]:
        """Return the next piece. Raises EndOfStream after the last one, ClosedResourceError when closed."""
        while not self._pieces:
            if self._is_closed:
                raise anyio.ClosedResourceError
            if self._is_finished:
                raise anyio.EndOfStream
            self._changed = anyio.Event()
            await self._changed.wait()
        stream, data = self._pieces.popleft()
        self._waiting[stream] -= len(data)
        self._process.grant()
        return stream, data

    async def send(self, data: bytes) -> None:
        """Write to standard input, waiting for room. Raises BrokenResourceError when nobody reads it."""
        if self._is_closed:
            raise anyio.ClosedResourceError
        self._has_fed = True
        for piece in split_input(data):
            rest = piece
            while rest:
                rest = rest[await self._send_some(rest) :]

    async def send_eof(self) -> None:
        """No input follows. Closes the process's input only where the first client's end is its end."""
        if self._process.stdin_once and not self._is_closed:
            while self._process.can_take_input and not self._process.is_started:
                await self._process.input_changed.wait()
            self._process.end_input()

    async def aclose(self) -> None:
        """Leave; the process goes on. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._pieces.clear()
        self._waiting = dict.fromkeys(self._waiting, 0)
        self._changed.set()
        if self._has_fed and self._process.stdin_once and self._process.is_started:
            self._process.end_input()
        await self._process.close(self)

    # --- for the process ---

    def feed(self, stream: StreamId, data: bytes) -> None:
        """Output has come."""
        self._pieces.append((stream, data))
        self._waiting[stream] += len(data)
        self._changed.set()

    def finish(self) -> None:
        """No output will come. Idempotent."""
        self._is_finished = True
        self._changed.set()

    def waiting_bytes(self, stream: StreamId) -> int:
        """What has come and was not read yet."""
        return self._waiting[stream]

    # --- machinery ---

    async def _send_some(self, data: bytes) -> int:
        """Send what there is credit for, at least a byte; return how much."""
        process = self._process
        while True:
            if not process.can_take_input or self._is_closed:
                raise anyio.BrokenResourceError
            count = min(len(data), process.stdin_credit)
            if count > 0:
                process.write_input(data[:count])
                return count
            await process.input_changed.wait()

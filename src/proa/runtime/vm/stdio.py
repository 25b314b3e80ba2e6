# SPDX-License-Identifier: Apache-2.0
"""One client's connection to the streams of a process in a guest.

Holds what the client has not read yet; how much that may be is the process's affair (``process``), which
hands out credit to the agent.

Source: proa.runtime.seam.Stdio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from proa.runtime.output import OutputQueue
from proa.runtime.seam import StreamId
from proa.runtime.vm.protocol import split_input

if TYPE_CHECKING:
    from proa.runtime.vm.process import GuestProcess


class VmStdio:
    """Made by ``GuestProcess.open``."""

    def __init__(self, process: GuestProcess) -> None:
        self._process = process
        self._output = OutputQueue()
        self._has_fed = False

    async def receive(self) -> tuple[StreamId, bytes]:
        """Return the next piece. Raises EndOfStream after the last one, ClosedResourceError when closed."""
        piece = await self._output.receive()
        self._process.grant()
        return piece

    async def send(self, data: bytes) -> None:
        """Write to standard input, waiting for room. Raises BrokenResourceError when nobody reads it."""
        if self._output.is_closed:
            raise anyio.ClosedResourceError
        self._has_fed = True
        for piece in split_input(data):
            rest = piece
            while rest:
                rest = rest[await self._send_some(rest) :]

    async def send_eof(self) -> None:
        """No input follows. Closes the process's input only where the first client's end is its end."""
        if self._process.stdin_once and not self._output.is_closed:
            while self._process.can_take_input and not self._process.is_started:
                await self._process.input_changed.wait()
            self._process.end_input()

    async def aclose(self) -> None:
        """Leave; the process goes on. Idempotent."""
        if self._output.is_closed:
            return
        self._output.close()
        if self._has_fed and self._process.stdin_once and self._process.is_started:
            self._process.end_input()
        await self._process.close(self)

    # --- for the process ---

    def feed(self, stream: StreamId, data: bytes) -> None:
        """Output has come."""
        self._output.put(stream, data)

    def finish(self) -> None:
        """No output will come. Idempotent."""
        self._output.finish()

    def waiting_bytes(self, stream: StreamId) -> int:
        """What has come and was not read yet."""
        return self._output.waiting_bytes(stream)

    # --- machinery ---

    async def _send_some(self, data: bytes) -> int:
        """Send what there is credit for, at least a byte; return how much."""
        process = self._process
        while True:
            await process.wait_for_room()
            if not process.can_take_input or self._output.is_closed:
                raise anyio.BrokenResourceError
            count = min(len(data), process.stdin_credit)
            if count > 0:
                process.write_input(data[:count])
                return count
            await process.input_changed.wait()

# SPDX-License-Identifier: Apache-2.0
"""One connection to QEMU's monitor (QMP): commands and their answers.

Owns the socket, not the QEMU process. Opened for a few commands and closed again: a QEMU that nobody talks to
goes on. Commands are refused unless the greeting has been read; a link that breaks after a command was sent
is OutcomeUnknown.

Why not ``qemu.qmp`` from PyPI: it keeps background tasks of its own on a bare event loop, and proa needs four
commands and one file descriptor passed; that is less than the adapter would be. Decision 0010.

Source: QEMU Machine Protocol Specification, 2.2 Server Greeting, 2.3 Issuing Commands, 2.4.3 Passing file
descriptors (getfd).
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec

from proa.model.errors import Internal, OutcomeUnknown, Unavailable

ANSWER_TIMEOUT_S = 10.0  # QEMU answers in milliseconds unless the host is overwhelmed
MAX_LINE_BYTES = 1024 * 1024  # no answer to our commands comes near it


Arguments = dict[str, Any]  # Any: JSON, different for each command
# The memory of a machine is a file that both sides see: it is neither written to the state nor read from it.
IGNORE_SHARED = (
    "migrate-set-capabilities",
    {"capabilities": [{"capability": "x-ignore-shared", "state": True}]},
)


class MonitorError(Internal):
    """QEMU refused a command."""


class Monitor:
    """A QMP session. Not for use by two tasks at once."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._buffer = bytearray()

    async def greet(self) -> None:
        """Read the greeting and leave negotiation mode. Once, first."""
        with _deadline("greeting"):
            await self._read()
        await self.execute("qmp_capabilities")

    async def execute(self, command: str, arguments: Arguments | None = None, *, fd: int = -1) -> Any:
        """Run a command and return its result. Any: JSON, different for each command.

        :param fd: a descriptor to pass along, for ``getfd``; stays open here.
        :raises MonitorError: QEMU refused.
        :raises OutcomeUnknown: the link broke.
        :raises Unavailable: no answer within ANSWER_TIMEOUT_S.
        """
        with _deadline(command):
            await self._write(_encode(command, arguments), fd)
            return await self._answer(command)

    async def greet_and_execute(self, *commands: tuple[str, Arguments]) -> None:
        """``greet`` and run commands, all sent before the first answer is read: one round trip for all.

        At most seven commands (QEMU stops reading a client that is eight ahead). Raises as ``execute``, for
        the first that fails; those after it have been run nevertheless.
        """
        every = [("qmp_capabilities", {}), *commands]
        with _deadline(every[-1][0]):
            await self._write(b"".join(_encode(*command) for command in every), -1)
            await self._read()
            for name, _ in every:
                await self._answer(name)

    # --- machinery ---

    async def _answer(self, command: str) -> Any:
        while True:
            answer = await self._read()
            if "error" in answer:
                raise MonitorError(f"QEMU: {command}: {answer['error'].get('desc', '')}")
            if "return" in answer:
                return answer["return"]  # anything else is an event, which nobody here waits for

    async def _write(self, data: bytes, fd: int) -> None:
        try:
            while data:
                try:
                    if fd >= 0:
                        sent, fd = socket.send_fds(self._link, [data], [fd]), -1
                    else:
                        sent = self._link.send(data)
                except BlockingIOError:
                    await anyio.wait_writable(self._link)
                    continue
                data = data[sent:]
        except OSError as error:
            raise OutcomeUnknown(f"the monitor of QEMU went away: {error}") from error

    async def _read(self) -> dict[str, Any]:
        """Return the next message. Any: JSON."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > MAX_LINE_BYTES:
                raise Internal("QEMU: an answer without end")
            try:
                received = self._link.recv(65536)
            except BlockingIOError:
                await anyio.wait_readable(self._link)
                continue
            except OSError as error:
                raise OutcomeUnknown(f"the monitor of QEMU went away: {error}") from error
            if not received:
                raise OutcomeUnknown("the monitor of QEMU went away")
            self._buffer += received
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            return msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise Internal(f"QEMU: not QMP: {error}") from error


@asynccontextmanager
async def open_monitor(path: Path) -> AsyncIterator[Monitor]:
    """Connect to the monitor for the span of the block; ``greet`` comes next.

    :raises Unavailable: nobody listens.
    """
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        try:
            link.connect(os.fspath(path))  # a unix socket connects at once or not at all
        except OSError as error:
            raise Unavailable(f"cannot reach QEMU's monitor: {error}") from error
        link.setblocking(False)
        yield Monitor(link)
    finally:
        link.close()


@asynccontextmanager
async def greeted_monitor(path: Path) -> AsyncIterator[Monitor]:
    """Connect to the monitor for the span of the block, which it begins ready for commands.

    :raises Unavailable: nobody listens.
    :raises MonitorError: it does not greet.
    """
    async with open_monitor(path) as monitor:
        await monitor.greet()
        yield monitor


def _encode(command: str, arguments: Arguments | None) -> bytes:
    return msgspec.json.encode({"execute": command, "arguments": arguments or {}}) + b"\n"


@contextmanager
def _deadline(what: str) -> Iterator[None]:
    try:
        with anyio.fail_after(ANSWER_TIMEOUT_S):
            yield
    except TimeoutError as error:
        raise Unavailable(f"QEMU did not answer {what} within {ANSWER_TIMEOUT_S:g} s") from error

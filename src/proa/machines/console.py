# SPDX-License-Identifier: Apache-2.0
"""A machine's serial console: one connection to QEMU, kept for the whole run, shared by all who look.

    QEMU ──socket──► SerialConsole ──► console.log (bounded)
         ◄─────────       │        ──► ConsoleStdio, ConsoleStdio…

A guest may print without end. The log keeps the last LOG_BYTES to twice as much; reading is paced, so that a
flood waits in the guest and not in the daemon; a client that does not read loses the oldest of what waits for
it. What is printed while no daemon runs is lost: the socket has no reader then.

Source: QEMU invocation, -chardev socket.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import anyio

from proa.runtime.seam import StreamId

LOG_BYTES = 1024 * 1024  # of each of two files
CLIENT_BYTES = 256 * 1024  # that wait for one client
BYTES_PER_S = 2 * 1024 * 1024  # of a flood; a terminal is never that fast
_READ_BYTES = 64 * 1024


class BoundedLog:
    """A file that is put aside when it is full; the one put aside before is lost then."""

    def __init__(self, path: Path, limit: int = LOG_BYTES) -> None:
        self._path = path
        self._limit = limit

    @property
    def older(self) -> Path:
        return self._path.with_name(f"{self._path.name}.1")

    def append(self, data: bytes) -> None:
        """Write. A full disk loses the data, nothing else."""
        with contextlib.suppress(OSError), self._path.open("ab") as file:
            file.write(data)
            is_full = file.tell() >= self._limit
            if is_full:
                self._path.replace(self.older)

    def read(self) -> bytes:
        """Return all that is kept."""
        content = b""
        for path in (self.older, self._path):
            with contextlib.suppress(OSError):
                content += path.read_bytes()
        return content


class ConsoleStdio:
    """One client's view, of the shape of a process's streams: output is StreamId.STDOUT."""

    def __init__(self, console: SerialConsole) -> None:
        self._console = console
        self._waiting = bytearray()
        self._changed = anyio.Event()
        self._is_over = False

    def feed(self, data: bytes) -> None:
        """Take what the console has printed."""
        self._waiting += data
        del self._waiting[:-CLIENT_BYTES]
        self._wake()

    def finish(self) -> None:
        """The console is gone."""
        self._is_over = True
        self._wake()

    async def receive(self) -> tuple[StreamId, bytes]:
        while not self._waiting:
            if self._is_over:
                raise anyio.EndOfStream
            await self._changed.wait()
        data = bytes(self._waiting)
        self._waiting.clear()
        return StreamId.STDOUT, data

    async def send(self, data: bytes) -> None:
        await self._console.send(data)

    async def send_eof(self) -> None:
        """A serial line has no end."""

    async def aclose(self) -> None:
        self._console.leave(self)
        self.finish()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


class SerialConsole:
    """The connection. ``run`` is its life."""

    def __init__(self, path: Path, log: BoundedLog) -> None:
        self._path = path
        self._log = log
        self._link: socket.socket | None = None
        self._clients: set[ConsoleStdio] = set()
        self._sending = anyio.Lock()

    def open(self) -> ConsoleStdio:
        """Look at what is printed from now on."""
        client = ConsoleStdio(self)
        self._clients.add(client)
        return client

    def leave(self, client: ConsoleStdio) -> None:
        """Idempotent."""
        self._clients.discard(client)

    async def send(self, data: bytes) -> None:
        """Type. Raises anyio.BrokenResourceError when the machine is gone."""
        async with self._sending:
            while data:
                if self._link is None:
                    raise anyio.BrokenResourceError
                try:
                    data = data[self._link.send(data) :]
                except BlockingIOError:
                    await anyio.wait_writable(self._link)
                except OSError as error:
                    raise anyio.BrokenResourceError from error

    async def run(self) -> None:
        """Read until QEMU ends. Returns at once when nobody listens."""
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with contextlib.suppress(OSError):
                link.connect(os.fspath(self._path))
                link.setblocking(False)
                self._link = link
                await self._read(link)
        finally:
            self._link = None
            link.close()
            for client in list(self._clients):
                client.finish()

    async def _read(self, link: socket.socket) -> None:
        while True:
            try:
                data = link.recv(_READ_BYTES)
            except BlockingIOError:
                await anyio.wait_readable(link)
                continue
            if not data:
                return
            self._log.append(data)
            for client in self._clients:
                client.feed(data)
            await anyio.sleep(len(data) / BYTES_PER_S)

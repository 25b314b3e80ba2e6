# SPDX-License-Identifier: Apache-2.0
"""The streams that one conmon holds, shared by any number of clients of this engine.

All clients share one connection to conmon. conmon accepts connections one by one, each after the output
that is waiting by then: clients with a connection each could miss the output of a short process (seen on a
loaded machine). The connection is made before the process begins; its accept comes first.

    process ── conmon ──► Streams (one connection) ──copies──► OciStdio, OciStdio…
                      ◄──────────────────────────────input────

conmon's writes block, and Streams stops reading while a client has too much unread: a slow client holds back
the process, and nothing is lost. Once the process has ended the rest is taken in whatever the clients do.

Source: containers/conmon, src/conn_sock.c, src/ctr_logging.h (stdpipe_t).
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from proa.model.errors import Unavailable, WrongState
from proa.runtime.output import OutputQueue
from proa.runtime.seam import StreamId

PACKET_MAX_BYTES = 8192  # conmon takes up to 32 KiB of input at once and sends 8 KiB and the first byte
WINDOW_BYTES = 256 * 1024  # what a client may leave unread before the process is held back
_STREAMS = {2: StreamId.STDOUT, 3: StreamId.STDERR}


class Streams:
    """The connection to one conmon. ``tasks`` owns the reading.

    :param stdin_once: the input ends with the first client that fed it; else nothing here ends it.
    """

    def __init__(self, directory: Path, *, open_stdin: bool, stdin_once: bool, tasks: TaskGroup) -> None:
        self._directory = directory
        self._open_stdin = open_stdin
        self._stdin_once = stdin_once
        self._tasks = tasks
        self._clients: list[OciStdio] = []
        self._output: socket.socket | None = None
        self._input: socket.socket | None = None  # the same, or an older one kept for its input
        self._input_ended = False
        self._is_draining = False
        self._read = anyio.Event()  # some client has read or left
        self._connecting = anyio.Lock()
        self._sending = anyio.Lock()

    async def attach(self) -> OciStdio:
        """Connect a client: it receives all output from now on.

        :raises WrongState: conmon does not serve any more.
        :raises Unavailable: conmon does not answer.
        """
        async with self._connecting:
            if self._output is None:
                self._output = await _connect(self._directory)
                self._input = self._input or self._output
                self._tasks.start_soon(self._pump, self._output)
            client = OciStdio(self)
            self._clients.append(client)
            return client

    def drain(self) -> None:
        """The process has ended: take in the rest, which is no more than the pipes and buffers hold.

        Left there, it would keep conmon from writing the exit status.
        """
        self._is_draining = True
        self._read.set()

    async def close(self) -> None:
        """conmon has ended: let go of what was kept for it. Unread output stays with the clients."""
        self._input_ended = True
        async with self._sending:
            kept, self._input = self._input, None
            if kept is not None and kept is not self._output:
                kept.close()

    # --- for the clients ---

    async def send(self, data: bytes) -> None:
        """Write to the input. Raises BrokenResourceError when nobody will read it."""
        async with self._sending:
            for start in range(0, len(data), PACKET_MAX_BYTES):
                await self._send_packet(data[start : start + PACKET_MAX_BYTES])

    async def end_input(self) -> None:
        """No client will send more, if it is the clients' end that ends the input."""
        async with self._sending:
            self.end_input_now()

    def end_input_now(self) -> None:
        """``end_input`` for those who cannot wait for what is under way."""
        if self._stdin_once and not self._input_ended:
            self._input_ended = True
            if self._input is not None:
                with contextlib.suppress(OSError):
                    self._input.shutdown(socket.SHUT_WR)

    def has_read(self) -> None:
        """A client has made room."""
        self._read.set()

    def leave(self, client: OciStdio) -> None:
        """A client has gone."""
        if client in self._clients:
            self._clients.remove(client)
        self._read.set()
        if self._clients or self._output is None:
            return
        # Nobody listens: conmon shall not write to us any more. The pump sees it and closes.
        last, self._output = self._output, None
        how = socket.SHUT_RDWR
        if last is self._input:
            if self._open_stdin and self._stdin_once and not self._input_ended:
                how = socket.SHUT_RD  # the end of the connection would be the end of the input
            else:
                self._input = None
        with contextlib.suppress(OSError):
            last.shutdown(how)

    # --- machinery ---

    async def _pump(self, connection: socket.socket) -> None:
        """Hand each piece to all clients, no faster than the slowest of them reads."""
        while connection is self._output:
            if not self._is_draining and any(each.is_full() for each in self._clients):
                self._read = anyio.Event()
                await self._read.wait()
                continue
            packet = await _receive(connection)
            if not packet:
                break
            stream = _STREAMS.get(packet[0])
            if stream is not None and len(packet) > 1:
                for client in self._clients:
                    client.put(stream, packet[1:])
        if connection is self._output:
            self._output = None
            self._input_ended = True
            if connection is self._input:
                self._input = None
            for client in self._clients:
                client.finish()
        if connection is not self._input:
            # Never closed under a task that waits on it: the number would be another file's by the time that
            # task takes its reader or writer off the event loop.
            async with self._sending:
                connection.close()

    async def _send_packet(self, packet: bytes) -> None:
        while True:
            if self._input is None or self._input_ended:
                raise anyio.BrokenResourceError
            try:
                self._input.send(packet, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                await anyio.wait_writable(self._input)
            except OSError as error:
                raise anyio.BrokenResourceError from error
            else:
                return


class OciStdio:
    """One client's connection. Made by ``Streams.attach``."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._output = OutputQueue()
        self._has_fed = False

    async def receive(self) -> tuple[StreamId, bytes]:
        """Return the next piece of output. Raises EndOfStream, ClosedResourceError after ``aclose``."""
        piece = await self._output.receive()
        self._streams.has_read()
        return piece

    async def send(self, data: bytes) -> None:
        """Write to standard input. Raises BrokenResourceError when nobody will read it."""
        if self._output.is_closed:
            raise anyio.ClosedResourceError
        self._has_fed = True
        await self._streams.send(data)

    async def send_eof(self) -> None:
        """Tell that no input follows; ends the input where that is up to a client. Idempotent."""
        if not self._output.is_closed:
            self._has_fed = True
            await self._streams.end_input()

    async def aclose(self) -> None:
        """Leave. Idempotent."""
        self.close_now()
        await anyio.lowlevel.checkpoint()

    def close_now(self) -> None:
        """``aclose`` for those who cannot wait."""
        if self._output.is_closed:
            return
        self._output.close()
        if self._has_fed:
            self._streams.end_input_now()
        self._streams.leave(self)

    # --- for Streams ---

    def put(self, stream: StreamId, data: bytes) -> None:
        """Another piece has come."""
        self._output.put(stream, data)

    def finish(self) -> None:
        """No more will come."""
        self._output.finish()

    def is_full(self) -> bool:
        """Whether it has as much unread as it may."""
        return self._output.waiting_bytes() >= WINDOW_BYTES


async def _connect(directory: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = -1
    try:
        folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        connection.setblocking(False)
        # By descriptor: the path itself may be longer than the 108 bytes an address takes.
        address = f"/proc/self/fd/{folder}/attach"
        for pause_s in (0.001, 0.01, 0.1, 1.0):
            try:
                connection.connect(address)
            except BlockingIOError:
                await anyio.sleep(pause_s)
            else:
                return connection
        raise Unavailable("cannot attach: the supervisor of the process does not answer")
    except (FileNotFoundError, ConnectionRefusedError) as error:
        connection.close()
        raise WrongState("cannot attach: the process has ended") from error
    except BaseException:
        connection.close()
        raise
    finally:
        if folder >= 0:
            os.close(folder)


async def _receive(connection: socket.socket) -> bytes:
    """The next packet, b"" at the end."""
    while True:
        try:
            return connection.recv(PACKET_MAX_BYTES * 8)
        except BlockingIOError:
            await anyio.wait_readable(connection)
        except OSError:
            return b""

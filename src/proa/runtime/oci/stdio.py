# SPDX-License-Identifier: Apache-2.0
"""A client's connection to the streams that conmon holds.

conmon speaks packets: each one it sends begins with a byte that names the stream; what it receives is input.
Its writes to a client block, so a slow client holds back the process and nothing is lost.

Source: containers/conmon, src/conn_sock.c, src/ctr_logging.h (stdpipe_t), src/ctrl.c (the ctl FIFO).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import anyio

from proa.model.errors import Unavailable, WrongState
from proa.runtime.seam import StreamId

PACKET_MAX_BYTES = 8192  # conmon takes up to 32 KiB of input at once and sends 8 KiB and the first byte
MAX_TERMINAL_SIZE = 1000  # conmon drops larger ones
_STREAMS = {2: StreamId.STDOUT, 3: StreamId.STDERR}
_RESIZE = 1  # of conmon's control messages


class OciStdio:
    """Made by ``connect``.

    :param parking: takes the socket of a client that never fed stdin but leaves it open for others: closed,
        conmon would take the client's end for the end of input.
    """

    def __init__(self, connection: socket.socket, *, parking: Callable[[socket.socket], None] | None) -> None:
        self._socket = connection
        self._parking = parking
        self._has_fed = False
        self._is_closed = False
        self._has_sent_eof = False
        self._receiving = anyio.Lock()
        self._sending = anyio.Lock()

    async def receive(self) -> tuple[StreamId, bytes]:
        """Return the next piece of output. Raises EndOfStream, ClosedResourceError after ``aclose``."""
        async with self._receiving:
            while True:
                packet = await self._receive_packet()
                stream = _STREAMS.get(packet[0])
                if stream is not None and len(packet) > 1:
                    return stream, packet[1:]

    async def send(self, data: bytes) -> None:
        """Write to standard input. Raises BrokenResourceError when nobody will read it."""
        async with self._sending:
            self._has_fed = True
            for start in range(0, len(data), PACKET_MAX_BYTES):
                await self._send_packet(data[start : start + PACKET_MAX_BYTES])

    async def send_eof(self) -> None:
        """Half-close. conmon closes stdin, unless it was told to leave it open. Idempotent."""
        async with self._sending:
            if self._has_sent_eof or self._is_closed:
                return
            self._has_sent_eof = self._has_fed = True
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError as error:
                if error.errno != errno.ENOTCONN:
                    raise

    async def aclose(self) -> None:
        """Leave. Idempotent."""
        self.close_now()
        await anyio.lowlevel.checkpoint()

    def close_now(self) -> None:
        """``aclose`` for those who cannot wait."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._parking is not None and not self._has_fed:
            with _no_longer_connected():
                self._socket.shutdown(socket.SHUT_RD)
            self._parking(self._socket.dup())
        # A reader that waits on it wakes up and finds it closed.
        with _no_longer_connected():
            self._socket.shutdown(socket.SHUT_RD)
        anyio.notify_closing(self._socket)
        self._socket.close()

    async def _receive_packet(self) -> bytes:
        while True:
            if self._is_closed:
                raise anyio.ClosedResourceError
            try:
                packet = self._socket.recv(PACKET_MAX_BYTES * 8)
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
                continue
            except OSError as error:
                raise anyio.EndOfStream from error
            if not packet:
                raise anyio.EndOfStream
            return packet

    async def _send_packet(self, packet: bytes) -> None:
        while True:
            if self._is_closed:
                raise anyio.ClosedResourceError
            if self._has_sent_eof:
                raise anyio.BrokenResourceError
            try:
                self._socket.send(packet, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                await anyio.wait_writable(self._socket)
                continue
            except OSError as error:
                raise anyio.BrokenResourceError from error
            return


class _no_longer_connected:
    """Suppresses that the other side has gone already."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        return isinstance(error, OSError) and error.errno in (errno.ENOTCONN, errno.EPIPE)


async def connect(directory: Path, *, parking: Callable[[socket.socket], None] | None = None) -> OciStdio:
    """Connect to the attach socket in a conmon's directory.

    :raises WrongState: conmon does not serve it any more.
    :raises Unavailable: its queue of new clients stays full.
    """
    folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.setblocking(False)
        # By descriptor: the path itself may be longer than the 108 bytes an address takes.
        address = f"/proc/self/fd/{folder}/attach"
        for pause_s in (0.001, 0.01, 0.1, 1.0):
            try:
                connection.connect(address)
            except BlockingIOError:
                await anyio.sleep(pause_s)
            else:
                return OciStdio(connection, parking=parking)
        raise Unavailable("too many clients attach at once")
    except (FileNotFoundError, ConnectionRefusedError) as error:
        connection.close()
        raise WrongState("cannot attach: the process has ended") from error
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(folder)


def resize(directory: Path, *, rows: int, columns: int) -> None:
    """Tell conmon the new size of its terminal. Does nothing when conmon has ended."""
    message = f"{_RESIZE} {min(rows, MAX_TERMINAL_SIZE)} {min(columns, MAX_TERMINAL_SIZE)}\n"
    try:
        fd = os.open(directory / "ctl", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO):
            return
        raise
    try:
        os.write(fd, message.encode())
    except BlockingIOError:
        pass  # a FIFO full of sizes: the next one will come
    finally:
        os.close(fd)

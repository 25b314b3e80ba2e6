# SPDX-License-Identifier: Apache-2.0
"""Standard streams over a connection: attach and exec over a raw one, logs over a chunked answer.

Output is framed (``proa.wire.stdio``) unless the process has a terminal. The client's end of its direction is
the end of standard input and of nothing else. With a terminal, the detach keys end the attachment.

Source: Engine API, ContainerAttach, "Stream format"; docker attach reference, "Override the detach sequence".
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

import anyio

from proa.api.request import RawStream, Request
from proa.model.errors import InvalidParameter
from proa.runtime.seam import Stdio, StreamId
from proa.wire.detach import DetachScanner, parse_detach_keys
from proa.wire.stdio import MULTIPLEXED, RAW, frame

GONE_POLL_S = 2.0  # how soon a client is missed that had ended its input and then left without a word
LINGER_S = 5.0  # for the client to read the end and close; closing first would reset what is unread
BATCH_BYTES = 256 * 1024

_MULTIPLEXED_SINCE = (1, 42)


# --- what kind of stream ---


def hijack_type(request: Request, *, tty: bool) -> str:
    """Return the content type of a taken-over connection: older clients know only the raw one."""
    if not tty and "upgrade" in request.headers and request.version >= _MULTIPLEXED_SINCE:
        return MULTIPLEXED
    return RAW


def logs_type(request: Request, *, tty: bool) -> str:
    """Return the content type of a log."""
    return MULTIPLEXED if not tty and request.version >= _MULTIPLEXED_SINCE else RAW


def terminal_size(request: Request) -> tuple[int, int]:
    """Return rows and columns of a resize request. Raises InvalidParameter."""
    sizes = []
    for name, what in (("h", "height"), ("w", "width")):
        size = request.query.number(name)
        if size is None or not 0 <= size < 2**16:
            raise InvalidParameter(f'invalid resize {what} "{request.query.text(name)}"')
        sizes.append(size)
    return sizes[0], sizes[1]


def detach_keys(text: str) -> bytes:
    """Return the bytes of a request's detach keys. Raises InvalidParameter."""
    try:
        return parse_detach_keys(text)
    except ValueError as error:
        raise InvalidParameter(str(error)) from error


# --- attach and exec ---


class ChosenStdio:
    """Streams of which the client sees only what it asked for. What it does not see is read and dropped."""

    def __init__(self, stdio: Stdio, *, stdin: bool, stdout: bool, stderr: bool) -> None:
        self._stdio = stdio
        self._stdin = stdin
        self._shown = {StreamId.STDOUT: stdout, StreamId.STDERR: stderr}

    async def receive(self) -> tuple[StreamId, bytes]:
        while True:
            stream, data = await self._stdio.receive()
            if self._shown.get(stream, False):
                return stream, data

    async def send(self, data: bytes) -> None:
        if self._stdin:
            await self._stdio.send(data)

    async def send_eof(self) -> None:
        await self._stdio.send_eof()

    async def aclose(self) -> None:
        await self._stdio.aclose()


async def pump(stdio: Stdio, raw: RawStream, *, tty: bool, detach_keys: bytes = b"") -> bool:
    """Carry both directions until the output ends, the client leaves or detaches. Closes ``stdio``.

    :returns: whether the client has detached by its keys.
    """
    scanner = DetachScanner(detach_keys if tty else b"")
    gone = False

    async def feed(scope: anyio.CancelScope) -> None:
        nonlocal gone
        await _feed(stdio, raw, scanner)
        gone = True
        scope.cancel()

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(feed, group.cancel_scope)
            await _show(stdio, raw, tty=tty)
            group.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await stdio.aclose()
    if not gone:
        await _let_go(raw)
    return scanner.detached


async def send_message(raw: RawStream, message: str, *, tty: bool) -> None:
    """Tell a client on a raw stream what went wrong, as its output; the only way left there."""
    data = f"{message}\r\n".encode()
    with suppress(anyio.BrokenResourceError):
        await raw.send(data if tty else frame(StreamId.STDOUT, data))
    await _let_go(raw)


async def _show(stdio: Stdio, raw: RawStream, *, tty: bool) -> None:
    """Copy the output until it ends or nobody reads it."""
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        while True:
            stream, data = await stdio.receive()
            await raw.send(data if tty else frame(stream, data))


async def _feed(stdio: Stdio, raw: RawStream, scanner: DetachScanner) -> None:
    """Copy the input to its end, then wait for the client to leave. Returns early when it detaches."""
    wanted = True
    while data := await raw.receive():
        data = scanner.feed(data)
        if data and wanted:
            try:
                await stdio.send(data)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                wanted = False  # the process closed its input: read on, to notice when the client leaves
        if scanner.detached:
            return
    async with anyio.create_task_group() as group:
        group.start_soon(_end_input, stdio)  # waits as long as the container has not been started
        while not raw.is_gone():  # noqa: ASYNC110 (no event tells of it: see proa.api.channel)
            await anyio.sleep(GONE_POLL_S)
        group.cancel_scope.cancel()


async def _end_input(stdio: Stdio) -> None:
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        await stdio.send_eof()


async def _let_go(raw: RawStream) -> None:
    """End our direction and give the client time to read it."""
    with suppress(anyio.BrokenResourceError), anyio.move_on_after(LINGER_S):
        await raw.send_eof()
        while await raw.receive():
            pass


# --- chunked answers ---


async def send_pieces(request: Request, content_type: str, pieces: AsyncGenerator[bytes, None]) -> None:
    """Answer with small pieces as they come, as many at once as are there. Logs have a million lines.

    The head is sent at once, whether there is a piece or not, but after ``pieces`` has begun: what it raises
    in its first step (a bad parameter) is raised here while it can still become a status.
    """
    batcher = _Batcher(request, pieces)
    async with anyio.create_task_group() as group:
        group.start_soon(batcher.collect)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        await batcher.deliver(content_type)
        group.cancel_scope.cancel()
    if batcher.failure is not None:
        raise batcher.failure


class _Batcher:
    """Two tasks that share a buffer: one fills it, one sends all that is in it."""

    def __init__(self, request: Request, pieces: AsyncGenerator[bytes, None]) -> None:
        self._request = request
        self._pieces = pieces
        self._buffer = bytearray()
        self._is_over = False
        self._changed = anyio.Event()
        self._drained = anyio.Event()
        self.failure: Exception | None = None

    async def collect(self) -> None:
        try:
            async with aclosing(self._pieces) as pieces:
                async for piece in pieces:
                    self._buffer += piece
                    self._changed.set()
                    if len(self._buffer) > BATCH_BYTES:
                        self._drained = anyio.Event()
                        await self._drained.wait()
        except Exception as error:  # noqa: BLE001 (send_pieces raises it, outside the task group)
            self.failure = error
        self._is_over = True
        self._changed.set()

    async def deliver(self, content_type: str) -> None:
        if self.failure is not None:
            return
        try:
            await self._request.begin(content_type)
            while self._buffer or not self._is_over:
                if not self._buffer:
                    self._changed = anyio.Event()
                    await self._changed.wait()
                batch = bytes(self._buffer)
                self._buffer.clear()
                self._drained.set()
                await self._request.send(batch)
        except Exception as error:  # noqa: BLE001 (as in collect)
            self.failure = error

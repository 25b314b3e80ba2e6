# SPDX-License-Identifier: Apache-2.0
"""A progress stream: one JSON document a line, begun by the first message.

An error before the first message is the answer's status; later it is the stream's last line. A client that
reads slowly gets the newest amount of each layer and not every one, so nothing piles up.

Source: Engine API, ImageCreate (CreateImageInfo); Docker Engine, pkg/jsonmessage.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import anyio

from proa.api.errors import describe
from proa.api.request import JSON, Request
from proa.wire import codec
from proa.wire.errors import Progress, StreamError
from proa.wire.progress import draw_bar

Work = Callable[[Callable[[Mapping[str, object]], None]], Awaitable[None]]


class _Lines:
    """Messages that wait for their way to the client."""

    def __init__(self) -> None:
        self._waiting: list[Mapping[str, object]] = []
        self._news = anyio.Event()
        self._ended = False

    def put(self, message: Mapping[str, object]) -> None:
        key = (message.get("id"), message.get("status"))
        if message.get("progressDetail"):
            for index, other in enumerate(self._waiting):
                if other.get("progressDetail") and (other.get("id"), other.get("status")) == key:
                    self._waiting[index] = message
                    return
        self._waiting.append(message)
        self._news.set()

    def end(self) -> None:
        self._ended = True
        self._news.set()

    async def get(self) -> list[Mapping[str, object]]:
        """Return what waits; nothing at the end."""
        while not self._waiting and not self._ended:
            self._news = anyio.Event()
            await self._news.wait()
        taken, self._waiting = self._waiting, []
        return taken


async def stream_progress(request: Request, work: Work) -> None:
    """Do the work, which is given what takes its messages, and send them as they come."""
    lines = _Lines()
    failure: Exception | None = None

    async def run() -> None:
        nonlocal failure
        try:
            await work(lines.put)
        except Exception as error:  # noqa: BLE001 (a status or the last line, below)
            failure = error
        lines.end()

    begun = False
    async with anyio.create_task_group() as group:
        group.start_soon(run)
        while messages := await lines.get():
            if not begun:
                begun = True
                await request.begin(JSON)
            await request.send(b"".join(_encode(message) for message in messages))
    if failure is None:
        if not begun:
            await request.begin(JSON)
        return
    if not begun:
        raise failure
    _, text = describe(failure)
    await request.send(_line(Progress(error=text, error_detail=StreamError(message=text))))


def _encode(message: Mapping[str, object]) -> bytes:
    detail = message.get("progressDetail")
    if isinstance(detail, Mapping) and detail:
        return _line({**message, "progress": draw_bar(int(detail["current"]), int(detail["total"]))})
    return _line(message)


def _line(message: object) -> bytes:
    return codec.encode(message) + b"\r\n"

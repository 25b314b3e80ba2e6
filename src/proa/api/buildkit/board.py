# SPDX-License-Identifier: Apache-2.0
"""What a build's client is shown: steps as vertexes, transfers as statuses, output as logs.

Clients draw ``[1/3] FROM …``, CACHED and the times of it. What is written is kept until the client's Status
call takes it, the newest state of each vertex and status once.

Source: BuildKit, api/services/control (StatusResponse), client/graph.go.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager

import anyio
from google.protobuf.timestamp_pb2 import Timestamp

from proa.api.buildkit.proto import buildkit_pb2 as pb
from proa.build.parser import Instruction
from proa.model.errors import CommandFailed, EngineError

FLUSH_S = 0.05  # between two messages: a build that writes fast must not send each line alone
WAITING_MAX = 1 << 20  # bytes of output that wait for the client; then the step does


class Board:
    """One build's; ``proa.engine.building.attending.StepWatcher``.

    :ivar failed: the instruction that failed first, None while none has.
    """

    def __init__(self, ref: str) -> None:
        self._ref = ref
        self._vertexes: dict[str, pb.Vertex] = {}
        self._fresh_vertexes: dict[str, pb.Vertex] = {}
        self._fresh_statuses: dict[tuple[str, str], pb.VertexStatus] = {}
        self._began: dict[tuple[str, str], Timestamp] = {}
        self._logs: list[pb.VertexLog] = []
        self._log_bytes = 0
        self._lines: dict[str, Instruction] = {}
        self._changed = anyio.Event()
        self._taken = anyio.Event()
        self._ended = anyio.Event()
        self.failed: Instruction | None = None

    # --- the engine's side ---

    def begin(self, key: str, title: str, line: Instruction) -> None:
        self._lines[key] = line
        self._begin(key, title)

    def cached(self, key: str) -> None:
        self._vertexes[key].cached = True
        self._show(key)

    def say(self, key: str, text: str) -> None:
        data = text.encode(errors="replace")
        self._logs.append(pb.VertexLog(vertex=self._digest(key), timestamp=_now(), stream=1, msg=data))
        self._log_bytes += len(data)
        self._changed.set()

    def pull(self, key: str, message: Mapping[str, object]) -> None:
        layer, text = message.get("id"), message.get("status")
        detail = message.get("progressDetail")
        if not isinstance(layer, str) or not isinstance(detail, Mapping):
            return
        current, total = detail.get("current"), detail.get("total")
        done = text in ("Pull complete", "Already exists", "Download complete")
        self.status(
            key,
            layer,
            current if isinstance(current, int) else 0,
            total=total if isinstance(total, int) else 0,
            done=done,
        )

    def end(self, key: str, error: BaseException | None) -> None:
        vertex = self._vertexes[key]
        vertex.completed.CopyFrom(_now())
        if isinstance(error, EngineError):
            self.failed = self.failed or self._lines.get(key)
            vertex.error = failure_text(error)
        elif error is not None:
            vertex.error = "context canceled"
        self._show(key)

    async def room(self) -> None:
        """Wait while the client has much to read yet."""
        while self._log_bytes > WAITING_MAX and not self._ended.is_set():
            self._taken = anyio.Event()
            await self._taken.wait()

    # --- steps of our own ---

    @contextmanager
    def step(self, title: str) -> Iterator[str]:
        """Show something that is done for the span of the block; gives its key."""
        key = f"{title} {len(self._vertexes)}"
        self._begin(key, title)
        try:
            yield key
        except BaseException as error:
            self.end(key, error)
            raise
        self.end(key, None)

    def status(self, key: str, name: str, current: int, *, total: int = 0, done: bool = False) -> None:
        """Show how far something inside a step is, in bytes."""
        began = self._began.setdefault((key, name), _now())
        self._fresh_statuses[key, name] = pb.VertexStatus(
            id=name,
            vertex=self._digest(key),
            name=name,
            current=total if done and total else current,
            total=total,
            timestamp=_now(),
            started=began,
            completed=_now() if done else None,
        )
        self._changed.set()

    def close(self) -> None:
        """Nothing follows. Idempotent."""
        self._ended.set()
        self._changed.set()
        self._taken.set()

    # --- the client's side ---

    async def updates(self) -> AsyncGenerator[pb.StatusResponse, None]:
        """Yield what is new until the end; for one reader."""
        while True:
            await self._changed.wait()
            closed = self._ended.is_set()
            if self._fresh_vertexes or self._fresh_statuses or self._logs:
                yield self._take()
            if closed:
                return
            self._changed = anyio.Event()
            with anyio.move_on_after(FLUSH_S):
                await self._ended.wait()
            if self._ended.is_set() or self._fresh_vertexes or self._fresh_statuses or self._logs:
                self._changed.set()

    def _take(self) -> pb.StatusResponse:
        update = pb.StatusResponse(
            vertexes=self._fresh_vertexes.values(), statuses=self._fresh_statuses.values(), logs=self._logs
        )
        self._fresh_vertexes, self._fresh_statuses, self._logs = {}, {}, []
        self._log_bytes = 0
        self._taken.set()
        return update

    def _begin(self, key: str, title: str) -> None:
        self._vertexes[key] = pb.Vertex(digest=self._digest(key), name=title, started=_now())
        self._show(key)

    def _show(self, key: str) -> None:
        self._fresh_vertexes[key] = self._vertexes[key]
        self._changed.set()

    def _digest(self, key: str) -> str:
        return "sha256:" + hashlib.sha256(f"{self._ref} {key}".encode()).hexdigest()


def failure_text(error: EngineError) -> str:
    """Say what failed in BuildKit's words."""
    if isinstance(error, CommandFailed):
        return f'process "{error.command}" did not complete successfully: exit code: {error.code}'
    return error.message


def _now() -> Timestamp:
    now_ns = time.time_ns()
    return Timestamp(seconds=now_ns // 1_000_000_000, nanos=now_ns % 1_000_000_000)

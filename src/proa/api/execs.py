# SPDX-License-Identifier: Apache-2.0
"""Routes of processes started by exec. Source: Engine API, tag Exec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from proa.api.request import Request
from proa.api.response import Response, json_response
from proa.api.router import Router
from proa.api.streams import ChosenStdio, detach_keys, hijack_type, pump, send_message, terminal_size
from proa.engine.execs import Exec, ExecRequest
from proa.model.errors import EngineError, InvalidParameter
from proa.model.ids import ExecId
from proa.runtime.seam import Stdio
from proa.wire import execs as wire
from proa.wire import routes


class Backend(Protocol):
    """What these routes need of the engine."""

    def get(self, exec_id: str) -> Exec: ...
    def check_startable(self, exec_id: str) -> Exec: ...
    async def create(self, ref: str, request: ExecRequest) -> ExecId: ...
    async def start(
        self, exec_id: str, *, detach: bool, tty: bool | None, console_size: tuple[int, int] | None
    ) -> Stdio | None: ...
    def tell_detached(self, exec_id: str) -> None: ...
    async def resize(self, exec_id: str, rows: int, columns: int) -> None: ...


class ExecRoutes:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def register(self, router: Router) -> None:
        router.add(routes.CONTAINER_EXEC, self.create)
        router.add(routes.EXEC_START, self.start)
        router.add(routes.EXEC_RESIZE, self.resize)
        router.add(routes.EXEC_INSPECT, self.inspect)

    async def create(self, request: Request) -> Response:
        body = await request.json(wire.ExecCreateRequest) or wire.ExecCreateRequest()
        if body.detach_keys:
            detach_keys(body.detach_keys)
        exec_id = await self._backend.create(
            request.params["id"],
            ExecRequest(
                cmd=(body.cmd,) if isinstance(body.cmd, str) else tuple(body.cmd or ()),
                env=tuple(body.env or ()),
                user=body.user,
                working_dir=body.working_dir,
                tty=body.tty,
                attach_stdin=body.attach_stdin,
                attach_stdout=body.attach_stdout,
                attach_stderr=body.attach_stderr,
                privileged=body.privileged,
                detach_keys=body.detach_keys,
            ),
        )
        return json_response(wire.ExecCreated(id=exec_id), 201)

    async def start(self, request: Request) -> Response | None:
        """Take over the connection and start it; with Detach start it and answer.

        The head goes out before the start, as dockerd does it: docker-py loses output that arrives in one
        piece with the head. A failed start is told on the stream, where the docker command looks for it.
        """
        body = await request.json(wire.ExecStartRequest) or wire.ExecStartRequest()
        one = self._backend.check_startable(request.params["id"])
        keys = detach_keys(one.request.detach_keys)
        size = console_size(body.console_size)
        if body.detach:
            await self._backend.start(one.id, detach=True, tty=body.tty, console_size=size)
            return Response()
        raw = await request.hijack(hijack_type(request, tty=body.tty))
        try:
            stdio = await self._backend.start(one.id, detach=False, tty=body.tty, console_size=size)
        except EngineError as error:
            await send_message(raw, error.message, tty=body.tty)
            return None
        if stdio is None:
            return None
        asked = one.request
        chosen = ChosenStdio(
            stdio, stdin=asked.attach_stdin, stdout=asked.attach_stdout, stderr=asked.attach_stderr
        )
        if await pump(chosen, raw, tty=body.tty, detach_keys=keys):
            self._backend.tell_detached(one.id)
        return None

    async def resize(self, request: Request) -> Response:
        rows, columns = terminal_size(request)
        await self._backend.resize(request.params["id"], rows, columns)
        return Response()

    async def inspect(self, request: Request) -> Response:
        return json_response(shape(self._backend.get(request.params["id"])))


def shape(one: Exec) -> wire.ExecInspect:
    """Return an exec as Docker shows it."""
    asked = one.request
    return wire.ExecInspect(
        id=one.id,
        running=one.running,
        exit_code=one.exit_code,
        process_config=wire.ExecProcessConfig(
            tty=asked.tty,
            entrypoint=asked.cmd[0],
            arguments=list(asked.cmd[1:]),
            privileged=asked.privileged,
            user=asked.user,
        ),
        open_stdin=asked.attach_stdin,
        open_stderr=asked.attach_stderr,
        open_stdout=asked.attach_stdout,
        container_id=one.container_id,
        detach_keys=asked.detach_keys,
        pid=one.pid,
    )


def console_size(sizes: Sequence[int] | None) -> tuple[int, int] | None:
    """Return rows and columns of a ConsoleSize. Raises InvalidParameter."""
    if not sizes or list(sizes) == [0, 0]:
        return None
    if len(sizes) != 2 or not all(0 <= size < 2**16 for size in sizes):
        raise InvalidParameter(f"invalid ConsoleSize {list(sizes)}: rows and columns are expected")
    return sizes[0], sizes[1]

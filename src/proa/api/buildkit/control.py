# SPDX-License-Identifier: Apache-2.0
"""The services that a client of BuildKit calls: Control, and the gateway by which it drives its build.

A client asks Control for a Solve without a front end, which only says what is to become of the result.
Beside that it asks the gateway for the Dockerfile front end's result, which it then returns. proa builds
and names the image in the gateway's Solve, because the names have come with Control's by then; Control's
answers on the return.

Source: BuildKit, api/services/control, frontend/gateway/pb, client/solve.go; errors: solver/errdefs.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
from anyio.abc import TaskGroup
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

from proa import __version__
from proa.api.buildkit import frontend
from proa.api.buildkit.board import Board, failure_text
from proa.api.buildkit.outputs import Output
from proa.api.buildkit.proto import buildkit_pb2 as pb
from proa.api.buildkit.routes import Backend
from proa.api.buildkit.sessions import Sessions
from proa.api.buildkit.transport import Services
from proa.api.errors import describe
from proa.build.parser import Instruction
from proa.engine.building.builds import CacheRecord
from proa.engine.building.request import ENTITLEMENTS
from proa.image.platform import host_platform
from proa.model.errors import (
    EngineError,
    InvalidParameter,
    NotImplementedHere,
)
from proa.model.ids import Digest

ARRIVAL_S = 6.0  # the calls of one build come at the same time, in any order
CONTROL = "/moby.buildkit.v1.Control/"
BRIDGE = "/moby.buildkit.v1.frontend.LLBBridge/"
BUILD_ID = "buildkit-controlapi-buildid"  # in a call's metadata: which build it belongs to
CAPABILITIES = (
    "solve.base",
    "return",
    "returnmap",
    "proto.refarray",
    "gateway.solve.metadata",
    "gateway.solve.evaluate",
)
HOST_GATEWAY = "org.mobyproject.buildkit.worker.moby.host-gateway-ip"  # clients want it for --add-host
_NO_LLB = "proa builds Dockerfiles: it does not execute LLB (docs/reference/builds.md)"

Serve = Callable[[Any], Awaitable[Any]]
"""Takes a message, returns one; of generated classes, which their Handler names."""


@dataclass(slots=True)
class _Job:
    """One Solve of Control and what belongs to it."""

    ref: str
    board: Board
    request: pb.SolveRequest | None = None
    output: Output | None = None  # with the request
    image_id: Digest | None = None
    failure: GRPCError | None = None
    arrived: anyio.Event = field(default_factory=anyio.Event)
    returned: anyio.Event = field(default_factory=anyio.Event)


class Client:
    """The services for one connection. Builds are tasks of ``group``; they end with their calls."""

    def __init__(self, backend: Backend, sessions: Sessions, group: TaskGroup) -> None:
        self._backend = backend
        self._sessions = sessions
        self._group = group
        self._jobs: dict[str, _Job] = {}

    def services(self) -> Services:
        unary, stream = Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM
        return Services(
            {
                CONTROL + "Info": Handler(_answering(self._info), unary, pb.Empty, pb.InfoResponse),
                CONTROL + "ListWorkers": Handler(
                    _answering(self._list_workers), unary, pb.Empty, pb.ListWorkersResponse
                ),
                CONTROL + "Solve": Handler(self.solve, unary, pb.SolveRequest, pb.SolveResponse),
                CONTROL + "Status": Handler(self.status, stream, pb.StatusRequest, pb.StatusResponse),
                CONTROL + "DiskUsage": Handler(
                    _answering(self._disk_usage), unary, pb.DiskUsageRequest, pb.DiskUsageResponse
                ),
                CONTROL + "Prune": Handler(self.prune, stream, pb.PruneRequest, pb.UsageRecord),
                BRIDGE + "Ping": Handler(_answering(self._ping), unary, pb.Empty, pb.PongResponse),
                BRIDGE + "Solve": Handler(
                    self.solve_frontend, unary, pb.BridgeSolveRequest, pb.BridgeSolveResponse
                ),
                BRIDGE + "Return": Handler(self.take_result, unary, pb.ReturnRequest, pb.Empty),
            }
        )

    # --- about the daemon ---

    async def _info(self, _: pb.Empty) -> pb.InfoResponse:
        return pb.InfoResponse(buildkit_version=_version())

    async def _list_workers(self, _: pb.Empty) -> pb.ListWorkersResponse:
        return pb.ListWorkersResponse(record=[self._worker()])

    async def _ping(self, _: pb.Empty) -> pb.PongResponse:
        capabilities = [pb.Capability(id=name, enabled=True) for name in CAPABILITIES]
        return pb.PongResponse(frontend_capabilities=capabilities, workers=[self._worker()])

    def _worker(self) -> pb.WorkerRecord:
        here = host_platform()
        platform = pb.Platform(architecture=here.architecture, os=here.os, variant=here.variant)
        labels = {"org.mobyproject.buildkit.worker.executor": "containers"}
        if self._backend.host_gateway is not None:
            labels[HOST_GATEWAY] = str(self._backend.host_gateway)
        return pb.WorkerRecord(id="proa", labels=labels, platforms=[platform], buildkit_version=_version())

    # --- builds ---

    async def solve(self, stream: Stream[pb.SolveRequest, pb.SolveResponse]) -> None:
        request = await _request(stream)
        if request.ref in self._jobs and self._jobs[request.ref].request is not None:
            raise GRPCError(Status.ALREADY_EXISTS, f"build {request.ref} is there already")
        job = self._job(request.ref)
        try:
            _check(request)
            job.output = Output(request)
            job.request = request
            job.arrived.set()
            if request.frontend:
                job.image_id = await self._in_group(
                    lambda: self._build(job, request.frontend_attrs, request.frontend, request.cache)
                )
            else:
                await job.returned.wait()
            if job.failure is not None:
                raise job.failure
            shown = job.output.show(job.board, job.image_id) if job.image_id is not None else {}
            await stream.send_message(pb.SolveResponse(exporter_response=shown))
        except EngineError as error:
            raise _refusal(error) from error
        finally:
            job.board.close()
            self._jobs.pop(request.ref, None)

    async def status(self, stream: Stream[pb.StatusRequest, pb.StatusResponse]) -> None:
        request = await _request(stream)
        job = self._job(request.ref)
        if not await _soon(job.arrived):
            self._jobs.pop(request.ref, None)
            raise GRPCError(Status.UNKNOWN, f"no such job {request.ref}")
        async with aclosing(job.board.updates()) as updates:
            async for update in updates:
                await stream.send_message(update)

    async def solve_frontend(self, stream: Stream[pb.BridgeSolveRequest, pb.BridgeSolveResponse]) -> None:
        request = await _request(stream)
        job = await self._attended(stream)
        try:
            if request.definition.ListFields():
                raise NotImplementedHere(_NO_LLB)
            if request.frontend_inputs:
                raise NotImplementedHere(
                    frontend.NO_CONTEXTS.format(name=next(iter(request.frontend_inputs)))
                )
            caches = pb.CacheOptions(imports=request.cache_imports)
            job.image_id = await self._in_group(
                lambda: self._build(job, request.frontend_opt, request.frontend, caches)
            )
        except GRPCError as error:
            job.failure = error
            raise
        except EngineError as error:
            job.failure = _refusal(error)
            raise job.failure from error
        result = pb.Result(ref=pb.Ref(id=job.image_id))
        await stream.send_message(pb.BridgeSolveResponse(result=result))

    async def take_result(self, stream: Stream[pb.ReturnRequest, pb.Empty]) -> None:
        request = await _request(stream)
        job = await self._attended(stream)
        if request.HasField("error") and request.error.code and job.failure is None:
            job.failure = GRPCError(
                Status(request.error.code) if 0 < request.error.code <= 16 else Status.UNKNOWN,
                request.error.message,
                list(request.error.details),
            )
        job.returned.set()
        await stream.send_message(pb.Empty())

    async def _build(self, job: _Job, attrs: Mapping[str, str], name: str, caches: pb.CacheOptions) -> Digest:
        """Build as the Dockerfile front end would. Raises GRPCError with the place in the Dockerfile."""
        assert job.request is not None and job.output is not None
        if name != frontend.NAME:
            raise NotImplementedHere(f"proa has no front end {name!r}, only {frontend.NAME}")
        references = [
            entry.attrs.get("ref", "") for entry in caches.imports if entry.type in ("", "registry")
        ]
        wanted = frontend.read_attributes(attrs, job.output.names, [ref for ref in references if ref])
        session = await self._sessions.get(job.request.session)
        board, text, ignored = job.board, None, list[str]()
        if wanted.local_dockerfile:
            text = await frontend.load_dockerfile(wanted, session, board)
            if not wanted.upload and not wanted.request.remote:
                ignored = await frontend.load_ignored(wanted, session, board)
        request = replace(
            wanted.request,
            dockerfile_text=text,
            contexts=frontend.named_contexts(attrs, session),
            answers=session,
            entitlements=frozenset(job.request.entitlements),
            watcher=board,
            keeps_image=job.output.is_image,
            take_files=job.output.taker(session, board, self._backend.spool),
        )
        knows = self._backend.knows_context
        try:
            if request.remote:
                return await self._backend.build(request, _nothing(), _drop, board.room)
            async with (
                frontend.open_context(wanted, session, board, ignored, knows) as (key, pieces),
                aclosing(pieces),
            ):
                request = replace(request, context_key=key)
                return await self._backend.build(request, pieces, _drop, board.room)
        except EngineError as error:
            raise _failure(error, board.failed, wanted.request.dockerfile, text) from error

    async def _in_group(self, work: Callable[[], Awaitable[Digest]]) -> Digest:
        """Do work in a task of ours, and wait for it.

        When the call is cancelled, so is the work: as anyio does it, so that what cleans up behind a shield
        can.
        """
        done = anyio.Event()
        scope = anyio.CancelScope()
        outcome: list[Digest | Exception] = []

        async def run() -> None:
            try:
                with scope:
                    outcome.append(await work())
            except Exception as error:  # noqa: BLE001 (raised again below, in the call)
                outcome.append(error)
            finally:
                done.set()

        self._group.start_soon(run)
        try:
            await done.wait()
        finally:
            scope.cancel()
        result = outcome[0] if outcome else GRPCError(Status.CANCELLED, "context canceled")
        if isinstance(result, EngineError | GRPCError):
            raise result
        if isinstance(result, Exception):
            _, message = describe(result)
            raise GRPCError(Status.UNKNOWN, message) from result
        return result

    def _job(self, ref: str) -> _Job:
        return self._jobs.setdefault(ref, _Job(ref, Board(ref)))

    async def _attended(self, stream: Stream[Any, Any]) -> _Job:
        """Return the job that a call of the gateway belongs to. Raises GRPCError."""
        named: list[str | bytes] = list(stream.metadata.getall(BUILD_ID, ())) if stream.metadata else []
        if not named:
            raise GRPCError(Status.INVALID_ARGUMENT, f"the call has no {BUILD_ID}")
        ref = str(named[0])
        job = self._job(ref)
        if not await _soon(job.arrived):
            self._jobs.pop(ref, None)
            raise GRPCError(Status.UNKNOWN, f"no such job {ref}")
        return job

    # --- the cache ---

    async def _disk_usage(self, request: pb.DiskUsageRequest) -> pb.DiskUsageResponse:
        records = await self._backend.records(_filters(request.filter))
        return pb.DiskUsageResponse(record=[_record(record) for record in records])

    async def prune(self, stream: Stream[pb.PruneRequest, pb.UsageRecord]) -> None:
        request = await _request(stream)
        try:
            filters = _filters(request.filter)
            if request.keep_duration > 0:
                filters["until"] = [f"{request.keep_duration // 1_000_000_000}s"]
            before = {record.id: record for record in await self._backend.records()}
            keep = max(request.reserved_space, request.max_used_space)
            removed, _ = await self._backend.prune(filters, all=request.all, keep_bytes=keep)
        except EngineError as error:
            raise _refusal(error) from error
        for name in removed:
            if name in before:
                await stream.send_message(_record(before[name]))


# --- messages ---


async def _request(stream: Stream[Any, Any]) -> Any:  # of the class that the method's Handler names
    message = await stream.recv_message()
    if message is None:
        raise GRPCError(Status.INVALID_ARGUMENT, "the call has no message")
    return message


def _answering(serve: Serve) -> Callable[[Stream[Any, Any]], Awaitable[None]]:
    async def call(stream: Stream[Any, Any]) -> None:
        try:
            await stream.send_message(await serve(await _request(stream)))
        except EngineError as error:
            raise _refusal(error) from error

    return call


async def _soon(event: anyio.Event) -> bool:
    with anyio.move_on_after(ARRIVAL_S):
        await event.wait()
    return event.is_set()


async def _nothing() -> AsyncIterator[bytes]:
    """The body of a build whose context is elsewhere."""
    for piece in list[bytes]():
        yield piece


def _drop(message: Mapping[str, object]) -> None:
    """The text of the classic API, which the board says in its own way."""


def _check(request: pb.SolveRequest) -> None:
    """Raise what is not there before anything is built."""
    if request.definition.ListFields():
        raise NotImplementedHere(_NO_LLB)
    if any(entry.type != "inline" for entry in request.cache.exports):
        raise NotImplementedHere("proa does not export its build cache")
    for name in request.entitlements:
        if name not in ENTITLEMENTS:
            raise InvalidParameter(f"unknown entitlement {name!r}")


def _filters(texts: Sequence[str]) -> dict[str, list[str]]:
    """Read filters such as ``type==regular``, of which buildx makes one text, maybe an empty one."""
    found: dict[str, list[str]] = {}
    for text in (part for whole in texts for part in whole.split(",") if part):
        key, equals, value = text.partition("=")
        if not equals or key.endswith(("!", "~")):
            raise InvalidParameter(f"unsupported filter {text!r}")
        found.setdefault(key, []).append(value.removeprefix("="))
    return found


def _refusal(error: EngineError) -> GRPCError:
    return GRPCError(Status.UNKNOWN, error.message)  # any other status clients put before the message


def _failure(error: EngineError, line: Instruction | None, name: str, text: str | None) -> GRPCError:
    """Say what failed in BuildKit's words, with the place from which clients print an excerpt."""
    message = failure_text(error)
    number = line.line if line is not None else getattr(error, "line", 0)
    if text is None or not number:
        return GRPCError(Status.UNKNOWN, message)
    source = {
        "info": {"filename": name, "data": base64.b64encode(text.encode()).decode()},
        "ranges": [{"start": {"line": number}, "end": {"line": number}}],
    }
    place = pb.Any(type_url="github.com/moby/buildkit/errdefs.Source+json", value=json.dumps(source).encode())
    return GRPCError(Status.UNKNOWN, message, [place])


def _version() -> pb.BuildkitVersion:
    return pb.BuildkitVersion(package="proa", version=f"v{__version__}", revision="")


def _record(record: CacheRecord) -> pb.UsageRecord:
    return pb.UsageRecord(
        id=record.id,
        mutable=record.path is not None,
        in_use=record.in_use,
        size=record.size_bytes,
        created_at=_time(record.created_at_ns),
        last_used_at=_time(record.used_at_ns),
        usage_count=record.uses,
        description=record.description,
        record_type=record.type,
        shared=record.shared,
    )


def _time(ns: int) -> dict[str, int]:
    return {"seconds": ns // 1_000_000_000, "nanos": ns % 1_000_000_000}

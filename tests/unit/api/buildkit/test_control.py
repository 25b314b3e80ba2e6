# SPDX-License-Identifier: Apache-2.0
"""Control and the gateway as a client calls them, on a fake engine."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from grpclib.client import Channel
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError

from proa.api.buildkit import control
from proa.api.buildkit.control import BRIDGE, BUILD_ID, CONTROL, Client
from proa.api.buildkit.proto import buildkit_pb2 as pb
from proa.api.buildkit.sessions import Sessions
from proa.api.buildkit.transport import connected, serve
from proa.api.channel import SocketChannel
from proa.api.raw import ChannelRawStream
from tests.support.fake_engine import FakeBuilds

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def client(builds: FakeBuilds) -> AsyncIterator[Channel]:
    """Give a connection to the services."""
    one, other = socket.socketpair()
    with SocketChannel(one) as near, SocketChannel(other) as far:
        async with anyio.create_task_group() as group:
            services = Client(builds, Sessions(), group).services()
            group.start_soon(serve, ChannelRawStream(far, b"", ended=False), services)
            async with connected(ChannelRawStream(near, b"", ended=False)) as (channel, _):
                yield channel
            group.cancel_scope.cancel()


async def call(channel: Channel, method: str, request: Any, kind: type[Any], build: str = "") -> list[Any]:
    """Return the answers. Any: messages of generated classes."""
    metadata = [(BUILD_ID, build)] if build else []
    cardinality = Cardinality.UNARY_STREAM
    async with channel.request(method, cardinality, type(request), kind, metadata=metadata) as stream:
        await stream.send_message(request, end=True)
        return [message async for message in stream]


async def test_what_clients_ask_first() -> None:
    async with client(FakeBuilds()) as channel:
        [info] = await call(channel, CONTROL + "Info", pb.Empty(), pb.InfoResponse)
        assert info.buildkit_version.package == "proa"
        [workers] = await call(channel, CONTROL + "ListWorkers", pb.Empty(), pb.ListWorkersResponse)
        assert workers.record[0].platforms[0].os == "linux"
        assert workers.record[0].labels[control.HOST_GATEWAY] == "10.0.0.1"
        [pong] = await call(channel, BRIDGE + "Ping", pb.Empty(), pb.PongResponse)
        assert {"return", "solve.base"} <= {one.id for one in pong.frontend_capabilities if one.enabled}


async def test_the_cache() -> None:
    builds = FakeBuilds()
    async with client(builds) as channel:
        [usage] = await call(channel, CONTROL + "DiskUsage", pb.DiskUsageRequest(), pb.DiskUsageResponse)
        assert [(one.id, one.size) for one in usage.record] == [("step", 42)]
        request = pb.PruneRequest(
            filter=["type==regular", ""], all=True, keep_duration=10**9, max_used_space=7
        )
        removed = await call(channel, CONTROL + "Prune", request, pb.UsageRecord)
        assert [one.id for one in removed] == ["step"]
        assert builds.pruned == [({"type": ["regular"], "until": ["1s"]}, True, 7)]
        with pytest.raises(GRPCError, match="unsupported filter"):
            await call(channel, CONTROL + "Prune", pb.PruneRequest(filter=["id~=x"]), pb.UsageRecord)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (pb.SolveRequest(ref="r", definition=pb.Definition(**{"def": [b"x"]})), "does not execute LLB"),
        (pb.SolveRequest(ref="r", exporters=[pb.Exporter(type="oci")]), "no exporter 'oci'"),
        (pb.SolveRequest(ref="r", exporters=[pb.Exporter(type="moby")] * 2), "one output"),
        (pb.SolveRequest(ref="r", entitlements=["device"]), "unknown entitlement 'device'"),
        (
            pb.SolveRequest(ref="r", exporters=[pb.Exporter(type="moby", attrs={"name": "A B"})]),
            "invalid reference",
        ),
        (
            pb.SolveRequest(ref="r", cache=pb.CacheOptions(exports=[pb.CacheEntry(type="registry")])),
            "does not export its build cache",
        ),
        (pb.SolveRequest(ref="r", frontend="gateway.v0", session="s"), "no front end 'gateway.v0'"),
    ],
)
async def test_what_is_refused(request_: pb.SolveRequest, message: str) -> None:
    builds = FakeBuilds()
    async with client(builds) as channel:
        with pytest.raises(GRPCError, match=message):
            await call(channel, CONTROL + "Solve", request_, pb.SolveResponse)
    assert builds.requests == []


async def test_calls_without_their_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ARRIVAL_S", 0.01)
    async with client(FakeBuilds()) as channel:
        solve = pb.BridgeSolveRequest(frontend="dockerfile.v0")
        for build, message in (("", "has no buildkit-controlapi-buildid"), ("r", "no such job r")):
            with pytest.raises(GRPCError, match=message):
                await call(channel, BRIDGE + "Solve", solve, pb.BridgeSolveResponse, build)
        with pytest.raises(GRPCError, match="no such job r"):
            await call(channel, CONTROL + "Status", pb.StatusRequest(ref="r"), pb.StatusResponse)


async def test_a_build_whose_client_has_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proa.api.buildkit.sessions.ARRIVAL_S", 0.01)
    builds = FakeBuilds()
    async with client(builds) as channel, anyio.create_task_group() as group:
        failures: list[GRPCError] = []

        async def solve() -> None:
            try:
                request = pb.SolveRequest(ref="r", session="none", exporters=[pb.Exporter(type="moby")])
                await call(channel, CONTROL + "Solve", request, pb.SolveResponse)
            except GRPCError as error:
                failures.append(error)

        group.start_soon(solve)
        request = pb.BridgeSolveRequest(frontend="dockerfile.v0")
        with pytest.raises(GRPCError, match="no active session for none"):
            await call(channel, BRIDGE + "Solve", request, pb.BridgeSolveResponse, "r")
        failed = pb.ReturnRequest(error=pb.Status(code=Status.UNKNOWN.value, message="as told"))
        await call(channel, BRIDGE + "Return", failed, pb.Empty, "r")
    assert "no active session for none" in str(failures[0].message)
    assert builds.requests == []


def test_the_daemons_start_does_not_import_grpc() -> None:
    script = (
        "import proa.api.app, sys; sys.exit('grpclib' in sys.modules or 'google.protobuf' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0

# SPDX-License-Identifier: Apache-2.0
"""POST /build as clients send it, and the answers they tell success and failure by."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from urllib.parse import urlencode

import pytest

from proa.api.app import build_app
from proa.wire.sections import join_streams
from tests.support.fake_engine import IMAGE_ID, FakeEngine
from tests.support.http import Client, connected

pytestmark = pytest.mark.anyio
TAR = {"Content-Type": "application/x-tar"}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[Client]:
    async with connected(build_app(engine)) as client:
        yield client


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


async def test_every_parameter_arrives(client: Client, engine: FakeEngine) -> None:
    query = [
        ("t", "a:1"), ("t", "b"), ("dockerfile", "D"), ("nocache", "1"), ("rm", "0"), ("pull", "1"),
        ("target", "x"),
        ("buildargs", '{"A": "1", "B": null}'), ("labels", '{"l": "m"}'), ("cachefrom", '["c"]'),
        ("networkmode", "none"), ("extrahosts", "h:1.2.3.4"), ("memory", "1000"),
        ("cpuquota", "5"), ("shmsize", "7"),
        ("ulimits", '[{"Name": "nofile", "Soft": 1, "Hard": 2}]'), ("platform", "linux/AMD64"), ("q", "true"),
    ]  # fmt: skip
    headers = {
        **TAR,
        "X-Registry-Config": encoded({"r:5000": {"username": "ann", "password": "p"}}),
        "X-Proa-Build-Secrets": encoded({"s": base64.b64encode(b"\0x").decode()}),
    }
    answer = await client.request("POST", f"/build?{urlencode(query)}", b"context", headers=headers)
    assert answer.status == 200
    ((request, context),) = engine.builds.requests
    assert context == b"context"
    assert (request.tags, request.dockerfile, request.target) == (("a:1", "b"), "D", "x")
    assert (request.no_cache, request.remove, request.pull, request.quiet) == (True, False, True, True)
    assert (request.build_args, request.labels) == ({"A": "1", "B": None}, {"l": "m"})
    assert (request.cache_from, request.platform) == (("c",), "linux/amd64")
    host = request.host
    assert (host.network_mode, host.extra_hosts, host.memory, host.cpu_quota, host.shm_size) == (
        "none", ["h:1.2.3.4"], 1000, 5, 7
    )  # fmt: skip
    assert host.ulimits is not None and host.ulimits[0].hard == 2
    assert request.credentials["r:5000"].username == "ann"
    assert request.secrets == {"s": b"\0x"}


async def test_stream_and_failures(client: Client) -> None:
    answer = await client.request("POST", "/build", b"", headers=TAR)
    lines = [json.loads(line) for line in answer.body.split(b"\r\n") if line]
    assert lines == [{"stream": "Step 1/1 : FROM busybox\n"}, {"aux": {"ID": IMAGE_ID}}]
    answer = await client.request("POST", "/build?target=bad", b"", headers=TAR)
    last = json.loads(answer.body.split(b"\r\n")[-2])
    text = "The command '/bin/sh -c false' returned a non-zero code: 3"
    assert last == {"error": text, "errorDetail": {"code": 3, "message": text}}
    answer = await client.request("POST", "/build?target=early", b"", headers=TAR)
    assert (answer.status, answer.json()["message"]) == (
        400,
        "dockerfile parse error on line 2: unknown instruction: FOO",
    )


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("buildargs=x", {}, 400),
        ("labels=[]", {}, 400),
        ("contexts=x", {}, 400),
        ("allow=everything", {}, 400),
        ("contexts=%7B%22a%22%3A1%7D", {}, 400),
        ("memory=lots", {}, 400),
        ("version=2", {}, 501),
        ("outputs=x", {}, 400),
        ("", {"X-Registry-Config": "%%%"}, 400),
        ("", {"X-Proa-Build-Secrets": "eyJzIjogIiUifQ=="}, 400),
    ],
)
async def test_bad_requests(client: Client, query: str, headers: dict[str, str], status: int) -> None:
    answer = await client.request("POST", f"/build?{query}", b"", headers={**TAR, **headers})
    assert answer.status == status, answer.body


async def test_named_contexts(client: Client, engine: FakeEngine) -> None:
    query = urlencode({"contexts": json.dumps({"i": "docker-image://b", "one": "", "two": ""})})
    body = b"".join(join_streams([[b"main"], [b"1", b"1"], [b"2"]]))
    answer = await client.request("POST", f"/build?{query}", body, headers=TAR)
    assert answer.status == 200, answer.body
    ((request, context),) = engine.builds.requests
    assert context == b"main"
    assert request.contexts["i"] == "docker-image://b"
    assert list(request.contexts) == ["i", "one", "two"]


async def test_prune(client: Client, engine: FakeEngine) -> None:
    answer = await client.request(
        "POST", "/build/prune?all=1&keep-storage=5&filters=%7B%22until%22%3A%5B%221h%22%5D%7D"
    )
    assert answer.json() == {"CachesDeleted": ["step"], "SpaceReclaimed": 42}
    assert engine.builds.pruned == [({"until": ("1h",)}, True, 5)]

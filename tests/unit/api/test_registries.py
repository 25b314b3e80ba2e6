# SPDX-License-Identifier: Apache-2.0
"""Pull, push, login, search and distribution as clients ask for them."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator

import pytest

from proa.api.app import build_app
from proa.model.registry import ANONYMOUS, Credentials
from tests.support.fake_engine import IMAGE_ID, FakeEngine
from tests.support.http import Client, connected
from tests.support.swagger import check_answer

pytestmark = pytest.mark.anyio

ANN = {"username": "ann", "password": "right", "serveraddress": "r:5000"}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[Client]:
    async with connected(build_app(engine)) as client:
        yield client


def auth(value: object) -> dict[str, str]:
    return {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(value).encode()).decode()}


def lines(body: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in body.split(b"\r\n") if line]


async def test_a_pull_streams_and_the_newest_amount_is_told(client: Client, engine: FakeEngine) -> None:
    path = "/images/create?fromImage=busybox&tag=1&platform=linux/arm64"
    reply = await client.request("POST", path, b"", auth(ANN))
    assert reply.status == 200
    told = lines(reply.body)
    assert told[0] == {"status": "Pulling from library/busybox", "id": "1"}
    assert told[1] == {"status": "Pulling fs layer", "progressDetail": {}, "id": "abc"}
    assert told[2]["progressDetail"] == {"current": 3, "total": 3}
    assert told[2]["progress"] == f"[{'=' * 50}]        3B/3B"
    assert len(told) == 3
    ann = Credentials(username="ann", password="right", server="r:5000")
    assert engine.registries.asked == [("pull", "busybox", "1", "linux/arm64", ann)]


async def test_a_failed_pull_is_a_status_first_and_a_line_later(client: Client) -> None:
    reply = await client.request("POST", "/images/create?fromImage=nothing&tag=1")
    assert reply.status == 404
    assert reply.json()["message"].startswith("manifest for nothing:1 not found: manifest unknown")
    reply = await client.request("POST", "/images/create?fromImage=broken&tag=1")
    assert reply.status == 200
    assert lines(reply.body)[-1] == {
        "error": "unexpected EOF",
        "errorDetail": {"message": "unexpected EOF"},
    }


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("%%%", "it is not base64"),
        (base64.b64encode(b"[1]").decode(), "Expected"),
        (base64.b64encode(b'{"auth": "bm9jb2xvbg=="}').decode(), "no colon"),
        ("A" * 70_000, ""),
    ],
)
async def test_broken_credentials_are_refused(client: Client, header: str, message: str) -> None:
    path = "/images/create?fromImage=busybox&tag=1"
    reply = await client.request("POST", path, b"", {"X-Registry-Auth": header})
    assert reply.status in (400, 431)
    assert message in reply.json()["message"]


async def test_push_takes_names_with_slashes_and_a_platform_in_json(
    client: Client, engine: FakeEngine
) -> None:
    platform = "%7B%22os%22%3A%22linux%22%2C%22architecture%22%3A%22arm64%22%7D"
    reply = await client.request("POST", f"/images/r:5000/a/b/push?tag=2&platform={platform}")
    assert lines(reply.body) == [{"progressDetail": {}, "aux": {"Tag": "2", "Digest": IMAGE_ID, "Size": 3}}]
    assert engine.registries.asked == [("push", "r:5000/a/b", "2", "linux/arm64", ANONYMOUS)]
    reply = await client.request("POST", "/images/a/push?platform=%7B1")
    assert reply.status == 400


async def test_login(client: Client) -> None:
    reply = await client.request("POST", "/v1.51/auth", json.dumps(ANN).encode())
    assert reply.json() == {"Status": "Login Succeeded", "IdentityToken": "token"}
    assert check_answer("POST", "/auth", 200, reply.json()) == []
    reply = await client.request("POST", "/auth", json.dumps({**ANN, "password": "wrong"}).encode())
    assert reply.status == 401
    assert (await client.request("POST", "/auth")).status == 400


async def test_search_and_distribution(client: Client, engine: FakeEngine) -> None:
    reply = await client.request("GET", "/images/search?term=box&limit=3")
    assert reply.json()[0]["star_count"] == 7
    assert check_answer("GET", "/images/search", 200, reply.json()) == []
    assert engine.registries.asked == [("search", "box", 3, {})]
    reply = await client.request("GET", "/distribution/r:5000/a/b:1/json")
    assert reply.json()["Descriptor"]["digest"] == IMAGE_ID
    assert check_answer("GET", "/distribution/{name}/json", 200, reply.json()) == []

# SPDX-License-Identifier: Apache-2.0
"""What a web page can make a browser send is refused on an open port; what clients send is not."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from proa.api.application import Application
from proa.api.guard import LoopbackGuard
from proa.api.request import Request
from proa.api.response import Response
from proa.api.router import Router
from proa.wire.routes import PING, Route
from tests.support.http import Client, connected

pytestmark = pytest.mark.anyio


async def answer(request: Request) -> Response:
    return Response(content_type="text/plain", body=b"OK")


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    router = Router()
    router.add(PING, answer)
    router.add(Route("POST", "/x"), answer)
    async with connected(LoopbackGuard(Application(router, server="test"))) as client:
        yield client


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:2375", "LOCALHOST", "127.0.0.1:2375", "127.1.2.3", "[::1]:2375", "[::1]"]
)
async def test_loopback_names_are_served(client: Client, host: str) -> None:
    assert (await client.request("GET", "/_ping", headers={"Host": host})).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:2375",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "evil.example@10.0.0.1",
        "10.0.0.1",
        "0.0.0.0:2375",
        "[::]",
        "[::1",
        "",
    ],
)
async def test_other_names_are_not(client: Client, host: str) -> None:
    reply = await client.request("GET", "/_ping", headers={"Host": host})
    assert reply.status == 403
    assert "Host header" in reply.json()["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:2375"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "Multipart/Form-Data; boundary=x"},
    ],
)
async def test_what_browsers_send_for_pages_is_refused(client: Client, headers: dict[str, str]) -> None:
    reply = await client.request("POST", "/x", b"", headers={"Host": "127.0.0.1:2375", **headers})
    assert reply.status == 403
    assert "does not serve web pages" in reply.json()["message"]


async def test_without_a_host_header(client: Client) -> None:
    await client.send("GET /_ping HTTP/1.0\r\n\r\n")
    assert (await client.reply()).status == 403


async def test_what_clients_send_is_served(client: Client) -> None:
    for kind in ("application/json", "text/plain", "application/x-tar"):
        headers = {"Host": "127.0.0.1:2375", "Content-Type": kind, "Sec-Fetch-Site": "none"}
        assert (await client.request("POST", "/x", b"", headers=headers)).status == 200

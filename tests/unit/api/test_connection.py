# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 as clients use and misuse it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from proa.api import connection
from proa.api.application import Application
from proa.api.request import Request
from proa.api.response import Response, json_response
from proa.api.router import Router
from proa.model.errors import InvalidParameter, NoSuchContainer, NotModified
from proa.wire.routes import Route
from tests.support.http import Client, connected

pytestmark = pytest.mark.anyio


class Handlers:
    """A small application with one handler for each way of answering."""

    def __init__(self) -> None:
        self.go_on = anyio.Event()
        self.cancelled = anyio.Event()
        self.finished = anyio.Event()
        self.got = b""
        router = Router()
        router.add(Route("GET", "/plain"), self.plain)
        router.add(Route("HEAD", "/plain"), self.plain)
        router.add(Route("POST", "/echo"), self.echo)
        router.add(Route("POST", "/ignore"), self.plain)
        router.add(Route("GET", "/stream"), self.stream)
        router.add(Route("GET", "/cut"), self.cut)
        router.add(Route("GET", "/forever"), self.forever, watch=True)
        router.add(Route("GET", "/steady"), self.steady)
        router.add(Route("GET", "/fail/{kind}"), self.fail)
        router.add(Route("GET", "/fail-watched"), self.fail, watch=True)
        router.add(Route("POST", "/raw"), self.raw)
        router.add(Route("POST", "/refuse-raw"), self.refuse_raw)
        self.app = Application(router, server="test")

    async def plain(self, request: Request) -> Response:
        return Response(content_type="text/plain", body=b"OK" if request.method != "HEAD" else b"")

    async def echo(self, request: Request) -> Response:
        return Response(content_type="text/plain", body=await request.body(limit=3_000_000))

    async def stream(self, request: Request) -> None:
        await request.begin("text/plain")
        await request.send(b"one")
        await self.go_on.wait()
        await request.send(b"two")

    async def cut(self, request: Request) -> None:
        await request.begin("text/plain")
        await request.send(b"some")
        raise RuntimeError("broken in the middle")

    async def forever(self, request: Request) -> None:
        try:
            await request.begin("text/plain")
            await anyio.sleep_forever()
        finally:
            self.cancelled.set()

    async def steady(self, request: Request) -> Response:
        await self.go_on.wait()
        self.finished.set()
        return json_response({})

    async def fail(self, request: Request) -> Response:
        match request.params.get("kind", "missing"):
            case "missing":
                raise NoSuchContainer("x")
            case "unmodified":
                raise NotModified("nothing to do")
            case "group":
                raise ExceptionGroup("of one", [InvalidParameter("wrong")])
            case _:
                raise RuntimeError("a bug")

    async def raw(self, request: Request) -> None:
        raw = await request.hijack("application/vnd.docker.raw-stream")
        while data := await raw.receive():
            self.got += data
            await raw.send(data.upper())
        await raw.send(b"after the end")
        await raw.send_eof()

    async def refuse_raw(self, request: Request) -> None:
        raise NoSuchContainer("x")


@pytest.fixture
def handlers() -> Handlers:
    return Handlers()


@pytest.fixture
async def client(handlers: Handlers) -> AsyncIterator[Client]:
    async with connected(handlers.app) as client:
        yield client


async def is_closed(client: Client) -> bool:
    return await client.to_end() == b""


async def test_keep_alive_and_common_headers(client: Client) -> None:
    for _ in range(3):
        reply = await client.request("GET", "/v1.44/plain")
        assert (reply.status, reply.reason, reply.body) == (200, "OK", b"OK")
        assert reply.headers["api-version"] == "1.51"
        assert reply.headers["docker-experimental"] == "false"
        assert reply.headers["ostype"] == "linux"
        assert reply.headers["server"] == "test"
        assert "date" in reply.headers
        assert "connection" not in reply.headers


async def test_head_has_no_body(client: Client) -> None:
    assert (await client.request("HEAD", "/plain")).status == 200
    assert (await client.request("HEAD", "/nowhere")).status == 404  # nor do its errors
    assert (await client.request("GET", "/plain")).body == b"OK"


async def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    one = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n%d"
    await client.send(b"".join(one % number for number in range(5)))
    assert [(await client.reply()).body for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


async def test_byte_by_byte(client: Client) -> None:
    for byte in b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n":
        await client.send(bytes([byte]))
    assert (await client.reply()).body == b"abc"


async def test_http_1_0_gets_a_closed_connection(client: Client) -> None:
    await client.send("GET /plain HTTP/1.0\r\n\r\n")
    assert (await client.reply()).headers["connection"] == "close"
    assert await is_closed(client)


async def test_connection_close_is_honoured(client: Client) -> None:
    assert (await client.request("GET", "/plain", headers={"Connection": "close"})).body == b"OK"
    assert await is_closed(client)


async def test_absolute_form(client: Client) -> None:
    assert (await client.request("GET", "http://docker/v1.51/plain?x=1")).body == b"OK"


@pytest.mark.parametrize(
    "rubbish",
    [
        b"nonsense\r\n\r\n",
        b"GET /plain HTTP/1.1\r\n\r\n",  # no Host
        b"GET /plain HTTP/1.1\r\nHost: a\r\nbroken header\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
    ],
)
async def test_malformed_requests_get_400(client: Client, rubbish: bytes) -> None:
    await client.send(rubbish)
    await client.stream.send_eof()
    reply = await client.reply()
    assert reply.status == 400
    assert "malformed HTTP request" in reply.json()["message"]
    assert await is_closed(client)


async def test_a_head_without_end_is_refused(client: Client) -> None:
    await client.send(b"GET /plain HTTP/1.1\r\nHost: a\r\n" + b"X: " + b"y" * (connection.MAX_HEAD_BYTES + 1))
    await client.stream.send_eof()
    assert (await client.reply()).status == 431


async def test_broken_chunk_gets_400(client: Client) -> None:
    await client.send("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    assert (await client.reply()).status == 400


async def test_body_cut_off_gets_400(client: Client) -> None:
    await client.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
    await client.stream.send_eof()
    reply = await client.reply()
    assert reply.status == 400
    assert "broken request body" in reply.json()["message"]


async def test_expect_100_continue(client: Client) -> None:
    await client.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert (await client.head()).status == 100
    await client.send("abc")
    assert (await client.reply()).body == b"abc"
    assert (await client.request("GET", "/plain")).body == b"OK"


async def test_unwanted_body_that_was_not_sent_closes(client: Client) -> None:
    await client.send("POST /ignore HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    reply = await client.reply()
    assert (reply.status, reply.headers["connection"]) == (200, "close")


async def test_short_unwanted_body_keeps_the_connection(client: Client) -> None:
    assert (await client.request("POST", "/ignore", b"x" * 100_000)).body == b"OK"
    assert (await client.request("GET", "/plain")).body == b"OK"


async def test_long_unwanted_body_closes_but_the_answer_arrives(client: Client) -> None:
    async def upload() -> None:
        with anyio.move_on_after(5):
            await client.send(b"x" * 4_000_000)

    await client.send("POST /ignore HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n")
    async with anyio.create_task_group() as group:
        group.start_soon(upload)
        reply = await client.reply()
    assert (reply.status, reply.headers["connection"]) == (200, "close")


async def test_a_body_beyond_the_limit_is_413(client: Client) -> None:
    async def upload() -> None:
        for _ in range(40):
            await client.send(b"186a0\r\n" + b"x" * 100_000 + b"\r\n")

    await client.send("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    async with anyio.create_task_group() as group:
        group.start_soon(upload)
        assert (await client.reply()).status == 413


async def test_stream_is_flushed_at_once(client: Client, handlers: Handlers) -> None:
    await client.send("GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await client.head()).headers["transfer-encoding"] == "chunked"
    assert await client.chunk() == b"one"
    handlers.go_on.set()
    assert [chunk async for chunk in client.chunks()] == [b"two"]
    assert (await client.request("GET", "/plain")).body == b"OK"


async def test_a_stream_that_fails_is_cut(client: Client) -> None:
    await client.send("GET /cut HTTP/1.1\r\nHost: a\r\n\r\n")
    await client.head()
    assert await client.to_end() == b"4\r\nsome\r\n"  # without the last chunk


async def test_watched_handler_ends_with_its_client(client: Client, handlers: Handlers) -> None:
    await client.send("GET /forever HTTP/1.1\r\nHost: a\r\n\r\n")
    await client.head()
    await client.stream.aclose()
    with anyio.fail_after(5):
        await handlers.cancelled.wait()


async def test_unwatched_handler_is_carried_through(client: Client, handlers: Handlers) -> None:
    await client.send("GET /steady HTTP/1.1\r\nHost: a\r\n\r\n")
    await anyio.wait_all_tasks_blocked()
    await client.stream.aclose()
    handlers.go_on.set()
    with anyio.fail_after(5):
        await handlers.finished.wait()


async def test_request_sent_while_watching_is_kept(client: Client) -> None:
    await client.send("GET /fail-watched HTTP/1.1\r\nHost: a\r\n\r\nGET /plain HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await client.reply()).status == 404
    assert (await client.reply()).body == b"OK"


@pytest.mark.parametrize(
    ("kind", "status", "message"),
    [
        ("missing", 404, "No such container: x"),
        ("group", 400, "wrong"),
        ("bug", 500, "RuntimeError: a bug"),
    ],
)
async def test_errors_become_statuses(client: Client, kind: str, status: int, message: str) -> None:
    reply = await client.request("GET", f"/fail/{kind}")
    assert (reply.status, reply.json()) == (status, {"message": message})
    assert reply.headers["content-type"] == "application/json"


async def test_not_modified_has_no_body(client: Client) -> None:
    assert (await client.request("GET", "/fail/unmodified")).status == 304
    assert (await client.request("GET", "/plain")).body == b"OK"


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/nowhere", 404, "page not found"),
        ("GET", "/v1.51/nowhere", 404, "page not found"),
        ("DELETE", "/plain", 405, "method DELETE is not allowed on /plain"),
        (
            "GET",
            "/v1.99/plain",
            400,
            "client version 1.99 is too new. Maximum supported API version is 1.51",
        ),
        (
            "GET",
            "/v1.12/plain",
            400,
            "client version 1.12 is too old. Minimum supported API version is 1.24, "
            "please upgrade your client to a newer version",
        ),
    ],
)
async def test_routing_errors(client: Client, method: str, path: str, status: int, message: str) -> None:
    reply = await client.request(method, path)
    assert (reply.status, reply.json()["message"]) == (status, message)
    assert reply.headers["api-version"] == "1.51"


# --- hijacking ---

UPGRADE = "Upgrade: tcp\r\nConnection: Upgrade\r\n"


async def test_upgrade(client: Client, handlers: Handlers) -> None:
    await client.send(f"POST /raw HTTP/1.1\r\nHost: a\r\n{UPGRADE}Content-Length: 0\r\n\r\n")
    head = await client.head()
    assert (head.status, head.reason) == (101, "UPGRADED")
    assert (head.headers["connection"], head.headers["upgrade"]) == ("Upgrade", "tcp")
    assert head.headers["content-type"] == "application/vnd.docker.raw-stream"
    await client.send("hello")
    assert await client.exactly(5) == b"HELLO"
    await client.stream.send_eof()  # the end of input is not the end of output
    assert await client.to_end() == b"after the end"


async def test_bare_hijack(client: Client) -> None:
    await client.send("POST /raw HTTP/1.1\r\nHost: a\r\n\r\n")
    head = await client.head()
    assert (head.status, head.headers["content-type"]) == (200, "application/vnd.docker.raw-stream")
    assert "content-length" not in head.headers
    assert "transfer-encoding" not in head.headers
    await client.send("hello")
    assert await client.exactly(5) == b"HELLO"


async def test_hijack_takes_a_body_and_what_came_with_it(client: Client, handlers: Handlers) -> None:
    await client.send(f"POST /raw HTTP/1.1\r\nHost: a\r\n{UPGRADE}Content-Length: 2\r\n\r\n{{}}early")
    assert (await client.head()).status == 101
    assert await client.exactly(5) == b"EARLY"


async def test_refused_upgrade_is_a_plain_answer(client: Client) -> None:
    await client.send(f"POST /refuse-raw HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n")
    assert (await client.reply()).status == 404
    assert (await client.request("GET", "/plain")).body == b"OK"


# --- deadlines ---


async def test_a_slow_head_times_out(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.02)
    await client.send("GET /plain HTTP/1.1\r\n")
    assert await is_closed(client)


async def test_an_idle_connection_is_closed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "IDLE_S", 0.02)
    assert (await client.request("GET", "/plain")).body == b"OK"
    assert await is_closed(client)


async def test_a_stalled_body_is_408(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BODY_S", 0.02)
    monkeypatch.setattr(connection, "LINGER_S", 0.02)
    await client.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
    assert (await client.reply()).status == 408

# SPDX-License-Identifier: Apache-2.0
"""Attach, exec, logs and wait over a real connection to a fake engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import anyio
import pytest

from proa.api import streams
from proa.api.app import build_app
from proa.api.streams import detach_keys
from proa.engine.containers import AttachQuery
from proa.engine.logs import LogQuery, LogRecord
from proa.engine.unit import WaitResult
from proa.model.config import ContainerConfig
from proa.model.errors import InvalidParameter, StartFailed
from proa.runtime.seam import StreamId
from proa.wire.detach import DetachScanner
from proa.wire.stdio import FrameReader, frame
from tests.support.fake_engine import EXEC_ID, FakeEngine, make_container
from tests.support.http import Client, connected

pytestmark = pytest.mark.anyio

UPGRADE = {"Upgrade": "tcp", "Connection": "Upgrade"}
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
RAW = "application/vnd.docker.raw-stream"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[Client]:
    async with connected(build_app(engine)) as client:
        yield client


async def open_stream(
    client: Client, path: str, *, upgrade: bool = True, body: bytes = b"", version: str = "1.51"
) -> str:
    """Send a POST that takes over the connection; return the content type of the answer."""
    fields = {"Host": "a", "Content-Length": str(len(body)), "Content-Type": "application/json"}
    fields |= UPGRADE if upgrade else {}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    await client.send(f"POST /v{version}{path} HTTP/1.1\r\n{head}\r\n".encode() + body)
    answer = await client.head()
    assert answer.status == (101 if upgrade else 200)
    return answer.headers["content-type"]


def give_tty(engine: FakeEngine) -> None:
    engine.containers.records["web"] = make_container(config=ContainerConfig(tty=True, open_stdin=True))


# --- attach ---


async def test_attach_frames_the_output(client: Client, engine: FakeEngine) -> None:
    assert await open_stream(client, "/containers/web/attach?stream=1&stdout=1&stderr=1") == MULTIPLEXED
    stdio = engine.containers.stdio
    stdio.say(b"out")
    stdio.say(b"err", StreamId.STDERR)
    stdio.end()
    assert list(FrameReader().feed(await client.to_end())) == [(1, b"out"), (2, b"err")]
    await client.stream.aclose()
    with anyio.fail_after(2):
        await stdio.closed.wait()
    assert engine.containers.asked == [("attach", "web", AttachQuery(stdout=True, stderr=True, stream=True))]


@pytest.mark.parametrize(
    ("tty", "upgrade", "version", "content_type"),
    [
        (True, True, "1.51", RAW),
        (False, True, "1.41", RAW),
        (False, False, "1.51", RAW),
        (False, True, "1.42", MULTIPLEXED),
    ],
)
async def test_attach_types(
    client: Client, engine: FakeEngine, tty: bool, upgrade: bool, version: str, content_type: str
) -> None:
    if tty:
        give_tty(engine)
    path = "/containers/web/attach?stream=1&stdout=1"
    assert await open_stream(client, path, upgrade=upgrade, version=version) == content_type
    engine.containers.stdio.say(b"x")
    engine.containers.stdio.end()
    assert await client.to_end() == (b"x" if tty else frame(1, b"x"))


async def test_end_of_input_does_not_end_the_output(client: Client, engine: FakeEngine) -> None:
    await open_stream(client, "/containers/web/attach?stream=1&stdin=1&stdout=1")
    stdio = engine.containers.stdio
    await client.send("typed")
    await client.stream.send_eof()
    with anyio.fail_after(2):
        await stdio.got_eof.wait()
    assert stdio.typed == b"typed"
    stdio.say(b"answer")
    stdio.end()
    assert await client.to_end() == frame(1, b"answer")


async def test_input_nobody_reads_does_not_end_the_output(client: Client, engine: FakeEngine) -> None:
    engine.containers.stdio.is_deaf = True
    await open_stream(client, "/containers/web/attach?stream=1&stdin=1&stdout=1")
    await client.send("typed")
    await client.send("more")
    engine.containers.stdio.say(b"still here")
    engine.containers.stdio.end()
    assert await client.exactly(8 + 10) == frame(1, b"still here")


async def test_client_that_leaves_is_let_go(
    client: Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "GONE_POLL_S", 0.01)
    await open_stream(client, "/containers/web/attach?stream=1&stdout=1")
    await client.stream.aclose()
    with anyio.fail_after(2):
        await engine.containers.stdio.closed.wait()


async def test_detach_keys(client: Client, engine: FakeEngine) -> None:
    give_tty(engine)
    await open_stream(client, "/containers/web/attach?stream=1&stdin=1&stdout=1&detachKeys=ctrl-a,d")
    await client.send(b"before\x01")
    await client.send(b"d after")
    assert await client.to_end() == b""
    assert engine.containers.stdio.typed == b"before"
    assert engine.containers.stdio.closed.is_set()
    assert engine.containers.asked[-1] == ("detached", "web")
    assert not engine.containers.stdio.got_eof.is_set()


async def test_bad_detach_keys_are_a_status(client: Client) -> None:
    reply = await client.request("POST", "/containers/web/attach?detachKeys=ctrl-%C3%A4", headers=UPGRADE)
    assert reply.status == 400
    assert "Invalid detach keys" in reply.json()["message"]


def test_parsing_of_detach_keys() -> None:
    assert detach_keys("") == b"\x10\x11"
    assert detach_keys("ctrl-p,ctrl-q,a,ctrl-[,ctrl-@,ctrl-_") == b"\x10\x11a\x1b\x00\x1f"
    for bad in ("ctrl-", "ctrl-1", "xy", "a,,b", "ctrl-ab"):
        with pytest.raises(InvalidParameter):
            detach_keys(bad)


def test_scanning_holds_back_what_may_be_the_beginning() -> None:
    scanner = DetachScanner(b"\x10\x11")
    assert scanner.feed(b"ab\x10") == b"ab"
    assert scanner.feed(b"c") == b"\x10c"
    assert scanner.feed(b"\x10\x10") == b"\x10"
    assert scanner.feed(b"\x11rest") == b""
    assert scanner.detached


# --- exec ---


async def test_exec(client: Client, engine: FakeEngine) -> None:
    path = f"/exec/{EXEC_ID}/start"
    assert await open_stream(client, path, body=b'{"ConsoleSize": [24, 80]}') == MULTIPLEXED
    assert engine.execs.asked == [("start", EXEC_ID, False, False, (24, 80))]
    engine.execs.stdio.say(b"listing")
    engine.execs.stdio.end()
    assert await client.to_end() == frame(1, b"listing")


async def test_exec_shows_what_was_asked_for(client: Client, engine: FakeEngine) -> None:
    await open_stream(client, f"/exec/{EXEC_ID}/start", body=b"{}")
    engine.execs.stdio.say(b"hidden", StreamId.STDERR)  # only AttachStdout was given to its create
    engine.execs.stdio.say(b"shown")
    engine.execs.stdio.end()
    assert await client.to_end() == frame(1, b"shown")


async def test_exec_detached(client: Client) -> None:
    reply = await client.request("POST", f"/exec/{EXEC_ID}/start", b'{"Detach": true}')
    assert (reply.status, reply.body) == (200, b"")


async def test_exec_of_a_missing_program_is_told_on_the_stream(client: Client, engine: FakeEngine) -> None:
    engine.execs.fails = StartFailed("no such program", exit_code=127)
    await open_stream(client, f"/exec/{EXEC_ID}/start", body=b"{}")
    assert await client.to_end() == frame(1, b"no such program\r\n")


async def test_exec_errors_before_the_stream_are_statuses(client: Client) -> None:
    reply = await client.request("POST", "/exec/nothing/start", b"{}", UPGRADE)
    assert (reply.status, reply.json()) == (404, {"message": "No such exec instance: nothing"})
    reply = await client.request("POST", f"/exec/{EXEC_ID}/start", b'{"ConsoleSize": [1]}', UPGRADE)
    assert reply.status == 400


async def test_exec_create(client: Client, engine: FakeEngine) -> None:
    reply = await client.request("POST", "/containers/web/exec", b'{"Cmd": ["ls"], "Tty": true}')
    assert (reply.status, reply.json()) == (201, {"Id": EXEC_ID})
    assert engine.execs.asked[0][2].tty is True


# --- logs ---


async def test_logs(client: Client, engine: FakeEngine) -> None:
    engine.containers.log = [
        LogRecord(stream=StreamId.STDOUT, data=b"one\n"),
        LogRecord(stream=StreamId.STDERR, data=b"two\n"),
    ]
    path = "/v1.51/containers/web/logs?stdout=1&stderr=1&tail=5&since=1.5&timestamps=1"
    reply = await client.request("GET", path)
    assert reply.headers["content-type"] == MULTIPLEXED
    assert list(FrameReader().feed(reply.body)) == [(1, b"one\n"), (2, b"two\n")]
    query = LogQuery(stdout=True, stderr=True, since_ns=1_500_000_000, tail=5, timestamps=True)
    assert engine.containers.asked == [("logs", "web", query)]


async def test_logs_of_a_terminal_are_raw(client: Client, engine: FakeEngine) -> None:
    give_tty(engine)
    engine.containers.log = [LogRecord(stream=StreamId.STDOUT, data=b"one\n")]
    reply = await client.request("GET", "/containers/web/logs?stdout=1&tail=all")
    assert (reply.headers["content-type"], reply.body) == (RAW, b"one\n")


async def test_following_logs_sends_the_head_at_once(client: Client, engine: FakeEngine) -> None:
    await client.send("GET /containers/web/logs?follow=1&stdout=1 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await client.head()).status == 200


async def test_logs_of_no_stream_are_a_status(client: Client) -> None:
    reply = await client.request("GET", "/containers/web/logs")
    assert (reply.status, reply.json()["message"]) == (
        400,
        "Bad parameters: you must choose at least one stream",
    )


async def test_many_lines_are_sent_together(client: Client, engine: FakeEngine) -> None:
    engine.containers.log = [LogRecord(stream=StreamId.STDOUT, data=b"%05d\n" % n) for n in range(50_000)]
    reply = await client.request("GET", "/containers/web/logs?stdout=1")
    frames = list(FrameReader().feed(reply.body))
    assert len(frames) == 50_000
    assert frames[-1] == (1, b"49999\n")
    assert len(reply.chunks) < 100


# --- wait ---


async def test_wait_sends_its_head_before_the_end(client: Client, engine: FakeEngine) -> None:
    await client.send("POST /containers/web/wait?condition=next-exit HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await client.head()).status == 200
    assert engine.containers.asked == [("wait", "web", "next-exit")]
    engine.containers.waiting.finish(WaitResult(code=3))
    body = b"".join([chunk async for chunk in client.chunks()])
    assert json.loads(body) == {"StatusCode": 3}


async def test_wait_tells_of_an_error(client: Client, engine: FakeEngine) -> None:
    engine.containers.waiting.finish(WaitResult(code=127, error="no such program"))
    reply = await client.request("POST", "/containers/web/wait")
    assert reply.json() == {"StatusCode": 127, "Error": {"Message": "no such program"}}

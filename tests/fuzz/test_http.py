# SPDX-License-Identifier: Apache-2.0
"""Bytes no client should send: the server answers or closes, and never fails."""

from __future__ import annotations

import logging
import socket

import anyio
import pytest
from anyio.abc import UNIXSocketStream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proa.api.app import build_app
from proa.api.channel import SocketChannel
from proa.api.connection import Connection
from tests.support.fake_engine import EXEC_ID, FakeEngine

LINES = st.sampled_from(
    [
        b"GET /_ping HTTP/1.1\r\n",
        b"HEAD /_ping HTTP/1.1\r\n",
        b"POST /v1.51/containers/create?name=x HTTP/1.1\r\n",
        b"POST /containers/web/attach?stream=1&stdin=1 HTTP/1.1\r\n",
        b"POST /exec/" + EXEC_ID.encode() + b"/start HTTP/1.1\r\n",
        b"POST /images/load HTTP/1.1\r\n",
        b"GET /containers/json?filters=%7B%22a%22%3A HTTP/1.1\r\n",
        b"GET /containers/web/logs?stdout=1&tail=x&since=y HTTP/1.1\r\n",
        b"GET /../../x//y?%zz&&= HTTP/1.0\r\n",
        b"CONNECT web:80 HTTP/1.1\r\n",
        b"Host: a\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Type: application/json\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: Upgrade\r\nUpgrade: tcp\r\n",
        b"Connection: close\r\n",
        b"\r\n",
        b'{"Image": "a", "HostConfig": {"Memory": []}}',
        b"5\r\nabcde\r\n0\r\n\r\n",
        b"\x00\xff\x10\x11",
    ]
)


async def feed(said: list[bytes]) -> None:
    engine = FakeEngine()
    engine.containers.stdio.end()
    engine.execs.stdio.end()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    client = await UNIXSocketStream.from_socket(ours)

    async def serve() -> None:
        with SocketChannel(theirs) as channel:
            await Connection(channel, build_app(engine)).run()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(serve)
            async with client:
                try:
                    for piece in said:
                        await client.send(piece)
                    await client.send_eof()
                    while True:
                        await client.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError, OSError):
                    pass


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINES | st.binary(max_size=20), max_size=12))
def test_whatever_is_said(caplog: pytest.LogCaptureFixture, said: list[bytes]) -> None:
    caplog.clear()
    with caplog.at_level(logging.ERROR):
        anyio.run(feed, said)
    assert caplog.messages == []

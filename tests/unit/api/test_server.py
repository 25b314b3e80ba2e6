# SPDX-License-Identifier: Apache-2.0
"""The listening socket, and the first bytes of a connection."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import anyio
import pytest
from anyio.abc import UNIXSocketStream

from proa.api.application import Application
from proa.api.request import Request
from proa.api.response import Response
from proa.api.router import Router
from proa.api.server import HTTP2_PREFACE, Listener, open_unix_listener, serve
from proa.model.errors import InvalidParameter, Unavailable
from proa.wire.routes import PING
from tests.support.http import Client

pytestmark = pytest.mark.anyio


async def ping(request: Request) -> Response:
    return Response(content_type="text/plain", body=b"OK")


@pytest.fixture
def app() -> Application:
    router = Router()
    router.add(PING, ping)
    return Application(router, server="test")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


async def test_the_socket_has_its_mode(path: Path) -> None:
    with await open_unix_listener(path, mode=0o660):
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o660


async def test_a_stale_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with await open_unix_listener(path):
        assert path.exists()


async def test_a_living_socket_is_left_alone(path: Path) -> None:
    with await open_unix_listener(path), pytest.raises(Unavailable, match="another process listens"):
        await open_unix_listener(path)


async def test_a_file_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(InvalidParameter, match="is not a socket"):
        await open_unix_listener(path)
    assert path.read_text() == "precious"


async def test_a_long_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="longer than 107 bytes"):
        await open_unix_listener(tmp_path / ("x" * 108))


async def test_serving_many_and_closing(path: Path, app: Application) -> None:
    listener = await open_unix_listener(path)

    async def one() -> None:
        async with await anyio.connect_unix(path) as stream:
            assert (await Client(stream).request("GET", "/_ping")).body == b"OK"

    async with anyio.create_task_group() as group:
        await group.start(serve, app, [Listener(socket=listener)])
        async with anyio.create_task_group() as clients:
            for _ in range(20):
                clients.start_soon(one)
        group.cancel_scope.cancel()
    assert listener.fileno() == -1


async def speak(path: Path, app: Application, said: bytes) -> bytes:
    """Say something to a server, end our direction and return all it answers."""
    listener = await open_unix_listener(path)
    async with anyio.create_task_group() as group:
        await group.start(serve, app, [Listener(socket=listener)])
        stream: UNIXSocketStream
        async with await anyio.connect_unix(path) as stream:
            for start in range(0, len(said), 7):
                await stream.send(said[start : start + 7])
            await stream.send_eof()
            answer = await Client(stream).to_end()
        group.cancel_scope.cancel()
    return answer


async def test_http_2_is_refused_until_it_is_spoken(path: Path, app: Application) -> None:
    assert (await speak(path, app, HTTP2_PREFACE)).startswith(b"HTTP/1.1 505 ")


async def test_a_client_that_says_nothing(path: Path, app: Application) -> None:
    assert await speak(path, app, b"") == b""


async def test_a_client_that_begins_like_http_2(path: Path, app: Application) -> None:
    assert (await speak(path, app, b"P")) == b""
    assert b"404" in await speak(path, app, b"POST /x HTTP/1.1\r\nHost: a\r\n\r\n")

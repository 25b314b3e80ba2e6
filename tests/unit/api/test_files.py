# SPDX-License-Identifier: Apache-2.0
"""Requests about the files of containers, as the docker CLI makes them."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator

import pytest

from proa.api.app import build_app
from proa.engine.commits import CommitQuery
from proa.model.config import ContainerConfig
from tests.support.fake_engine import IMAGE_ID, FakeEngine
from tests.support.http import Client, connected

pytestmark = pytest.mark.anyio


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[Client]:
    async with connected(build_app(engine)) as client:
        yield client


async def test_what_is_at_a_path_is_a_header(client: Client) -> None:
    for method in ("HEAD", "GET"):
        reply = await client.request(method, "/v1.51/containers/web/archive?path=/etc/motd")
        assert reply.status == 200
        assert json.loads(base64.b64decode(reply.headers["x-docker-container-path-stat"])) == {
            "name": "motd",
            "size": 8,
            "mode": 0o644,
            "mtime": "2023-11-14T22:13:20.123456789Z",
            "linkTarget": "",
        }
    assert (reply.body, reply.headers["content-type"]) == (b"some tar", "application/x-tar")


@pytest.mark.parametrize("method", ["HEAD", "GET", "PUT"])
async def test_paths_that_lead_nowhere(client: Client, method: str) -> None:
    body = b"" if method == "PUT" else None
    reply = await client.request(method, "/containers/web/archive?path=/nope", body)
    assert reply.status == 404
    if method != "HEAD":
        assert reply.json() == {"message": "Could not find the file /nope in container web"}
    assert (await client.request(method, "/containers/web/archive", body)).status == 400
    assert (await client.request(method, "/containers/web/archive?path=/a%00b", body)).status == 400


async def test_an_archive_is_passed_on(client: Client, engine: FakeEngine) -> None:
    path = "/containers/web/archive?path=/etc/motd&noOverwriteDirNonDir=true&copyUIDGID=1"
    reply = await client.request("PUT", path, b"a tar", {"Content-Type": "application/x-tar"})
    assert (reply.status, reply.body) == (200, b"")
    assert engine.files.asked == [("put", "web", "/etc/motd", True, True)]
    assert engine.files.unpacked == b"a tar"


async def test_changes_and_export(client: Client) -> None:
    reply = await client.request("GET", "/containers/web/changes")
    assert reply.json() == [
        {"Path": "/etc", "Kind": 0},
        {"Path": "/etc/new", "Kind": 1},
        {"Path": "/gone", "Kind": 2},
    ]
    assert (await client.request("GET", "/containers/web/export")).body == b"some tar"
    assert (await client.request("GET", "/containers/nope/export")).status == 404


async def test_commit(client: Client, engine: FakeEngine) -> None:
    path = "/commit?container=web&repo=a/b&tag=1&comment=c&author=me&changes=CMD+x&changes=USER+y&pause=0"
    for body, config in ((b"null", None), (b'{"User": "z"}', ContainerConfig(user="z"))):
        reply = await client.request("POST", path, body)
        assert (reply.status, reply.json()) == (201, {"Id": IMAGE_ID})
        ref, query = engine.commits.asked.pop()
        assert (ref, query) == (
            "web",
            CommitQuery(
                repository="a/b",
                tag="1",
                comment="c",
                author="me",
                pause=False,
                changes=["CMD x", "USER y"],
                config=config,
            ),
        )
    reply = await client.request("POST", "/commit?container=web")
    assert reply.status == 201
    assert engine.commits.asked.pop() == ("web", CommitQuery(changes=[]))
    assert (await client.request("POST", "/commit?repo=a")).status == 400

# SPDX-License-Identifier: Apache-2.0
"""The daemon is killed with SIGKILL in the middle of a pull: the next one fetches only what is missing."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from tests.support.daemon import DOCKER, Daemon
from tests.support.fake_registry import FakeRegistry, Seen, Stream
from tests.support.images import COMPRESSORS, make_tar, sha256

PATIENCE_S = 60.0
LAYER = make_tar({"big": random.Random(3).randbytes(12_000_000)})
BLOB = COMPRESSORS["gzip"](LAYER)
HALF = 6_000_000


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One that has run nothing: neither hull plays a part here."""
    daemon = Daemon()
    daemon.start()
    yield daemon
    daemon.clean()


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    """In a thread of its own: the tests here are not asynchronous."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(FakeRegistry().running()) as registry,
    ):
        yield registry


def test_goes_on_where_it_was_killed(daemon: Daemon, registry: FakeRegistry) -> None:
    registry.add_image("big", "1", [LAYER])
    path = registry.blob_path("big", BLOB)
    stalled = threading.Event()

    async def stall_half_way(seen: Seen, stream: Stream) -> None:
        await registry.send_content(seen, stream, BLOB[:HALF], "application/octet-stream", total=len(BLOB))
        stalled.set()
        await anyio.sleep_forever()

    registry.misdeeds[path] = stall_half_way
    name = f"{registry.host}/big:1"
    partial = daemon.data_root / "blobs" / "partial" / sha256(BLOB)[7:]
    with subprocess.Popen(
        [DOCKER, "--host", daemon.host, "pull", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as client:
        assert stalled.wait(PATIENCE_S)
        deadline = time.monotonic() + PATIENCE_S
        while not partial.exists() or partial.stat().st_size < HALF - 1_000_000:
            assert time.monotonic() < deadline, "what came is not on disk"
            time.sleep(0.02)
        daemon.restart(signal.SIGKILL)
        assert client.wait(PATIENCE_S) != 0
    kept = partial.stat().st_size
    registry.misdeeds.clear()
    assert "Download complete" in daemon.docker("pull", name).out
    assert registry.requests_to(path)[-1].headers["range"] == f"bytes={kept}-"
    assert registry.served[path] == HALF + len(BLOB) - kept
    assert not partial.exists()
    daemon.docker("rmi", name)


def test_a_client_that_leaves_ends_its_pull(daemon: Daemon, registry: FakeRegistry) -> None:
    registry.add_image("big", "1", [LAYER])
    path = registry.blob_path("big", BLOB)
    begun, ended = threading.Event(), threading.Event()

    async def watch(seen: Seen, stream: Stream) -> None:
        await registry.send_content(seen, stream, BLOB[:HALF], "application/octet-stream", total=len(BLOB))
        begun.set()
        try:
            await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            ended.set()

    registry.misdeeds[path] = watch
    with subprocess.Popen(
        [DOCKER, "--host", daemon.host, "pull", f"{registry.host}/big:1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as client:
        assert begun.wait(PATIENCE_S)
        client.send_signal(signal.SIGINT)
        client.wait(PATIENCE_S)
    assert ended.wait(PATIENCE_S), "the daemon goes on for nobody"

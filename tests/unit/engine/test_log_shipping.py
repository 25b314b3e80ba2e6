# SPDX-License-Identifier: Apache-2.0
"""Logs are shipped whole: through replaced files, failing servers, and from one daemon to the next."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest

from proa.engine import log_shipping
from proa.engine.container import Container
from proa.engine.log_files import keep
from proa.engine.log_options import parse_log_config
from proa.model.config import HostConfig, LogConfig
from proa.model.errors import StartFailed
from proa.shipping import drivers
from proa.shipping.lines import Destination, Line, Source
from tests.support.engine import Ground, settle

pytestmark = pytest.mark.anyio

HOST = HostConfig(log_config=LogConfig(type="syslog", config={"tag": "{{.Name}}", "labels": "from"}))


@dataclass(eq=False)
class Server:
    """What is at the other end. ``refusals``: how many connections fail before one does not; -1 all."""

    lines: list[Line] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    refusals: int = 0

    async def open(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self.refusals:
            self.refusals -= 1
            raise OSError("connection refused")

    async def send(self, lines: Sequence[Line]) -> None:
        await anyio.lowlevel.checkpoint()
        self.lines += lines

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def got(self, count: int) -> list[int]:
        """Wait until so many lines are here; return the numbers in them."""
        while len(self.lines) < count:  # noqa: ASYNC110 - other tasks fill it
            await anyio.sleep(0.001)
        return [int(line.text) for line in self.lines]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()

    def connect(driver: str, options: Mapping[str, str], source: Source) -> Destination:
        server.sources.append(source)
        return server

    monkeypatch.setattr(drivers, "connect", connect)
    monkeypatch.setattr(log_shipping, "RETRY_FIRST_S", 0.001)
    return server


def write(container: Container, *numbers: int) -> None:
    with Path(container.log_path).open("ab") as file:
        for number in numbers:
            stream = b"stderr" if number % 2 else b"stdout"
            file.write(b"2026-11-23T22:07:32.000000001+00:00 %s F %d\n" % (stream, number))


def replace_file(container: Container) -> None:
    """As conmon does at the bound, and the daemon after it."""
    path = Path(container.log_path)
    new = path.with_name("log.tmp")
    new.touch()
    new.rename(path)
    keep(path, parse_log_config(container.host_config.log_config))


async def test_lines_are_shipped(ground: Ground, server: Server) -> None:
    async with ground.daemon() as daemon:
        container = await daemon.run(host=HOST)
        write(container, 0, 1)
        with Path(container.log_path).open("ab") as file:
            file.write(b"2026-11-23T22:07:32.000000001+00:00 stdout P 2")
            file.flush()
            assert await server.got(2) == [0, 1]
            file.write(b"2\n")
        assert await server.got(3) == [0, 1, 22]
        assert [line.is_error for line in server.lines] == [False, True, False]
        assert [line.is_partial for line in server.lines] == [False, False, True]
        assert server.lines[0].at_ns % 10 == 1
        assert server.sources[-1] == Source(
            container_id=container.id,
            container_name="web",
            image_name="busybox",
            tag="web",
            extra={"from": "image"},
        )


async def test_replaced_files(ground: Ground, server: Server) -> None:
    async with ground.daemon() as daemon:
        container = await daemon.run(host=HOST)
        for number in range(3):
            write(container, number)
            replace_file(container)
        write(container, 3)
        assert await server.got(4) == [0, 1, 2, 3]


async def test_from_one_daemon_to_the_next(ground: Ground, server: Server) -> None:
    async with ground.daemon() as daemon:
        container = await daemon.run(host=HOST)
        write(container, 0, 1)
        await server.got(2)
        await settle()
    write(container, 2)
    replace_file(container)
    write(container, 3)
    ground.world.end(container.id, 0)
    async with ground.daemon() as daemon:
        assert await server.got(4) == [0, 1, 2, 3]
        await settle()
        await daemon.engine.containers.start("web")
        write(container, 4)
        assert await server.got(5) == [0, 1, 2, 3, 4]


async def test_dropped_files_are_told(
    ground: Ground, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with ground.daemon() as daemon:
        container = await daemon.run(host=HOST)
        write(container, 0)
        await server.got(1)
    for number in range(1, 9):
        replace_file(container)
        write(container, number)
    async with ground.daemon() as daemon:
        with caplog.at_level(logging.WARNING):
            assert await server.got(6) == [0, 4, 5, 6, 7, 8]
    assert "3 files of the log of container" in caplog.text


async def test_a_server_that_comes_back(ground: Ground, server: Server) -> None:
    async with ground.daemon() as daemon:
        container = await daemon.run(host=HOST)
        server.refusals = 5
        write(container, 0)
        assert await server.got(1) == [0]


async def test_no_server_no_start(ground: Ground, server: Server) -> None:
    server.refusals = -1
    async with ground.daemon() as daemon:
        with pytest.raises(StartFailed, match="failed to initialize logging driver: connection refused"):
            await daemon.run(host=HOST)
        assert "failed to initialize" in daemon.get("web").error
        assert ground.remains == {}


async def test_the_last_words_of_a_removed_one(ground: Ground, server: Server) -> None:
    async with ground.daemon() as daemon:
        container = await daemon.run(host=HOST)
        write(container, 0, 1)
        await daemon.engine.containers.remove("web", force=True, volumes=False)
        assert await server.got(2) == [0, 1]


async def test_the_last_words_nobody_takes(
    ground: Ground, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log_shipping, "REMOVED_PATIENCE_S", 0.0)
    async with ground.daemon() as daemon:
        container = await daemon.run(host=HOST)
        server.refusals = -1
        write(container, 0)
        with caplog.at_level(logging.WARNING):
            await daemon.engine.containers.remove("web", force=True, volumes=False)
            while "with it" not in caplog.text:  # noqa: ASYNC110 - a log
                await anyio.sleep(0.001)
    assert server.lines == []

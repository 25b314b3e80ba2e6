# SPDX-License-Identifier: Apache-2.0
"""Lists with their filters, top, stats, sizes; and filters as such."""

from __future__ import annotations

import pytest

from proa.engine.filters import match_text, parse_bool, parse_time_filter_ns
from proa.model.config import Empty, HostConfig, PortBinding
from proa.model.errors import InvalidParameter, NoSuchContainer, WrongState
from proa.model.network import NetworkRequest
from tests.support.engine import Daemon, Ground, settle

pytestmark = pytest.mark.anyio


async def names(daemon: Daemon, *, all_: bool = True, limit: int = 0, **filters: str) -> str:
    found = await daemon.engine.containers.list(
        all=all_, limit=limit, filters={name.replace("_", "-"): [value] for name, value in filters.items()}
    )
    return " ".join(container.name for container in found)


async def populate(daemon: Daemon) -> None:
    """created · exited (3) · paused · running, oldest first."""
    await daemon.engine.networks.create(NetworkRequest(name="back"))
    await daemon.create("created", labels={"tier": "front", "x": ""})
    exited = await daemon.run("exited", labels={"tier": "back"})
    daemon.world.end(exited.id, 3)
    await settle()
    await daemon.run("paused", host=HostConfig(network_mode="back", binds=["data:/var/data"]))
    await daemon.engine.containers.pause("paused")
    ports = HostConfig(isolation="vm", port_bindings={"80/tcp": [PortBinding(host_port="8080")]})
    await daemon.run("running", host=ports, exposed_ports={"80/tcp": Empty(), "53/udp": Empty()})


async def test_lists(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await populate(daemon)
        assert await names(daemon, all_=False) == "running paused"
        assert await names(daemon) == "running paused exited created"
        assert await names(daemon, all_=False, limit=3) == "running paused exited"
        assert await names(daemon, all_=False, status="exited") == "exited"


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("name", "e", "paused exited created"),
        ("name", "^/?paused$", "paused"),
        ("name", "/paused", "paused"),
        ("label", "tier", "exited created"),
        ("label", "tier=back", "exited"),
        ("label!", "tier", "running paused"),
        ("status", "paused", "paused"),
        ("exited", "3", "exited"),
        ("exited", "0", ""),
        ("before", "paused", "exited created"),
        ("since", "exited", "running paused"),
        ("ancestor", "busybox", "running paused exited created"),
        ("ancestor", "other", ""),
        ("volume", "data", "paused"),
        ("volume", "/var/data", "paused"),
        ("network", "back", "paused"),
        ("network", "bridge", "running exited created"),
        ("publish", "80/tcp", "running"),
        ("publish", "53/udp", ""),
        ("expose", "53/udp", "running"),
        ("isolation", "vm", "running"),
        ("is-task", "true", ""),
        ("health", "none", "running paused exited created"),
        ("health", "healthy", ""),
    ],
)
async def test_filters(ground: Ground, name: str, value: str, found: str) -> None:
    async with ground.daemon() as daemon:
        await populate(daemon)
        listed = await daemon.engine.containers.list(all=True, limit=0, filters={name: [value]})
        assert " ".join(container.name for container in listed) == found


async def test_values_of_one_filter_are_alternatives(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await populate(daemon)
        container = daemon.get("paused")
        for filters, found in (
            ({"status": ["exited", "created"]}, 2),
            ({"label": ["tier=front", "x"]}, 1),  # labels must all be there
            ({"status": ["exited"], "name": ["paused"]}, 0),
            ({"id": [container.id[:20]]}, 1),
        ):
            assert len(await daemon.engine.containers.list(all=True, limit=0, filters=filters)) == found


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("nope", "x", "invalid filter 'nope'"),
        ("status", "ended", "invalid filter 'status=ended'"),
        ("exited", "x", "invalid filter 'exited=x'"),
        ("name", "(", "invalid filter pattern"),
    ],
)
async def test_bad_filters(ground: Ground, name: str, value: str, sentence: str) -> None:
    async with ground.daemon() as daemon:
        await daemon.create()
        with pytest.raises(InvalidParameter, match=sentence):
            await daemon.engine.containers.list(all=True, limit=0, filters={name: [value]})
        with pytest.raises(NoSuchContainer):
            await daemon.engine.containers.list(all=True, limit=0, filters={"before": ["nobody"]})


async def test_top(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await daemon.create()
        with pytest.raises(WrongState, match="is not running"):
            await daemon.engine.containers.top("web", "-ef")
        await daemon.engine.containers.start("web")
        table = await daemon.engine.containers.top("web", "-ef")
        assert table.titles == ("PID", "CMD")
        assert [row[1] for row in table.rows] == ["sh"]
        with pytest.raises(InvalidParameter):
            await daemon.engine.containers.top("web", "--bad")


async def test_stats(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        container = await daemon.create()
        assert await daemon.engine.containers.stats("web") is None
        await daemon.engine.containers.start("web")
        stats = await daemon.engine.containers.stats("web")
        assert stats is not None
        assert stats.pids == 1
        ground.world[container.id].process.ended.set()  # it ends while it is asked
        assert await daemon.engine.containers.stats("web") is None


async def test_sizes(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        container = await daemon.create()
        assert await daemon.engine.containers.sizes(container) == (0, 1000)
        await daemon.engine.containers.start("web")
        assert await daemon.engine.containers.sizes(container) == (10, 1010)


NOW = 1_700_000_000 * 10**9


class TestFilterValues:
    @pytest.mark.parametrize(
        ("text", "ns"),
        [
            ("1699999999", NOW - 10**9),
            ("1699999999.5", NOW - 5 * 10**8),
            ("10m", NOW - 600 * 10**9),
            ("1h30m", NOW - 5400 * 10**9),
            ("2023-11-14T22:13:20Z", NOW),
            ("2023-11-14T22:13:20+00:00", NOW),
            ("2023-11-14T22:13:20", NOW),
            ("2023-11-14", NOW - (22 * 3600 + 13 * 60 + 20) * 10**9),
        ],
    )
    def test_times(self, text: str, ns: int) -> None:
        assert parse_time_filter_ns(text, NOW) == ns

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "soon",
            "10x",
            "1h junk",
            "nan",
            "inf",
            "1e400",
            "-",
            "9" * 400,
            "9" * 400 + "h",
        ],
    )
    def test_bad_times(self, text: str) -> None:
        with pytest.raises(InvalidParameter):
            parse_time_filter_ns(text, NOW)

    def test_booleans(self) -> None:
        assert parse_bool({"x": ["1"]}, "x") is True
        assert parse_bool({"x": ["False"]}, "x") is False
        assert parse_bool({}, "x", default=True) is True
        for values in (["maybe"], ["true", "false"]):
            with pytest.raises(InvalidParameter, match="invalid filter 'x="):
                parse_bool({"x": values}, "x")

    def test_text(self) -> None:
        assert match_text("anything", [])
        assert match_text("a+b", ["a+b"])  # equal, though the pattern means something else
        assert not match_text("web", ["^eb"])

# SPDX-License-Identifier: Apache-2.0
"""Events: their order over a life, filters, the past, and listeners that leave. Networks and volumes too."""

from __future__ import annotations

import time

import anyio
import pytest

from proa.engine.events import KEPT_EVENTS, EventBus
from proa.engine.execs import ExecRequest
from proa.model.config import EndpointSettings, HostConfig, RestartPolicy
from proa.model.errors import (
    EngineError,
    Forbidden,
    InvalidParameter,
    NoSuchNetwork,
    NoSuchVolume,
    NotFound,
    ResourceInUse,
)
from proa.model.network import NetworkRequest
from tests.support.engine import Ground, settle

pytestmark = pytest.mark.anyio


async def test_order_of_a_life(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await daemon.run(host=HostConfig(binds=["data:/data"]))
        await daemon.engine.containers.stop("web")
        await daemon.engine.containers.remove("web", force=False, volumes=False)
        assert daemon.actions == [
            "volume create",
            "container create",
            "network connect",
            "volume mount",
            "container start",
            "container kill",
            "container die",
            "network disconnect",
            "volume unmount",
            "container stop",
            "container destroy",
        ]
        die = daemon.events[6].attributes
        assert (die["exitCode"], die["name"], die["image"]) == ("143", "web", "busybox")
        assert die["execDuration"] == "0"
        assert daemon.events[5].attributes["signal"] == "15"
        assert daemon.events[2].attributes["container"] == daemon.events[1].actor_id
        moments = [event.time_ns for event in daemon.events]
        assert moments == sorted(moments)


async def test_order_of_a_kill_after_the_time_out(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        ground.world.ignores.add(15)
        await daemon.run()
        await daemon.engine.containers.stop("web", timeout_s=0)
        assert daemon.actions[-5:] == [
            "container kill",
            "container kill",
            "container die",
            "network disconnect",
            "container stop",
        ]


@pytest.mark.usefixtures("no_delay")
async def test_order_of_a_restart_by_policy(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        container = await daemon.run(host=HostConfig(restart_policy=RestartPolicy(name="always")))
        ground.world.end(container.id, 1)
        await anyio.sleep(0.001)
        await settle()
        assert daemon.actions[-4:] == [
            "container die",
            "network disconnect",
            "network connect",
            "container start",
        ]


class TestStream:
    @pytest.mark.parametrize(
        ("filters", "seen"),
        [
            ({}, 5),
            ({"type": ["network"]}, 1),
            ({"event": ["start"]}, 1),
            ({"event": ["exec_create"]}, 1),
            ({"container": ["web"]}, 4),
            ({"image": ["busybox"]}, 4),
            ({"label": ["from=image"]}, 4),
            ({"label": ["from=elsewhere"]}, 0),
            ({"network": ["bridge"]}, 1),
            ({"type": ["container"], "event": ["create", "start"]}, 2),
            ({"scope": ["swarm"]}, 0),
        ],
    )
    async def test_filters(self, ground: Ground, filters: dict[str, list[str]], seen: int) -> None:
        async with ground.daemon() as daemon:
            await daemon.run()
            await daemon.engine.execs.create("web", ExecRequest(cmd=("sh", "-c", "a")))
            await daemon.engine.containers.pause("web")
            events = [
                event
                async for event in daemon.engine.system.events(
                    since_ns=1, until_ns=time.time_ns(), filters=filters
                )
            ]
            assert len(events) == seen

    async def test_unknown_filters(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            for name in ("isolation", "nosuch"):
                with pytest.raises(InvalidParameter, match=f"invalid filter '{name}'"):
                    async for _ in daemon.engine.system.events(until_ns=1, filters={name: ["vm"]}):
                        raise AssertionError

    async def test_past_then_present_up_to_a_time(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.create()
            seen = []

            async def listen() -> None:
                until = time.time_ns() + 50_000_000
                async for event in daemon.engine.system.events(since_ns=1, until_ns=until, filters={}):
                    seen.append(event.action)

            async with anyio.create_task_group() as group:
                group.start_soon(listen)
                await settle()
                await daemon.engine.containers.start("web")
            assert seen == ["create", "connect", "start"]
            assert daemon.bus.subscribers == 0

    async def test_actors_of_other_types(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.run(host=HostConfig(binds=["data:/data"]))

            async def told(**filters: str) -> list[str]:
                asked = {name: [value] for name, value in filters.items()}
                events = daemon.engine.system.events(
                    since_ns=1, until_ns=daemon.events[-1].time_ns, filters=asked
                )
                return [event.action async for event in events]

            assert await told(daemon="x") == []
            assert await told(plugin="x") == []
            assert await told(image="busybox") == ["create", "start"]
            assert await told(image="busy") == []

    async def test_images_are_found_without_their_tag(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            daemon.bus.publish("image", "tag", "sha256:1", {"name": "a.b:5000/img:1"})

            async def told(name: str) -> int:
                now = time.time_ns()
                events = daemon.engine.system.events(since_ns=1, until_ns=now, filters={"image": [name]})
                return len([event async for event in events])

            assert await told("a.b:5000/img") == await told("a.b:5000/img:1") == await told("sha256:1") == 1
            assert await told("a.b") == await told("a.b:5000/img:2") == 0

    async def test_a_filter_that_does_not_exist(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            with pytest.raises(InvalidParameter, match="invalid filter 'nope'"):
                async for _ in daemon.engine.system.events(filters={"nope": ["x"]}):
                    pass

    async def test_a_listener_that_leaves(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:

            async def listen() -> None:
                async for _ in daemon.engine.system.events(filters={}):
                    pass

            async with anyio.create_task_group() as group:
                group.start_soon(listen)
                await settle()
                assert daemon.bus.subscribers == 1
                group.cancel_scope.cancel()
            assert daemon.bus.subscribers == 0

    def test_only_the_last_are_kept(self) -> None:
        bus = EventBus()
        for number in range(KEPT_EVENTS + 10):
            bus.publish("container", str(number), "id")
        assert [event.action for event in bus.recent()][:1] == ["10"]


class TestNetworks:
    async def test_a_life(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            networks = daemon.engine.networks
            made = await networks.create(NetworkRequest(name="back", labels={"a": "b"}))
            assert networks.get(made.id[:12]) == made
            assert {one.name for one in await networks.list({"type": ["custom"]})} == {"back"}
            assert {one.name for one in await networks.list({"dangling": ["true"]})} == {"back"}
            await daemon.create(host=HostConfig(network_mode="back"))
            assert await networks.list({"dangling": ["true"]}) == []
            assert await networks.prune({}) == []
            await daemon.engine.containers.remove("web", force=False, volumes=False)
            assert await networks.prune({"label!": ["a"]}) == []
            assert await networks.prune({}) == ["back"]
            assert daemon.actions[-2:] == ["network destroy", "network prune"]
            with pytest.raises(NoSuchNetwork):
                networks.get("back")
            with pytest.raises(Forbidden):
                await networks.remove("bridge")

    async def test_connect_and_disconnect(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            networks = daemon.engine.networks
            await networks.create(NetworkRequest(name="back"))
            await daemon.create()
            await networks.connect("back", "web", EndpointSettings(aliases=["db"]))
            with pytest.raises(Forbidden, match="already exists in network back"):
                await networks.connect("back", "web", EndpointSettings())
            await daemon.engine.containers.start("web")
            assert len(daemon.get("web").endpoints) == 2
            await networks.disconnect("back", "web")
            assert len(daemon.get("web").endpoints) == 1
            await networks.connect("back", "web", EndpointSettings())
            assert [one.network_id for one in daemon.get("web").endpoints][1] == networks.get("back").id
            await daemon.engine.containers.stop("web")
            await networks.disconnect("back", "web")
            with pytest.raises(NotFound, match="is not connected to network back"):
                await networks.disconnect("back", "web")

    @pytest.mark.parametrize(
        ("mode", "network", "text"),
        [
            ("none", "back", "in private \\(none\\) mode"),
            ("host", "back", "container sharing network namespace with another container or host"),
            ("bridge", "host", "cannot be disconnected from host network or connected to host network"),
            ("bridge", "none", "in private \\(none\\) mode"),
        ],
    )
    async def test_networks_that_do_not_go_together(
        self, ground: Ground, mode: str, network: str, text: str
    ) -> None:
        async with ground.daemon() as daemon:
            await daemon.engine.networks.create(NetworkRequest(name="back"))
            await daemon.create(host=HostConfig(network_mode=mode))
            with pytest.raises(EngineError, match=text):
                await daemon.engine.networks.connect(network, "web", EndpointSettings())


class TestVolumes:
    async def test_a_life(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            volumes = daemon.engine.volumes
            await volumes.create("data", labels={"a": "b"})
            await volumes.create("data")
            assert daemon.actions == ["volume create"]
            container = await daemon.create(host=HostConfig(binds=["data:/data"]))
            with pytest.raises(ResourceInUse, match=f"remove data: volume is in use - \\[{container.id}\\]"):
                await volumes.remove("data", force=True)
            assert await volumes.list({"dangling": ["true"]}) == []
            await daemon.engine.containers.remove("web", force=False, volumes=True)
            assert [one.name for one in await volumes.list({"dangling": ["true"]})] == ["data"]
            assert (await volumes.prune({}))[0] == []  # it has a name
            assert (await volumes.prune({"all": ["true"]}))[0] == ["data"]
            with pytest.raises(NoSuchVolume):
                await volumes.remove("data")
            await volumes.remove("data", force=True)


async def test_info_counts(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await daemon.create("created")
        await daemon.run("running")
        info = await daemon.engine.system.info()
        counts = {state.value: count for state, count in info.containers.items() if count}
        assert counts == {"created": 1, "running": 1}
        assert (info.default_runtime, info.runtimes) == ("crun", ["crun", "vm"])
        assert info.missing_runtimes == {"runc": "gone"}


async def test_clients_that_detach(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        container = await daemon.run()
        exec_id = await daemon.engine.execs.create("web", ExecRequest(cmd=("sh",), tty=True))
        daemon.engine.containers.tell_detached(container.id)
        daemon.engine.execs.tell_detached(exec_id)
        assert daemon.actions[-2:] == ["container detach", "container exec_detach"]
        assert daemon.events[-1].attributes["execID"] == exec_id
        daemon.engine.containers.tell_detached("gone")  # removed while the client was leaving
        daemon.engine.execs.tell_detached("gone")

# SPDX-License-Identifier: Apache-2.0
"""Removal, forced or not, racing or not; prune."""

from __future__ import annotations

import anyio
import pytest

from proa.engine.container import State
from proa.model.config import Empty, HostConfig
from proa.model.errors import (
    EngineError,
    Internal,
    InvalidParameter,
    NoSuchContainer,
    WrongState,
)
from tests.support.engine import Daemon, Ground, settle

pytestmark = pytest.mark.anyio


async def remove(daemon: Daemon, ref: str = "web", *, force: bool = False, volumes: bool = False) -> None:
    await daemon.engine.containers.remove(ref, force=force, volumes=volumes)


class TestRemove:
    async def test_takes_everything(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
            ground.world[container.id].process.write(b"a line\n")
            ground.world.end(container.id)
            await settle()
            await remove(daemon)
            assert (ground.remains, ground.homes) == ({}, set())
            assert not list((ground.root / "containers").rglob("log"))
            assert daemon.actions[-1] == "container destroy"
            with pytest.raises(NoSuchContainer):
                daemon.get(container.id)
            await daemon.create()  # the name is free

    @pytest.mark.parametrize("paused", [False, True])
    async def test_of_a_live_one(self, ground: Ground, paused: bool) -> None:
        async with ground.daemon() as daemon:
            await daemon.run()
            if paused:
                await daemon.engine.containers.pause("web")
            state = "paused" if paused else "running"
            with pytest.raises(
                WrongState, match=f'cannot remove container "/web": container is {state}: stop the container'
            ):
                await remove(daemon)
            await remove(daemon, force=True)
            assert (ground.remains, ground.homes) == ({}, set())

    async def test_of_one_with_rm_by_force(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.run(host=HostConfig(auto_remove=True))
            await remove(daemon, force=True)
            await settle()
            assert daemon.actions.count("container destroy") == 1

    async def test_a_refused_one_leaves_rm_alone(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run(host=HostConfig(auto_remove=True))
            with pytest.raises(WrongState):
                await remove(daemon)
            ground.world.end(container.id)
            await settle()
            assert list(daemon.engine.containers.registry) == []

    async def test_ten_at_once(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.run()
            errors = []

            async def one() -> None:
                try:
                    await remove(daemon, force=True)
                except EngineError as error:
                    errors.append(type(error))

            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(one)
            assert errors == [NoSuchContainer] * 9
            assert daemon.actions.count("container destroy") == 1

    @pytest.mark.parametrize("force", [False, True])
    async def test_racing_with_a_start(self, ground: Ground, force: bool) -> None:
        async with ground.daemon() as daemon:
            await daemon.create()
            gate = daemon.stage.hold("create")
            refusals = []

            async def one() -> None:
                try:
                    await remove(daemon, force=force)
                except WrongState as error:
                    refusals.append(str(error))

            async with anyio.create_task_group() as group:
                group.start_soon(daemon.engine.containers.start, "web")
                await gate.reached.wait()
                group.start_soon(one)
                await settle()
                gate.open()
            assert len(refusals) == (0 if force else 1)
            assert len(list(daemon.engine.containers.registry)) == (0 if force else 1)

    async def test_a_start_that_comes_too_late(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.create()
            gate = daemon.stage.hold("roots.remove")
            errors = []

            async def start() -> None:
                try:
                    await daemon.engine.containers.start("web")
                except EngineError as error:
                    errors.append(error)

            async with anyio.create_task_group() as group:
                group.start_soon(remove, daemon)
                await gate.reached.wait()
                assert daemon.get("web").state is State.REMOVING
                group.start_soon(start)
                await settle()
                gate.open()
            assert isinstance(errors[0], NoSuchContainer)
            assert ground.remains == {}

    async def test_a_failure_leaves_it_dead_and_can_be_repeated(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.create()
            daemon.stage.fail("roots.remove", Internal("device is busy"))
            with pytest.raises(Internal, match="device is busy"):
                await remove(daemon)
            assert daemon.get("web").state is State.DEAD
            with pytest.raises(WrongState, match="is dead and cannot become running"):
                await daemon.engine.containers.start("web")
            await remove(daemon)
            assert list(daemon.engine.containers.registry) == []

    async def test_volumes(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            host = HostConfig(binds=["named:/b"])
            for name in ("one", "two"):
                await daemon.create(name, volumes={"/a": Empty()}, host=host)
            store = daemon.engine.volumes._store
            assert len(store.list()) == 3
            await remove(daemon, "one")
            assert len(store.list()) == 3
            await remove(daemon, "two", volumes=True)
            assert len(store.list()) == 2  # the named one, and that of "one"
            assert "volume destroy" in daemon.actions

    async def test_a_shared_anonymous_volume_stays(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.create("one", volumes={"/a": Empty()})
            await daemon.create("two", host=HostConfig(volumes_from=["one"]))
            await remove(daemon, "one", volumes=True)
            assert len(daemon.engine.volumes._store.list()) == 1
            await remove(daemon, "two", volumes=True)
            assert daemon.engine.volumes._store.list() == []


class TestPrune:
    async def test_takes_what_does_not_run(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            created = await daemon.create("created")
            ended = await daemon.run("ended")
            await daemon.run("running")
            await daemon.run("paused")
            await daemon.engine.containers.pause("paused")
            ground.world.end(ended.id)
            await settle()
            removed, freed = await daemon.engine.containers.prune({})
            assert set(removed) == {created.id, ended.id}
            assert freed == 10
            left = {container.name for container in daemon.engine.containers.registry}
            assert left == {"running", "paused"}
            assert (daemon.actions[-1], daemon.events[-1].attributes) == (
                "container prune",
                {"reclaimed": "10"},
            )

    async def test_filters(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            kept = await daemon.create("kept", labels={"keep": "yes"})
            other = await daemon.create("other")
            assert (await daemon.engine.containers.prune({"until": ["1h"]}))[0] == []
            assert (await daemon.engine.containers.prune({"label!": ["keep"]}))[0] == [other.id]
            assert (await daemon.engine.containers.prune({"label": ["keep=yes"]}))[0] == [kept.id]
            with pytest.raises(InvalidParameter, match="invalid filter 'name'"):
                await daemon.engine.containers.prune({"name": ["x"]})

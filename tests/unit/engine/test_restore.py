# SPDX-License-Identifier: Apache-2.0
"""The daemon dies, another one comes: what ran goes on, what ended is known, what was half-done is undone."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import anyio
import pytest

from proa.engine.container import State
from proa.engine.updates import UpdateRequest
from proa.model.config import Empty, HostConfig, RestartPolicy
from proa.model.errors import Internal, NoSuchContainer, Unavailable
from tests.support.engine import Daemon, Ground, settle
from tests.support.fake_runtime import FakeRuntime

pytestmark = pytest.mark.anyio


async def removals(daemon: Daemon) -> None:
    """Wait until what is being removed is gone: volumes are deleted in a thread."""
    for container in daemon.engine.containers.registry:
        if container.state is State.REMOVING:
            async with daemon.engine.containers.waiter(container.id, "removed") as waiter:
                await waiter()


class TestWhatWasThere:
    async def test_a_created_one(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.create(labels={"a": "b"}, host=HostConfig(binds=["data:/data"]))
        async with ground.daemon() as daemon:
            assert daemon.get("web") == container
            await daemon.engine.containers.start("web")

    async def test_a_running_one_goes_on(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
        async with ground.daemon() as daemon:
            assert daemon.get("web") == container
            assert ground.remains.keys() == {"tasks", "attached", "mounted"}
            await daemon.engine.containers.stop("web")
            assert daemon.get("web").exit_code == 143
            assert ground.remains == {}

    async def test_one_that_ended_meanwhile(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
        ground.world.end(container.id, 7, oom_killed=True)
        status = await ground.world[container.id].process.wait()
        async with ground.daemon() as daemon:
            await settle()
            ended = daemon.get("web")
            assert (ended.state, ended.exit_code, ended.oom_killed) == (State.EXITED, 7, True)
            assert ended.finished_at_ns == status.finished_at_ns
            assert ground.remains == {}

    async def test_one_that_is_gone(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.run()
        ground.world.traces.clear()  # the host was rebooted
        async with ground.daemon() as daemon:
            lost = daemon.get("web")
            assert (lost.state, lost.exit_code, lost.pid) == (State.EXITED, 255, 0)
            assert lost.finished_at_ns > lost.started_at_ns
            assert ground.remains == {}

    async def test_a_paused_one(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.run()
            await daemon.engine.containers.pause("web")
        async with ground.daemon() as daemon:
            assert daemon.get("web").state is State.PAUSED
            await daemon.engine.containers.unpause("web")
            assert daemon.get("web").state is State.RUNNING

    async def test_one_of_a_runtime_that_is_gone(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.run(host=HostConfig(isolation="vm"))
        async with ground.daemon(runtimes={"crun": FakeRuntime(ground.world)}) as daemon:
            assert daemon.get("web").state is State.EXITED
            await daemon.engine.containers.remove("web", force=False, volumes=False)

    async def test_one_that_cannot_be_looked_for(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.run()
        async with ground.daemon(restore=False) as daemon:
            daemon.stage.fail("find", Internal("no answer"))
            await daemon.engine.restore.find_all()
            assert daemon.get("web").state is State.RUNNING
            with pytest.raises(Unavailable, match="could not be found when the daemon started"):
                await daemon.engine.containers.stop("web")
            await daemon.engine.containers.remove("web", force=True, volumes=False)
            assert (ground.remains, ground.homes) == ({}, set())

    async def test_one_does_not_keep_the_others(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            for number in range(12):
                await daemon.run(f"web{number}")
        async with ground.daemon(restore=False) as daemon:
            daemon.stage.fail("find", Internal("no answer"))
            await daemon.engine.restore.find_all()
            units = daemon.engine.containers.units
            found = [c for c in daemon.engine.containers.registry if units[c.id].task is not None]
            assert len(found) == 11


class TestWithRm:
    @pytest.mark.parametrize("lost", [False, True])
    async def test_ended_meanwhile(self, ground: Ground, lost: bool) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run(host=HostConfig(auto_remove=True), volumes={"/data": Empty()})
        if lost:
            ground.world.traces.clear()
        else:
            ground.world.end(container.id)
        async with ground.daemon() as daemon:
            await settle()
            await removals(daemon)
            assert daemon.engine.volumes._store.list() == []
            assert (ground.remains, ground.homes) == ({}, set())

    async def test_a_created_one_stays(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.create(host=HostConfig(auto_remove=True))
        async with ground.daemon() as daemon:
            assert daemon.get("web").state is State.CREATED


class TestRestartPolicies:
    @pytest.mark.parametrize(
        ("policy", "runs"),
        [("no", False), ("always", True), ("unless-stopped", True), ("on-failure", True)],
    )
    async def test_after_a_reboot(self, ground: Ground, policy: str, runs: bool) -> None:
        async with ground.daemon() as daemon:
            await daemon.run(host=HostConfig(restart_policy=RestartPolicy(name=policy)))
        ground.world.traces.clear()
        async with ground.daemon() as daemon:
            await daemon.engine.restore.start_wanted()
            assert daemon.get("web").is_alive == runs

    @pytest.mark.parametrize(
        ("policy", "runs"), [("always", True), ("unless-stopped", False), ("on-failure", False)]
    )
    async def test_one_that_was_stopped(self, ground: Ground, policy: str, runs: bool) -> None:
        async with ground.daemon() as daemon:
            await daemon.run(host=HostConfig(restart_policy=RestartPolicy(name=policy)))
            await daemon.engine.containers.stop("web")
        async with ground.daemon() as daemon:
            await daemon.engine.restore.start_wanted()
            assert daemon.get("web").is_alive == runs

    async def test_one_never_started_is_left_alone(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.create(host=HostConfig(restart_policy=RestartPolicy(name="always")))
        async with ground.daemon() as daemon:
            await daemon.engine.restore.start_wanted()
            assert daemon.get("web").state is State.CREATED

    async def test_one_that_cannot_start_does_not_keep_the_others(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            for name in ("one", "two"):
                await daemon.run(name, host=HostConfig(restart_policy=RestartPolicy(name="always")))
        ground.world.traces.clear()
        async with ground.daemon() as daemon:
            daemon.stage.fail("create", Internal("no room"))
            await daemon.engine.restore.start_wanted()
            assert sorted(daemon.get(name).is_alive for name in ("one", "two")) == [False, True]


# --- a death before any step ---

Life = Callable[[Daemon], Awaitable[None]]


async def plain(daemon: Daemon) -> None:
    await daemon.run()
    daemon.world.end(daemon.get("web").id, 3)
    async with daemon.engine.containers.waiter("web", "not-running") as waiter:
        await waiter()
    await settle()
    await daemon.engine.containers.remove("web", force=False, volumes=False)


async def stopped(daemon: Daemon) -> None:
    await daemon.run(host=HostConfig(binds=["data:/data"]))
    await daemon.engine.containers.pause("web")
    await daemon.engine.containers.unpause("web")
    await daemon.engine.containers.stop("web")
    await daemon.engine.containers.restart("web")
    await daemon.engine.containers.remove("web", force=True, volumes=True)


async def automatic(daemon: Daemon) -> None:
    await daemon.run(host=HostConfig(auto_remove=True), volumes={"/data": Empty()})
    async with daemon.engine.containers.waiter("web", "removed") as waiter:
        daemon.world.end(daemon.get("web").id, 3)
        await waiter()


async def restarting(daemon: Daemon) -> None:
    policy = HostConfig(restart_policy=RestartPolicy(name="on-failure", maximum_retry_count=1))
    container = await daemon.run(host=policy)
    for _ in range(2):
        daemon.world.end(container.id, 1)
        await anyio.sleep(0.001)
        await settle()
    await daemon.engine.containers.rename("web", "www")
    await daemon.engine.containers.update("www", UpdateRequest(memory=64 << 20))
    await daemon.engine.containers.remove("www", force=False, volumes=False)


@pytest.mark.usefixtures("no_delay")
@pytest.mark.parametrize("life", [plain, stopped, automatic, restarting])
async def test_a_death_before_any_step(make_ground: Callable[[], Ground], life: Life) -> None:
    """Whatever the moment: the next daemon's records agree with the world, and all can be removed."""
    number = 0
    while True:
        ground = make_ground()
        async with ground.daemon(kill_at=number) as daemon:
            await life(daemon)
        told = daemon.stage.steps
        if len(told) < number:
            break  # it lived to the end
        # The next one dies too, somewhere in its restoring.
        with contextlib.suppress(RuntimeError):  # the block was never entered
            async with ground.daemon(kill_at=number % 4):
                await settle()
        async with ground.daemon() as daemon:
            await settle()
            await removals(daemon)
            for container in daemon.engine.containers.registry:
                context = (number, told[-3:], container.state)
                has = container.id in ground.world.traces
                assert container.is_alive == has, context
                assert container.state is not State.REMOVING, context
                assert not container.launching, context
                assert not container.ending, context
                await daemon.engine.containers.remove(container.id, force=True, volumes=True)
            assert ground.remains == {}, (number, told[-3:])
            assert not ground.homes, (number, told[-3:])
            if "images.release" in told or "roots.prepare" in told:
                # Before, an anonymous volume may be left without its container: only volume prune takes it.
                left = {volume.name for volume in daemon.engine.volumes._store.list()}
                assert left <= {"data"}, (number, told[-3:], left)
            with pytest.raises(NoSuchContainer):
                daemon.get("web")
        number += 1
    assert number > 10

# SPDX-License-Identifier: Apache-2.0
"""Restart policies: when, how often, how long after, and what ends them."""

from __future__ import annotations

from dataclasses import replace

import anyio
import pytest

from proa.engine import restarts
from proa.engine.container import State
from proa.engine.updates import UpdateRequest
from proa.model.config import HostConfig, RestartPolicy
from proa.model.errors import Internal, NoSuchContainer, WrongState
from proa.model.task import ExitStatus
from tests.support.engine import Daemon, Ground, settle

pytestmark = pytest.mark.anyio


def policy(name: str, retries: int = 0) -> HostConfig:
    return HostConfig(restart_policy=RestartPolicy(name=name, maximum_retry_count=retries))


async def end(daemon: Daemon, code: int) -> None:
    """Let the container end, and what follows happen."""
    daemon.world.end(daemon.get("web").id, code)
    await anyio.sleep(0.001)  # the (patched) delay is a timer of the event loop
    await settle()


@pytest.mark.parametrize(
    ("host", "code", "restarts_"),
    [
        (policy("no"), 1, False),
        (policy(""), 1, False),
        (policy("always"), 0, True),
        (policy("always"), 1, True),
        (policy("unless-stopped"), 0, True),
        (policy("on-failure"), 0, False),
        (policy("on-failure"), 1, True),
    ],
)
@pytest.mark.usefixtures("no_delay")
async def test_which_ends_are_followed_by_a_start(
    ground: Ground, host: HostConfig, code: int, restarts_: bool
) -> None:
    async with ground.daemon() as daemon:
        await daemon.run(host=host)
        await end(daemon, code)
        container = daemon.get("web")
        assert container.state is (State.RUNNING if restarts_ else State.EXITED)
        assert container.restart_count == int(restarts_)


@pytest.mark.usefixtures("no_delay")
async def test_as_often_as_allowed(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await daemon.run(host=policy("on-failure", 2))
        for count in (1, 2):
            await end(daemon, 1)
            assert (daemon.get("web").state, daemon.get("web").restart_count) == (State.RUNNING, count)
        await end(daemon, 1)
        assert daemon.get("web").state is State.EXITED
        await daemon.engine.containers.start("web")
        assert daemon.get("web").restart_count == 0


async def test_the_delay_doubles_up_to_a_minute_and_begins_anew(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        container = replace(await daemon.create(), started_at_ns=10**9)
        delays = []
        for number in range(1, 101):
            short_runs = restarts.count_short_runs(container, 2 * 10**9)
            container = replace(container, short_runs=short_runs, restart_count=number)
            delays.append(restarts.restart_delay_s(container))
        assert [delays[index] for index in (0, 1, 2, 9, 99)] == [0.1, 0.2, 0.4, 51.2, 60.0]
        for finished_at_ns, delay_s in ((12 * 10**9, 0.1), (2 * 10**9, 0.2)):
            container = replace(container, short_runs=restarts.count_short_runs(container, finished_at_ns))
            assert restarts.restart_delay_s(container) == delay_s, "a steady run is remembered"


@pytest.mark.usefixtures("no_delay")
async def test_an_update_during_the_delay_ends_it(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await daemon.run(host=policy("always"))
        daemon.world.end(daemon.get("web").id, 1)
        for _ in range(100):
            await anyio.lowlevel.checkpoint()
            if daemon.get("web").state is State.RESTARTING:
                break
        await daemon.engine.containers.update("web", UpdateRequest(restart_policy=RestartPolicy(name="no")))
        await anyio.sleep(0.001)
        await settle()
        assert daemon.get("web").state is State.EXITED


async def test_retries_are_counted(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        container = await daemon.create(host=policy("on-failure", 3))
        failed = ExitStatus(code=1, finished_at_ns=0)
        counts = [restarts.wants_restart(replace(container, restart_count=n), failed) for n in range(5)]
        assert counts == [True, True, True, False, False]


class TestDuringTheDelay:
    async def _restarting(self, daemon: Daemon) -> None:
        await daemon.run(host=policy("always"))
        await end(daemon, 1)
        assert daemon.get("web").state is State.RESTARTING
        assert daemon.world.traces == {}

    async def test_stop(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await self._restarting(daemon)
            async with daemon.engine.containers.waiter("web", "not-running") as waiter:
                await daemon.engine.containers.stop("web")
                assert (await waiter()).code == 1
            await settle()
            stopped = daemon.get("web")
            assert (stopped.state, stopped.stopped_by_user) == (State.EXITED, True)
            assert daemon.stage.steps.count("create") == 1

    async def test_kill(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await self._restarting(daemon)
            await daemon.engine.containers.kill("web")
            await settle()
            assert daemon.get("web").state is State.EXITED

    async def test_start(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await self._restarting(daemon)
            await daemon.engine.containers.start("web")
            await settle()
            assert (daemon.get("web").state, daemon.get("web").restart_count) == (State.RUNNING, 0)
            assert daemon.stage.steps.count("create") == 2

    async def test_restart(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await self._restarting(daemon)
            await daemon.engine.containers.restart("web")
            assert daemon.get("web").state is State.RUNNING

    async def test_remove(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await self._restarting(daemon)
            with pytest.raises(WrongState, match="container is restarting: stop the container before"):
                await daemon.engine.containers.remove("web", force=False, volumes=False)
            await daemon.engine.containers.remove("web", force=True, volumes=False)
            await settle()
            with pytest.raises(NoSuchContainer):
                daemon.get("web")
            assert ground.homes == set()

    async def test_a_new_policy(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await self._restarting(daemon)
            await daemon.engine.containers.update(
                "web", UpdateRequest(restart_policy=RestartPolicy(name="no"))
            )
            assert daemon.get("web").host_config.restart_policy.name == "no"

    async def test_the_daemons_death(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await self._restarting(daemon)
        async with ground.daemon() as daemon:
            await anyio.sleep(0.12)
            await settle()
            assert (daemon.get("web").state, daemon.get("web").restart_count) == (State.RUNNING, 1)


@pytest.mark.usefixtures("no_delay")
async def test_a_restart_that_cannot_start(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await daemon.run(host=policy("always"))
        daemon.stage.fail("create", Internal("no room"))
        async with daemon.engine.containers.waiter("web", "not-running") as waiter:
            await end(daemon, 1)
            result = await waiter()
        assert (result.code, result.error) == (128, "no room")
        failed = daemon.get("web")
        assert (failed.state, failed.error) == (State.EXITED, "no room")
        assert ground.remains == {}


@pytest.mark.usefixtures("no_delay")
async def test_no_restart_after_a_signal_that_stops(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await daemon.run(host=policy("always"))
        await daemon.engine.containers.kill("web", "TERM")
        await settle()
        assert daemon.get("web").state is State.EXITED


@pytest.mark.usefixtures("no_delay")
async def test_a_restart_after_another_signal(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await daemon.run(host=policy("always"))
        await daemon.engine.containers.kill("web", "HUP")
        await anyio.sleep(0.001)
        await settle()
        assert (daemon.get("web").state, daemon.get("web").restart_count) == (State.RUNNING, 1)

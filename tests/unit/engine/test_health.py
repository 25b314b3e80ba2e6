# SPDX-License-Identifier: Apache-2.0
"""Health checks: when they are due, what results mean, and what is done about an unhealthy container."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import pytest

from proa.engine.container import Health, HealthResult, State
from proa.engine.health import ON_FAILURE, Plan, check_health_config, find_plan, judge, merge_check
from proa.model.config import ContainerConfig, HealthConfig, HostConfig, RestartPolicy
from proa.model.errors import InvalidParameter
from tests.support.engine import Daemon, Ground, settle
from tests.support.fake_runtime import FakeProcess

pytestmark = pytest.mark.anyio

SECOND = 10**9
PLAN = Plan(args=("check",), interval_s=30, timeout_s=30, start_period_s=60, start_interval_s=5, retries=2)
FAST = {"interval": 1_000_000, "start_interval": 1_000_000}


def result(code: int, at_s: int = 0) -> HealthResult:
    return HealthResult(start_ns=at_s * SECOND, end_ns=at_s * SECOND, exit_code=code, output="")


def after(*results: HealthResult, health: Health | None = None) -> Health:
    now = health or Health()
    for one in results:
        now = judge(now, one, PLAN, started_at_ns=0)
    return now


def test_what_results_mean() -> None:
    assert (after(result(0)).status, after(result(0)).failing_streak) == ("healthy", 0)
    assert after(result(1, 5), result(1, 10), result(1, 59)).failing_streak == 0, "in the start period"
    assert after(result(1, 70)).status == "starting"
    assert after(result(1, 70), result(-1, 80)).status == "unhealthy"
    assert after(result(0, 1), result(1, 2)).status == "healthy"
    assert after(result(0, 1), result(1, 2), result(1, 3)).status == "unhealthy", "the start is over"
    assert after(result(0, 90), health=Health(status="unhealthy", failing_streak=9)).failing_streak == 0
    codes = [one.exit_code for one in after(*(result(code) for code in range(1, 8))).results]
    assert codes == [3, 4, 5, 6, 7]


def test_when_a_check_is_due() -> None:
    assert PLAN.delay_s(Health(), 1) == 5
    assert PLAN.delay_s(Health(), 61) == 30
    assert PLAN.delay_s(Health(status="healthy"), 1) == 30
    assert replace(PLAN, start_period_s=0).delay_s(Health(), 0) == 30


def test_what_is_run() -> None:
    image = HealthConfig(test=["CMD", "a"], interval=SECOND, retries=4)
    merged = merge_check(HealthConfig(retries=9), image)
    assert merged == HealthConfig(test=["CMD", "a"], interval=SECOND, retries=9)
    assert merge_check(HealthConfig(test=["NONE"]), image) == HealthConfig(
        test=["NONE"], interval=SECOND, retries=4
    )
    assert find_plan(ContainerConfig(healthcheck=merged)) == Plan(
        args=("a",), interval_s=1, timeout_s=30, start_period_s=0, start_interval_s=5, retries=9
    )
    shell = find_plan(ContainerConfig(healthcheck=HealthConfig(test=["CMD-SHELL", "a | b"])))
    assert shell is not None
    assert shell.args == ("/bin/sh", "-c", "a | b")
    other = ContainerConfig(healthcheck=HealthConfig(test=["CMD-SHELL", "a"]), shell=["/bin/ash", "-ec"])
    assert getattr(find_plan(other), "args", None) == ("/bin/ash", "-ec", "a")
    for none in (None, HealthConfig(), HealthConfig(test=["NONE"])):
        assert find_plan(ContainerConfig(healthcheck=none)) is None


@pytest.mark.parametrize(
    ("check", "sentence"),
    [
        ({"interval": 1}, "Interval in Healthcheck cannot be less than 1ms"),
        ({"timeout": -1}, "Timeout in Healthcheck cannot be less than 1ms"),
        ({"start_period": 5}, "StartPeriod in Healthcheck cannot be less than 1ms"),
        ({"start_interval": 5}, "StartInterval in Healthcheck cannot be less than 1ms"),
        ({"retries": -1}, "Retries in Healthcheck cannot be negative"),
        ({"test": ["RUN", "x"]}, "Unknown healthcheck type 'RUN'"),
        ({"test": ["CMD"]}, "Missing command after HEALTHCHECK CMD"),
    ],
)
def test_bad_checks(check: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidParameter, match=sentence):
        check_health_config(ContainerConfig(healthcheck=HealthConfig(**check)), HostConfig())


async def test_an_unknown_action_is_refused(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        with pytest.raises(InvalidParameter, match="use one of 'none', 'kill', 'restart', 'stop'"):
            await daemon.create(labels={ON_FAILURE: "explode"})


async def run(daemon: Daemon, codes: list[int], *, action: str = "none", **host: Any) -> None:
    """Run a container whose checks end with these codes, and with the last of them from then on."""

    async def check(process: FakeProcess) -> int:
        await anyio.lowlevel.checkpoint()
        process.write(b"said\n")
        return codes.pop(0) if len(codes) > 1 else codes[0]

    daemon.world.programs["check",] = check
    daemon.world._tasks = daemon.tasks
    check_config = HealthConfig(test=["CMD", "check"], retries=2, **FAST)
    annotations = {ON_FAILURE: action}
    await daemon.run(healthcheck=check_config, host=HostConfig(annotations=annotations, **host))


async def until(daemon: Daemon, action: str) -> None:
    while action not in daemon.actions:  # noqa: ASYNC110
        await anyio.sleep(0.001)


async def test_a_life(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await run(daemon, [1, 0, 1, 1, 0])
        assert daemon.get("web").health == Health()
        await until(daemon, "container health_status: unhealthy")
        while daemon.actions.count("container health_status: healthy") < 2:  # noqa: ASYNC110
            await anyio.sleep(0.001)
        health = daemon.get("web").health
        assert health is not None
        assert [one.exit_code for one in health.results][:5] == [1, 0, 1, 1, 0]
        assert health.results[0].output == "said\n"
        daemon.world.end(daemon.get("web").id)
        await settle()
        ended = daemon.get("web").health
        assert ended is not None
        assert ended.status == "unhealthy"


@pytest.mark.parametrize(
    ("action", "policy", "state", "count"),
    [
        ("none", "always", State.RUNNING, 0),
        ("kill", "no", State.EXITED, 0),
        ("kill", "always", State.RUNNING, 1),
        ("stop", "always", State.EXITED, 0),
        ("restart", "no", State.RUNNING, 0),
    ],
)
@pytest.mark.usefixtures("no_delay")
async def test_what_is_done_about_it(
    ground: Ground, action: str, policy: str, state: State, count: int
) -> None:
    async with ground.daemon() as daemon:
        await run(daemon, [1, 1, 0], action=action, restart_policy=RestartPolicy(name=policy))
        await until(daemon, "container health_status: unhealthy")
        if action != "none":
            await until(daemon, "container die")
        await anyio.sleep(0.005)
        await settle()
        container = daemon.get("web")
        assert (container.state, container.restart_count) == (state, count)


async def test_a_check_that_hangs_is_killed(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        check = HealthConfig(test=["CMD", "sleep"], timeout=2_000_000, retries=1, **FAST)
        container = await daemon.run(healthcheck=check)
        await until(daemon, "container health_status: unhealthy")
        health = daemon.get("web").health
        assert health is not None
        assert health.results[0].exit_code == -1
        assert health.results[0].output == "Health check exceeded timeout (2ms)"
        first = next(iter(daemon.world[container.id].execs.values()))
        assert not first.is_running


async def test_the_next_daemon_goes_on(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await run(daemon, [0])
        await until(daemon, "container health_status: healthy")
    async with ground.daemon() as daemon:
        health = daemon.get("web").health
        assert health is not None
        assert health.status == "healthy"
        # Nobody answers now, so it is the timeout's turn; the next daemon's checks are told as events.
        while not any("exec_start: check" in action for action in daemon.actions):  # noqa: ASYNC110
            await anyio.sleep(0.001)

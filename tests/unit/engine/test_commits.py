# SPDX-License-Identifier: Apache-2.0
"""What a committed image is configured with, and the pause that a commit makes."""

from __future__ import annotations

import pytest

from proa.engine.commits import merge_committed
from proa.engine.container import State
from proa.model.config import ContainerConfig, Empty, HealthConfig
from tests.support.engine import Ground, settle

CONTAINER = ContainerConfig(
    user="u",
    env=["PATH=/bin", "A=1"],
    cmd=["sh"],
    entrypoint=["/e"],
    exposed_ports={"80/tcp": Empty()},
    labels={"a": "1", "b": "2"},
    volumes={"/v": Empty()},
    working_dir="/w",
    stop_signal="SIGINT",
    healthcheck=HealthConfig(test=["CMD", "x"], interval=5, retries=2),
)


def test_nothing_asked_is_the_containers() -> None:
    assert merge_committed(ContainerConfig(), CONTAINER) == CONTAINER


def test_what_is_asked_wins() -> None:
    merged = merge_committed(
        ContainerConfig(
            user="me",
            env=["A=2", "B=3"],
            exposed_ports={"81/tcp": Empty()},
            labels={"a": "9"},
            healthcheck=HealthConfig(interval=7),
        ),
        CONTAINER,
    )
    assert merged.user == "me"
    assert merged.env == ["A=2", "B=3", "PATH=/bin"]
    assert list(merged.exposed_ports or {}) == ["80/tcp", "81/tcp"]
    assert merged.labels == {"a": "9", "b": "2"}
    assert merged.healthcheck == HealthConfig(test=["CMD", "x"], interval=7, retries=2)


def test_an_entrypoint_of_ones_own_goes_without_the_containers_command() -> None:
    merged = merge_committed(ContainerConfig(entrypoint=["/mine"]), CONTAINER)
    assert (merged.entrypoint, merged.cmd) == (["/mine"], None)
    merged = merge_committed(ContainerConfig(cmd=["x"]), CONTAINER)
    assert (merged.entrypoint, merged.cmd) == (["/e"], ["x"])


@pytest.mark.anyio
async def test_a_pause_that_the_daemon_did_not_live_to_end(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        container = await daemon.run()
        await daemon.engine.containers.lifecycle.pause(container.id, passing=True)
        assert daemon.get("web").state is State.PAUSED
    async with ground.daemon() as daemon:
        await settle()
        assert daemon.get("web").state is State.RUNNING
        await daemon.engine.containers.pause("web")
    async with ground.daemon() as daemon:
        await settle()
        assert daemon.get("web").state is State.PAUSED, "a user's own pause stays"

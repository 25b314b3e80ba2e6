# SPDX-License-Identifier: Apache-2.0
"""Rename and update: of records, of running tasks, and what is refused."""

from __future__ import annotations

import pytest

from proa.engine.updates import UpdateRequest
from proa.model.config import HostConfig, RestartPolicy
from proa.model.errors import Conflict, FeatureMissing, InvalidParameter, NameInUse, NoSuchContainer
from tests.support.engine import Daemon, Ground

pytestmark = pytest.mark.anyio


async def update(daemon: Daemon, **changes: object) -> None:
    await daemon.engine.containers.update("web", UpdateRequest(**changes))  # type: ignore[arg-type]


class TestRename:
    async def test_of_a_running_one(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
            await daemon.engine.containers.rename("web", "/www")
            renamed = daemon.get("www")
            assert (renamed.id, renamed.endpoints[0].name) == (container.id, "www")
            with pytest.raises(NoSuchContainer):
                daemon.get("web")
            last = daemon.events[-1]
            assert (last.action, last.attributes["name"], last.attributes["oldName"]) == (
                "rename",
                "www",
                "/web",
            )
        async with ground.daemon() as daemon:
            assert daemon.get("www").id == container.id

    async def test_refusals(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.create()
            other = await daemon.create("other")
            for name, error, sentence in (
                ("", InvalidParameter, "Neither old nor new names may be empty"),
                ("a b", InvalidParameter, "Invalid container name"),
                ("web", InvalidParameter, "same name as its current name"),
                ("other", NameInUse, f'The container name "/other" is already in use by .*"{other.id}"'),
            ):
                with pytest.raises(error, match=sentence):
                    await daemon.engine.containers.rename("web", name)
            with pytest.raises(NoSuchContainer):
                await daemon.engine.containers.rename("nobody", "x1")
            assert daemon.get("web").name == "web"


class TestUpdate:
    async def test_of_a_running_one(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
            await update(daemon, memory=64 << 20, pids_limit=7, nano_cpus=10**9)
            resources = ground.world[container.id].resources
            assert (resources.memory_bytes, resources.pids, resources.cpus) == (64 << 20, 7, 1.0)
            assert daemon.get("web").host_config.memory == 64 << 20
            assert daemon.actions[-1] == "container update"

    async def test_of_a_stopped_one_counts_at_the_next_start(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.create()
            await update(daemon, memory=64 << 20)
            await daemon.engine.containers.start("web")
            assert ground.world[container.id].spec.resources.memory_bytes == 64 << 20

    async def test_of_the_restart_policy(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.run()
            daemon.stage.steps.clear()
            await update(daemon, restart_policy=RestartPolicy(name="always"))
            assert daemon.get("web").host_config.restart_policy.name == "always"
            assert "task.update" not in daemon.stage.steps

    @pytest.mark.parametrize(
        ("host", "changes", "error", "sentence"),
        [
            (HostConfig(), {"memory": 1024}, InvalidParameter, "Minimum memory limit allowed is 6MB"),
            (HostConfig(), {"restart_policy": RestartPolicy(name="x")}, InvalidParameter, "unknown policy"),
            (HostConfig(nano_cpus=10**9), {"cpu_quota": 5000}, Conflict, "NanoCPUs has already been set"),
            (HostConfig(cpu_quota=5000), {"nano_cpus": 10**9}, Conflict, "Nano CPUs cannot be updated"),
            (
                HostConfig(memory=64 << 20, memory_swap=64 << 20),
                {"memory": 128 << 20},
                Conflict,
                "update the memoryswap at the same time",
            ),
            (
                HostConfig(auto_remove=True),
                {"restart_policy": RestartPolicy(name="always")},
                Conflict,
                "Restart policy cannot be updated because AutoRemove is enabled for the container",
            ),
            (HostConfig(), {"blkio_weight": 100}, FeatureMissing, "BlkioWeight is not supported"),
        ],
    )
    async def test_refusals_change_nothing(
        self,
        ground: Ground,
        host: HostConfig,
        changes: dict[str, object],
        error: type[Exception],
        sentence: str,
    ) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run(host=host)
            with pytest.raises(error, match=sentence):
                await update(daemon, **changes)
            assert daemon.get("web") == container
            assert "container update" not in daemon.actions

# SPDX-License-Identifier: Apache-2.0
"""Start, stop, kill, restart, pause: what they do to the record, the task and what waits for it."""

from __future__ import annotations

import anyio
import pytest

from proa.engine import lifecycle
from proa.engine.container import State
from proa.model.config import Empty, HostConfig, RestartPolicy
from proa.model.errors import (
    Internal,
    InvalidParameter,
    NoSuchContainer,
    NotModified,
    StartFailed,
    Unavailable,
    WrongState,
)
from tests.support.engine import Ground, settle

pytestmark = pytest.mark.anyio

SIGTERM, SIGKILL, SIGUSR1 = 15, 9, 10


class TestStart:
    async def test_steps_and_record(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.create()
            daemon.stage.steps.clear()
            await daemon.engine.containers.start("web")
            assert [step for step in daemon.stage.steps if not step.startswith("db")] == [
                "roots.prepare",
                "networks.attach",
                "create",
                "task.start",
            ]
            running = daemon.get("web")
            assert running.state is State.RUNNING
            assert running.pid == ground.world[container.id].process.pid
            assert running.started_at_ns > container.created_at_ns
            assert not running.launching
            assert [str(endpoint.address) for endpoint in running.endpoints] == ["172.17.0.2/16"]

    async def test_twice(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.run()
            with pytest.raises(NotModified):
                await daemon.engine.containers.start("web")

    async def test_again_after_the_end(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
            ground.world.end(container.id, 3)
            await settle()
            assert (daemon.get("web").state, daemon.get("web").exit_code) == (State.EXITED, 3)
            assert ground.remains == {}
            await daemon.engine.containers.start("web")
            again = daemon.get("web")
            assert (again.state, again.exit_code, again.finished_at_ns) == (State.RUNNING, 0, 0)

    async def test_ten_at_once_make_one_task(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.create()
            refused = 0

            async def start() -> None:
                nonlocal refused
                try:
                    await daemon.engine.containers.start("web")
                except NotModified:
                    refused += 1

            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(start)
            assert refused == 9
            assert daemon.stage.steps.count("create") == 1

    @pytest.mark.parametrize(
        ("step", "undone"),
        [
            ("roots.prepare", []),
            ("networks.attach", ["roots.release"]),
            ("create", ["networks.detach", "roots.release"]),
            ("task.start", ["task.delete", "networks.detach", "roots.release"]),
        ],
    )
    async def test_a_failing_step_undoes_those_before(
        self, ground: Ground, step: str, undone: list[str]
    ) -> None:
        async with ground.daemon() as daemon:
            await daemon.create()
            daemon.stage.fail(step, Internal("no room"))
            with pytest.raises(Internal, match="no room"):
                await daemon.engine.containers.start("web")
            steps = [one for one in daemon.stage.steps if not one.startswith("db")]
            assert steps[steps.index(step) + 1 :] == undone
            assert ground.remains == {}
            failed = daemon.get("web")
            assert (failed.state, failed.exit_code, failed.error) == (State.CREATED, 128, "no room")
            assert not failed.launching
            await daemon.engine.containers.start("web")
            assert daemon.get("web").error == ""

    async def test_the_code_of_a_missing_program(self, ground: Ground) -> None:
        ground.world.unknown["nope"] = 127
        async with ground.daemon() as daemon:
            await daemon.create(cmd=["nope"])
            with pytest.raises(StartFailed, match="executable file not found"):
                await daemon.engine.containers.start("web")
            assert daemon.get("web").exit_code == 127
            assert "container start" not in daemon.actions

    async def test_with_rm_a_failed_start_removes(self, ground: Ground) -> None:
        ground.world.unknown["nope"] = 127
        async with ground.daemon() as daemon:
            await daemon.create(cmd=["nope"], host=HostConfig(auto_remove=True))
            with pytest.raises(StartFailed):
                await daemon.engine.containers.start("web")
            with pytest.raises(NoSuchContainer):
                daemon.get("web")
            assert not ground.homes

    async def test_a_client_that_leaves_does_not_stop_it(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.create()
            gate = daemon.stage.hold("create")
            async with anyio.create_task_group() as group:
                group.start_soon(daemon.engine.containers.start, "web")
                await gate.reached.wait()
                group.cancel_scope.cancel()
                gate.open()
            assert daemon.get("web").state is State.RUNNING

    async def test_of_a_paused_one(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.run()
            await daemon.engine.containers.pause("web")
            with pytest.raises(WrongState, match="cannot start a paused container, try unpause instead"):
                await daemon.engine.containers.start("web")

    async def test_joins_the_network_of_another(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.create("first")
            await daemon.create("second", host=HostConfig(network_mode="container:first"))
            with pytest.raises(WrongState, match="cannot join network namespace of a non running container"):
                await daemon.engine.containers.start("second")
            await daemon.engine.containers.start("first")
            await daemon.engine.containers.start("second")
            spec = ground.world[daemon.get("second").id].spec
            assert spec.network.namespace is not None
            assert spec.network.namespace.name == daemon.get("first").id


class TestEnd:
    async def test_is_told_taken_down_and_recorded(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
            daemon.stage.steps.clear()
            ground.world.end(container.id, 7)
            await settle()
            ended = daemon.get("web")
            assert (ended.state, ended.exit_code, ended.pid) == (State.EXITED, 7, 0)
            assert ended.finished_at_ns >= ended.started_at_ns
            assert ended.endpoints == ()
            assert [step for step in daemon.stage.steps if not step.startswith("db")] == [
                "task.delete",
                "networks.detach",
                "roots.release",
            ]
            assert ground.remains == {}

    async def test_every_step_down_is_tried(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
            daemon.stage.fail("task.delete", Internal("busy"))
            daemon.stage.fail("networks.detach", OSError(16, "busy"))
            ground.world.end(container.id)
            await settle()
            assert "roots.release" in daemon.stage.steps
            assert daemon.get("web").state is State.EXITED
            assert not ground.mounted

    async def test_out_of_memory(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
            ground.world.end(container.id, 137, oom_killed=True)
            await settle()
            assert daemon.get("web").oom_killed
            assert daemon.actions[-3:] == ["container oom", "container die", "network disconnect"]

    async def test_a_child_out_of_memory_is_told_at_once_and_once(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
            for _ in range(2):
                ground.world[container.id].kills.set()
                await settle()
            assert daemon.get("web").is_alive
            assert daemon.get("web").oom_killed
            assert daemon.actions[-2:] == ["container oom", "container oom"]
            ground.world.end(container.id, 0, oom_killed=True)
            await settle()
            assert daemon.get("web").oom_killed
            assert daemon.actions[-2:] == ["container die", "network disconnect"]
            await daemon.engine.containers.start("web")
            assert not daemon.get("web").oom_killed

    async def test_a_lost_task(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
            ground.world[container.id].process.lose()
            await settle()
            lost = daemon.get("web")
            assert (lost.state, lost.exit_code) == (State.EXITED, 137)
            assert "vanished" in lost.error

    async def test_with_rm(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run(host=HostConfig(auto_remove=True), volumes={"/data": Empty()})
            assert len(daemon.engine.volumes._store.list()) == 1
            async with daemon.engine.containers.waiter("web", "removed") as waiter:
                ground.world.end(container.id)
                await waiter()
            with pytest.raises(NoSuchContainer):
                daemon.get("web")
            assert daemon.engine.volumes._store.list() == []
            assert (ground.remains, ground.homes) == ({}, set())


class TestStop:
    async def test_sends_the_signal_once(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
            process = ground.world[container.id].process
            await daemon.engine.containers.stop("web")
            assert process.signals == [SIGTERM]
            stopped = daemon.get("web")
            assert (stopped.state, stopped.exit_code, stopped.stopped_by_user) == (State.EXITED, 143, True)
            assert ground.remains == {}

    async def test_the_containers_own_signal_and_one_given(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            for name, given, sent in (("aa", None, SIGUSR1), ("bb", "SIGHUP", 1), ("dd", "2", 2)):
                container = await daemon.run(name, stop_signal="SIGUSR1")
                process = ground.world[container.id].process
                await daemon.engine.containers.stop(name, signal=given)
                assert process.signals == [sent]

    @pytest.mark.parametrize("timeout", [0, 1])
    async def test_kills_what_does_not_end(
        self, ground: Ground, timeout: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with ground.daemon() as daemon:
            ground.world.ignores.add(SIGTERM)
            container = await daemon.run()
            process = ground.world[container.id].process
            # The time-out is in whole seconds: shorten it where it is interpreted.
            monkeypatch.setattr(lifecycle.Lifecycle, "_timeout", lambda *_: timeout / 100)
            await daemon.engine.containers.stop("web", timeout_s=timeout)
            assert process.signals == [SIGTERM, SIGKILL]
            assert daemon.get("web").exit_code == 137

    async def test_the_time_outs(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            one = await daemon.create("one")
            two = await daemon.create("two", stop_timeout=3)
            timeout = daemon.engine.containers.lifecycle._timeout
            assert [timeout(one, None), timeout(one, 5), timeout(one, 0), timeout(one, -1)] == [
                10,
                5,
                0,
                None,
            ]
            assert [timeout(two, None), timeout(two, -1)] == [3, None]

    async def test_waits_for_ever_when_told(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            ground.world.ignores.add(SIGTERM)
            container = await daemon.run()
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: daemon.engine.containers.stop("web", timeout_s=-1))
                await settle()
                assert daemon.get("web").state is State.RUNNING
                ground.world.end(container.id, 4)
            assert daemon.get("web").exit_code == 4

    async def test_of_a_process_stuck_in_the_kernel(
        self, ground: Ground, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lifecycle, "KILL_TIMEOUT_S", 0.01)
        async with ground.daemon() as daemon:
            ground.world.ignores |= {SIGTERM, SIGKILL}
            container = await daemon.run()
            with pytest.raises(Unavailable, match=r"did not end within .* s of SIGKILL"):
                await daemon.engine.containers.stop("web", timeout_s=0)
            assert daemon.get("web").state is State.RUNNING
            ground.world.end(container.id, 137)
            await settle()
            assert daemon.get("web").state is State.EXITED

    async def test_of_a_stopped_one(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.create()
            with pytest.raises(NotModified):
                await daemon.engine.containers.stop("web")
            with pytest.raises(NoSuchContainer):
                await daemon.engine.containers.stop("nobody")

    async def test_of_a_paused_one(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.run()
            await daemon.engine.containers.pause("web")
            await daemon.engine.containers.stop("web")
            assert daemon.get("web").state is State.EXITED

    async def test_several_at_once(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.run()
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(daemon.engine.containers.stop, "web")
            assert daemon.get("web").state is State.EXITED

    async def test_a_bad_signal_changes_nothing(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.run()
            with pytest.raises(InvalidParameter, match="invalid signal: NOPE"):
                await daemon.engine.containers.stop("web", signal="NOPE")
            assert not daemon.get("web").stopped_by_user


class TestKill:
    async def test_sigkill_waits_for_the_end(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.run()
            await daemon.engine.containers.kill("web")
            assert (daemon.get("web").state, daemon.get("web").exit_code) == (State.EXITED, 137)

    async def test_another_signal(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            ground.world.ignores.add(SIGUSR1)
            container = await daemon.run()
            await daemon.engine.containers.kill("web", "USR1")
            assert ground.world[container.id].process.signals == [SIGUSR1]
            assert daemon.get("web").state is State.RUNNING
            assert daemon.events[-1].attributes["signal"] == "10"

    async def test_of_a_paused_one(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.run()
            await daemon.engine.containers.pause("web")
            await daemon.engine.containers.kill("web")
            assert daemon.get("web").exit_code == 137

    async def test_of_one_that_does_not_run(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.create()
            with pytest.raises(
                WrongState, match=f"cannot kill container: web: container {container.id} is not running"
            ):
                await daemon.engine.containers.kill("web")

    async def test_of_one_that_just_ended(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.run()
            daemon.stage.fail("task.kill", WrongState("it has ended"))
            await daemon.engine.containers.kill("web", "USR1")


class TestRestart:
    async def test_of_a_running_one(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            first = await daemon.run()
            await daemon.engine.containers.restart("web")
            second = daemon.get("web")
            assert second.state is State.RUNNING
            assert second.pid != first.pid
            assert [action for action in daemon.actions if action.startswith("container")][2:] == [
                "container kill",
                "container die",
                "container stop",
                "container start",
                "container restart",
            ]

    async def test_of_a_stopped_one(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.create()
            await daemon.engine.containers.restart("web")
            assert daemon.get("web").state is State.RUNNING

    async def test_of_a_paused_one(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.run()
            await daemon.engine.containers.pause("web")
            await daemon.engine.containers.restart("web")
            assert daemon.get("web").state is State.RUNNING

    async def test_keeps_an_rm_container(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run(host=HostConfig(auto_remove=True))
            await daemon.engine.containers.restart("web")
            await settle()
            assert daemon.get("web").state is State.RUNNING
            ground.world.end(container.id)
            await settle()
            with pytest.raises(NoSuchContainer):
                daemon.get("web")

    async def test_does_not_apply_the_policy(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.run(host=HostConfig(restart_policy=RestartPolicy(name="always")))
            await daemon.engine.containers.restart("web")
            assert daemon.get("web").restart_count == 0
            assert daemon.stage.steps.count("create") == 2


class TestPause:
    async def test_and_back(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
            await daemon.engine.containers.pause("web")
            assert daemon.get("web").state is State.PAUSED
            assert ground.world[container.id].process.paused
            await daemon.engine.containers.unpause("web")
            assert daemon.get("web").state is State.RUNNING
            assert not ground.world[container.id].process.paused
            assert daemon.actions[-2:] == ["container pause", "container unpause"]

    async def test_refusals(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.create()
            with pytest.raises(WrongState, match="is not running"):
                await daemon.engine.containers.pause("web")
            await daemon.engine.containers.start("web")
            with pytest.raises(WrongState, match="is not paused"):
                await daemon.engine.containers.unpause("web")
            await daemon.engine.containers.pause("web")
            with pytest.raises(WrongState, match="is already paused"):
                await daemon.engine.containers.pause("web")

    async def test_a_failure_leaves_it_running(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.run()
            daemon.stage.fail("task.pause", Internal("frozen hands"))
            with pytest.raises(Internal):
                await daemon.engine.containers.pause("web")
            assert daemon.get("web").state is State.RUNNING

    async def test_an_end_while_paused(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
            await daemon.engine.containers.pause("web")
            ground.world.end(container.id, 5)
            await settle()
            assert (daemon.get("web").state, daemon.get("web").exit_code) == (State.EXITED, 5)

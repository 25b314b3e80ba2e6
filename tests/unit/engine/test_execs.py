# SPDX-License-Identifier: Apache-2.0
"""Execs: their states, exit codes, streams, and what becomes of them when the container goes."""

from __future__ import annotations

import anyio
import pytest

from proa.engine import execs
from proa.engine.execs import Exec, ExecRequest
from proa.model.config import HostConfig, RestartPolicy
from proa.model.errors import (
    Conflict,
    InvalidParameter,
    NoSuchContainer,
    NoSuchExec,
    StartFailed,
    WrongState,
)
from proa.model.ids import ExecId
from proa.runtime.seam import StreamId
from tests.support.engine import Daemon, Ground, settle
from tests.support.fake_runtime import FakeProcess

pytestmark = pytest.mark.anyio

CAT = ExecRequest(cmd=("cat",), attach_stdin=True, attach_stdout=True, attach_stderr=True)


async def make(daemon: Daemon, request: ExecRequest = CAT) -> ExecId:
    return await daemon.engine.execs.create("web", request)


def process(daemon: Daemon, exec_id: str) -> FakeProcess:
    one = daemon.engine.execs.get(exec_id)
    return daemon.world[one.container_id].execs[one.id]


def states(one: Exec) -> tuple[bool, bool, int | None]:
    return one.started, one.running, one.exit_code


async def test_a_life(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        container = await daemon.run()
        exec_id = await make(daemon)
        get = daemon.engine.execs.get
        assert states(get(exec_id)) == (False, False, None)
        stdio = await daemon.engine.execs.start(exec_id)
        assert stdio is not None
        assert states(get(exec_id)) == (True, True, None)
        assert daemon.engine.execs.ids_of(container.id) == [exec_id]
        running = process(daemon, exec_id)
        assert get(exec_id).pid == running.pid
        await stdio.send(b"in")
        assert await running.read() == b"in"
        running.write(b"out")
        running.end(3)
        assert await stdio.receive() == (StreamId.STDOUT, b"out")
        with pytest.raises(anyio.EndOfStream):
            await stdio.receive()
        await settle()
        assert states(get(exec_id)) == (True, False, 3)
        assert daemon.engine.execs.ids_of(container.id) == []
        assert daemon.actions[-3:] == [
            "container exec_create: cat",
            "container exec_start: cat",
            "container exec_die",
        ]
        last = daemon.events[-1].attributes
        assert (last["execID"], last["exitCode"]) == (exec_id, "3")


async def test_detached(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await daemon.run()
        exec_id = await make(daemon)
        assert await daemon.engine.execs.start(exec_id, detach=True) is None
        process(daemon, exec_id).end(0)
        await settle()
        assert daemon.engine.execs.get(exec_id).exit_code == 0


async def test_the_process(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await daemon.run(user="app", working_dir="/srv", env=["A=1", "B=1"])
        plain = await make(daemon)
        rich = await make(
            daemon,
            ExecRequest(
                cmd=("sh", "-c", "x"),
                env=("B=2", "C=3"),
                user="root",
                working_dir="/",
                tty=True,
                privileged=True,
            ),
        )
        await daemon.engine.execs.start(plain)
        await daemon.engine.execs.start(rich, console_size=(24, 80))
        spec = process(daemon, plain).spec
        assert (spec.user, spec.cwd, spec.tty, spec.privileged) == ("app", "/srv", False, False)
        assert {"A=1", "B=1"} < set(spec.env)
        spec = process(daemon, rich).spec
        assert (spec.user, spec.cwd, spec.tty, spec.privileged) == ("root", "/", True, True)
        assert {"A=1", "B=2", "C=3", "TERM=xterm"} < set(spec.env)
        assert "B=1" not in spec.env
        assert spec.console_size == (24, 80)


async def test_only_once(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await daemon.run()
        exec_id = await make(daemon)
        await daemon.engine.execs.start(exec_id)
        with pytest.raises(Conflict, match="is already running"):
            await daemon.engine.execs.start(exec_id)
        process(daemon, exec_id).end(0)
        await settle()
        with pytest.raises(Conflict, match="has already run"):
            await daemon.engine.execs.start(exec_id)


async def test_twice_at_once(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await daemon.run()
        exec_id = await make(daemon)
        gate = daemon.stage.hold("task.exec")
        async with anyio.create_task_group() as group:
            group.start_soon(daemon.engine.execs.start, exec_id)
            await gate.reached.wait()
            with pytest.raises(Conflict, match="is already running"):
                await daemon.engine.execs.start(exec_id)
            gate.open()


@pytest.mark.parametrize(("failed", "code"), [(126, 126), (127, 127), (128, 126)])
async def test_a_program_that_cannot_run(ground: Ground, failed: int, code: int) -> None:
    ground.world.unknown["nope"] = failed
    async with ground.daemon() as daemon:
        await daemon.run()
        exec_id = await make(daemon, ExecRequest(cmd=("nope",)))
        with pytest.raises(StartFailed):
            await daemon.engine.execs.start(exec_id)
        assert states(daemon.engine.execs.get(exec_id)) == (True, False, code)


async def test_the_end_of_the_container(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await daemon.run()
        exec_id = await make(daemon)
        await daemon.engine.execs.start(exec_id)
        await daemon.engine.containers.stop("web")
        await settle()
        assert states(daemon.engine.execs.get(exec_id)) == (True, False, 137)
        with pytest.raises(Conflict, match="is not running"):
            await make(daemon)


@pytest.mark.parametrize("how", ["remove", "rm", "prune"])
async def test_the_removal_of_the_container(ground: Ground, how: str) -> None:
    async with ground.daemon() as daemon:
        container = await daemon.run(host=HostConfig(auto_remove=how == "rm"))
        exec_id = await make(daemon)
        await daemon.engine.execs.start(exec_id)
        if how == "remove":
            await daemon.engine.containers.remove("web", force=True, volumes=False)
        else:
            daemon.world.end(container.id)
            await settle()
        if how == "prune":
            await daemon.engine.containers.prune({})
        with pytest.raises(NoSuchExec, match=f"No such exec instance: {exec_id}"):
            daemon.engine.execs.get(exec_id)


async def test_the_removal_while_it_starts(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        container = await daemon.run()
        exec_id = await make(daemon)
        gate = daemon.stage.hold("task.exec")
        async with anyio.create_task_group() as group:

            async def start() -> None:
                with pytest.raises(WrongState):
                    await daemon.engine.execs.start(exec_id)

            group.start_soon(start)
            await gate.reached.wait()
            await daemon.engine.containers.remove(container.id, force=True, volumes=False)
            gate.open()


async def test_a_lost_one(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await daemon.run()
        exec_id = await make(daemon)
        await daemon.engine.execs.start(exec_id)
        process(daemon, exec_id).lose()
        await settle()
        assert daemon.engine.execs.get(exec_id).exit_code == 137


async def test_resize(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await daemon.run()
        exec_id = await make(daemon, ExecRequest(cmd=("sh",), tty=True))
        with pytest.raises(WrongState, match="it is not running"):
            await daemon.engine.execs.resize(exec_id, 10, 20)
        await daemon.engine.execs.start(exec_id)
        await daemon.engine.execs.resize(exec_id, 10, 20)
        assert process(daemon, exec_id).size == (10, 20)


async def test_only_the_last_ended_are_kept(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execs, "KEPT_EXECS", 2)
    async with ground.daemon() as daemon:
        await daemon.run()
        running = await make(daemon)
        await daemon.engine.execs.start(running)
        ended = [await make(daemon) for _ in range(3)]
        for exec_id in ended:
            await daemon.engine.execs.start(exec_id)
            process(daemon, exec_id).end(0)
            await settle()
        with pytest.raises(NoSuchExec):
            daemon.engine.execs.get(ended[0])
        assert [daemon.engine.execs.get(exec_id).exit_code for exec_id in ended[1:]] == [0, 0]
        assert daemon.engine.execs.get(running).running


async def test_refusals(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        with pytest.raises(NoSuchContainer):
            await make(daemon)
        await daemon.create()
        with pytest.raises(Conflict, match="is not running"):
            await make(daemon)
        await daemon.engine.containers.start("web")
        with pytest.raises(InvalidParameter, match="No exec command specified"):
            await make(daemon, ExecRequest(cmd=()))
        with pytest.raises(InvalidParameter, match="Cwd must be an absolute path: x"):
            await make(daemon, ExecRequest(cmd=("sh",), working_dir="x"))
        exec_id = await make(daemon)
        await daemon.engine.containers.pause("web")
        for attempt in (make(daemon), daemon.engine.execs.start(exec_id)):
            with pytest.raises(Conflict, match="is paused, unpause the container before exec"):
                await attempt
        with pytest.raises(NoSuchExec):
            await daemon.engine.execs.start("0" * 64)


async def test_none_in_a_restarting_container(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        policy = HostConfig(restart_policy=RestartPolicy(name="always"))
        container = await daemon.run(host=policy)
        daemon.world.end(container.id)
        await settle()
        with pytest.raises(Conflict, match="is restarting, wait until the container is running"):
            await make(daemon)

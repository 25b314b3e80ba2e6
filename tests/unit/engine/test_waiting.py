# SPDX-License-Identifier: Apache-2.0
"""Wait with its three conditions, attach before and after the start."""

from __future__ import annotations

import anyio
import pytest

from proa.engine.container import State
from proa.engine.containers import AttachQuery
from proa.model.config import HostConfig
from proa.model.errors import Internal, InvalidParameter, NoSuchContainer, WrongState
from proa.runtime.seam import Stdio, StreamId
from tests.support.engine import Daemon, Ground, settle

pytestmark = pytest.mark.anyio

ALL = AttachQuery(stdin=True, stdout=True, stderr=True, stream=True)


class TestWait:
    @pytest.mark.parametrize("condition", ["", "not-running", "next-exit"])
    async def test_registered_before_the_end(self, ground: Ground, condition: str) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
            async with daemon.engine.containers.waiter("web", condition) as waiter:
                ground.world.end(container.id, 7)
                result = await waiter()
            assert (result.code, result.error) == (7, None)

    @pytest.mark.parametrize("condition", ["", "not-running"])
    async def test_not_running_after_the_end(self, ground: Ground, condition: str) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
            ground.world.end(container.id, 7)
            await settle()
            async with daemon.engine.containers.waiter("web", condition) as waiter:
                assert (await waiter()).code == 7

    async def test_not_running_of_one_never_started(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.create()
            async with daemon.engine.containers.waiter("web", "not-running") as waiter:
                assert (await waiter()).code == 0

    async def test_next_exit_before_the_start_and_after_an_end(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.create()
            for code in (3, 4):
                async with daemon.engine.containers.waiter("web", "next-exit") as waiter:
                    await daemon.engine.containers.start("web")
                    ground.world.end(container.id, code)
                    assert (await waiter()).code == code
                await settle()

    async def test_removed(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
            async with daemon.engine.containers.waiter("web", "removed") as waiter:
                ground.world.end(container.id, 7)
                await settle()
                with anyio.move_on_after(0):
                    await waiter()
                    raise AssertionError("it is not removed yet")
                await daemon.engine.containers.remove("web", force=False, volumes=False)
                assert (await waiter()).code == 7

    async def test_removed_of_one_with_rm(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run(host=HostConfig(auto_remove=True))
            async with daemon.engine.containers.waiter("web", "removed") as waiter:
                ground.world.end(container.id, 7)
                assert (await waiter()).code == 7
            with pytest.raises(NoSuchContainer):
                daemon.get("web")

    @pytest.mark.parametrize("condition", ["not-running", "next-exit", "removed"])
    async def test_every_condition_ends_with_the_container(self, ground: Ground, condition: str) -> None:
        async with ground.daemon() as daemon:
            await daemon.run()
            async with daemon.engine.containers.waiter("web", condition) as waiter:
                await daemon.engine.containers.remove("web", force=True, volumes=False)
                assert (await waiter()).code == 137

    async def test_many_waiters(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
            codes = []

            async def wait() -> None:
                async with daemon.engine.containers.waiter("web", "not-running") as waiter:
                    codes.append((await waiter()).code)

            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(wait)
                await settle()
                ground.world.end(container.id, 9)
            assert codes == [9] * 50

    async def test_the_error_of_a_lost_task(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
            async with daemon.engine.containers.waiter("web", "not-running") as waiter:
                ground.world[container.id].process.lose()
                result = await waiter()
            assert result.code == 137
            assert "vanished" in (result.error or "")

    async def test_refusals(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.create()
            with pytest.raises(InvalidParameter, match='invalid condition: "soon"'):
                async with daemon.engine.containers.waiter("web", "soon"):
                    pass
            with pytest.raises(NoSuchContainer):
                async with daemon.engine.containers.waiter("nobody", ""):
                    pass


async def attach(daemon: Daemon, query: AttachQuery = ALL) -> Stdio:
    return await daemon.engine.containers.attach("web", query)


class TestAttach:
    async def test_before_the_start(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.create(open_stdin=True)
            stdio = await attach(daemon)
            await daemon.engine.containers.start("web")
            process = ground.world[container.id].process
            process.write(b"out")
            process.write(b"err", StreamId.STDERR)
            await stdio.send(b"in")
            assert await process.read() == b"in"
            process.end(0)
            assert await stdio.receive() == (StreamId.STDOUT, b"out")
            assert await stdio.receive() == (StreamId.STDERR, b"err")
            with pytest.raises(anyio.EndOfStream):
                await stdio.receive()

    async def test_output_outlives_the_task(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
            stdio = await attach(daemon)
            ground.world[container.id].process.write(b"last words")
            ground.world.end(container.id)
            await settle()
            assert daemon.get("web").state is State.EXITED
            assert await stdio.receive() == (StreamId.STDOUT, b"last words")

    async def test_while_it_starts(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.create()
            gate = daemon.stage.hold("task.start")
            async with anyio.create_task_group() as group:
                group.start_soon(daemon.engine.containers.start, "web")
                await gate.reached.wait()
                stdio = await attach(daemon)
                gate.open()
            ground.world[container.id].process.write(b"hello")
            assert await stdio.receive() == (StreamId.STDOUT, b"hello")

    @pytest.mark.parametrize("step", ["roots.prepare", "create", "task.start"])
    async def test_ends_when_the_start_fails(self, ground: Ground, step: str) -> None:
        async with ground.daemon() as daemon:
            await daemon.create()
            stdio = await attach(daemon)
            daemon.stage.fail(step, Internal("no room"))
            with pytest.raises(Internal):
                await daemon.engine.containers.start("web")
            with pytest.raises(anyio.EndOfStream):
                await stdio.receive()
            with pytest.raises(anyio.BrokenResourceError):
                await stdio.send(b"x")
            await stdio.send_eof()
            await stdio.aclose()

    async def test_ends_for_all_when_connecting_fails(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.create()
            clients = [await attach(daemon) for _ in range(3)]
            daemon.stage.fail("task.attach", Internal("no socket"))
            with pytest.raises(Internal, match="no socket"):
                await daemon.engine.containers.start("web")
            for stdio in clients:
                with pytest.raises(anyio.EndOfStream):
                    await stdio.receive()
            assert ground.remains == {}

    async def test_ends_with_the_removal(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            await daemon.create()
            stdio = await attach(daemon)
            await daemon.engine.containers.remove("web", force=False, volumes=False)
            with pytest.raises(anyio.EndOfStream):
                await stdio.receive()

    async def test_a_client_that_leaves_before_the_start(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.create()
            stdio = await attach(daemon)
            await stdio.aclose()
            await stdio.aclose()
            await daemon.engine.containers.start("web")
            assert ground.world[container.id].process.streams == set()

    async def test_a_client_that_leaves_while_it_starts(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.create()
            stdio = await attach(daemon)
            gate = daemon.stage.hold("task.attach")
            async with anyio.create_task_group() as group:
                group.start_soon(daemon.engine.containers.start, "web")
                await gate.reached.wait()
                await stdio.aclose()
                gate.open()
            assert ground.world[container.id].process.streams == set()

    async def test_several_get_everything(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
            clients = [await attach(daemon) for _ in range(3)]
            ground.world[container.id].process.write(b"x")
            assert [await stdio.receive() for stdio in clients] == [(StreamId.STDOUT, b"x")] * 3

    async def test_only_the_streams_asked_for(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run(open_stdin=True)
            stdio = await attach(daemon, AttachQuery(stderr=True, stream=True))
            process = ground.world[container.id].process
            process.write(b"out")
            process.write(b"err", StreamId.STDERR)
            assert await stdio.receive() == (StreamId.STDERR, b"err")
            await stdio.send(b"not for it")
            process.close_input()
            assert await process.read() == b""

    async def test_the_past_comes_first(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
            process = ground.world[container.id].process
            process.write(b"one\ntwo\n")
            stdio = await attach(daemon, AttachQuery(stdout=True, stderr=True, logs=True, stream=True))
            process.write(b"three\n")
            assert [(await stdio.receive())[1] for _ in range(2)] == [b"one\n", b"two\n"]

    async def test_the_past_alone(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            container = await daemon.run()
            ground.world[container.id].process.write(b"one\n")
            stdio = await attach(daemon, AttachQuery(stdout=True, logs=True))
            assert await stdio.receive() == (StreamId.STDOUT, b"one\n")
            with pytest.raises(anyio.EndOfStream):
                await stdio.receive()

    async def test_refusals(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            with pytest.raises(NoSuchContainer):
                await attach(daemon)
            await daemon.run()
            await daemon.engine.containers.pause("web")
            with pytest.raises(WrongState, match="is paused, unpause the container before attach"):
                await attach(daemon)


async def test_resize(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        container = await daemon.create(tty=True)
        with pytest.raises(WrongState, match="is not running"):
            await daemon.engine.containers.resize("web", 24, 80)
        await daemon.engine.containers.start("web")
        await daemon.engine.containers.resize("web", 24, 80)
        assert ground.world[container.id].process.size == (24, 80)
        assert {"height": "24", "width": "80"}.items() <= daemon.events[-1].attributes.items()

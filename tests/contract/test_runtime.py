# SPDX-License-Identifier: Apache-2.0
"""The law of the seam (proa.runtime.seam), held by both drivers and by the fake the engine is tested on."""

from __future__ import annotations

import signal
import time
from dataclasses import replace

import anyio
import pytest

from proa.host.watch import open_process
from proa.model.errors import EngineError, InvalidParameter, StartFailed, TaskLost, WrongState
from proa.model.ids import ContainerId, ExecId, new_id
from proa.model.task import ExitStatus, ProcessSpec, Resources
from proa.runtime.seam import Process, Stdio, StreamId, Task
from tests.contract.hulls import Hull
from tests.contract.programs import (
    CAT,
    COUNT,
    MISSING,
    NOT_EXECUTABLE,
    SLEEP,
    SOON,
    SPEAK,
    TELL,
    TERMINAL,
    TICK,
    TRAP,
    Program,
)

pytestmark = pytest.mark.anyio

PATIENCE_S = 60.0  # an emulated machine on a busy host


async def read_all(stdio: Stdio) -> tuple[bytes, bytes]:
    """Read to the end; return stdout and stderr."""
    parts = {StreamId.STDOUT: bytearray(), StreamId.STDERR: bytearray()}
    with anyio.fail_after(PATIENCE_S):
        while True:
            try:
                stream, data = await stdio.receive()
            except anyio.EndOfStream:
                return bytes(parts[StreamId.STDOUT]), bytes(parts[StreamId.STDERR])
            assert data, "a piece of output is never empty"
            parts[stream] += data


async def read_until(stdio: Stdio, wanted: bytes) -> bytes:
    found = b""
    with anyio.fail_after(PATIENCE_S):
        while wanted not in found:
            found += (await stdio.receive())[1]
    return found


async def end_of(one: Task | Process) -> ExitStatus:
    with anyio.fail_after(PATIENCE_S):
        return await one.wait()


async def start(hull: Hull, program: Program, **process: object) -> tuple[Task, Stdio]:
    """Make a task, attach to it, start it."""
    task = await hull.runtime.create(await hull.spec(program, **process))
    stdio = await task.attach()
    await task.start()
    return task, stdio


def exec_spec(program: Program, **changes: object) -> ProcessSpec:
    return replace(ProcessSpec(args=program.args), **changes)  # type: ignore[arg-type]


async def gone(pid: int) -> None:
    """Wait until the process has ended. (The fake's are none: they end by the clock.)"""
    handle = open_process(pid)
    with anyio.fail_after(PATIENCE_S):
        await (anyio.sleep(0.2) if handle is None else handle.wait())
    if handle is not None:
        handle.close()


class TestLife:
    async def test_output_exit_and_what_is_left(self, hull: Hull) -> None:
        before_ns = time.time_ns()
        spec = await hull.spec(SPEAK)
        task = await hull.runtime.create(spec)
        assert task.id == spec.id
        assert task.pid > 0
        first, second = await task.attach(), await task.attach()
        await task.start()
        assert await read_all(first) == (b"out\n", b"err\n")
        assert await read_all(second) == (b"out\n", b"err\n")
        status = await end_of(task)
        assert (status.code, status.oom_killed) == (7, False)
        assert before_ns <= status.finished_at_ns <= time.time_ns() + 10**9
        assert await end_of(task) == status
        for refused in (task.kill(signal.SIGTERM), task.stats(), task.processes("-ef")):
            with pytest.raises(WrongState):
                await refused
        await first.aclose()
        await first.aclose()
        await second.aclose()
        await task.delete()
        await task.delete()
        assert await hull.runtime.find(spec.id) is None
        lines = [line.split(" ", 3)[1:] for line in spec.log_path.read_text().splitlines()]
        assert sorted(lines) == [["stderr", "F", "err"], ["stdout", "F", "out"]]

    async def test_a_task_nobody_will_start_again(self, hull: Hull) -> None:
        task, stdio = await start(hull, SPEAK)
        assert (await end_of(task)).code == 7
        await task.delete(keep_writes=False)
        assert await read_all(stdio) == (b"out\n", b"err\n")
        await stdio.aclose()
        assert await hull.runtime.find(task.id) is None

    async def test_output_outlives_the_task(self, hull: Hull) -> None:
        task, stdio = await start(hull, COUNT)
        await end_of(task)
        await task.delete()
        out, _ = await read_all(stdio)
        assert out.split() == [b"%d" % number for number in range(1, 4001)]
        await stdio.aclose()

    async def test_many_wait(self, hull: Hull) -> None:
        task, stdio = await start(hull, SOON)
        codes: list[int] = []

        async def wait() -> None:
            codes.append((await end_of(task)).code)

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(wait)
            with anyio.move_on_after(0.01):  # one that gives up takes nothing from the others
                await task.wait()
        assert codes == [6] * 5
        await stdio.aclose()
        await task.delete()

    async def test_delete_ends_what_runs(self, hull: Hull) -> None:
        task, stdio = await start(hull, SLEEP)
        await read_until(stdio, b"ready")
        ended = []

        async def wait() -> None:
            try:
                ended.append((await end_of(task)).code)
            except TaskLost:
                ended.append(137)

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.lowlevel.checkpoint()
            await task.delete()
        assert ended == [137]
        await stdio.aclose()

    async def test_a_task_never_started(self, hull: Hull) -> None:
        task = await hull.runtime.create(await hull.spec(SLEEP))
        stdio = await task.attach()
        await task.delete()
        assert await read_all(stdio) == (b"", b"")
        await stdio.aclose()

    @pytest.mark.parametrize(("program", "code"), [(MISSING, 127), (NOT_EXECUTABLE, 126)])
    async def test_what_cannot_be_started(self, hull: Hull, program: Program, code: int) -> None:
        spec = await hull.spec(program)
        with pytest.raises(StartFailed) as caught:
            task = await hull.runtime.create(spec)
            try:
                await task.start()
            finally:
                await task.delete()
        assert caught.value.exit_code == code
        assert program.args[0] in str(caught.value)
        assert await hull.runtime.find(spec.id) is None


class TestStdin:
    async def test_reaches_the_process_and_ends(self, hull: Hull) -> None:
        task, stdio = await start(hull, CAT, open_stdin=True, stdin_once=True)
        data = bytes(range(256)) * 400
        received = bytearray()

        async def read() -> None:
            out, _ = await read_all(stdio)
            received.extend(out)

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            for at in range(0, len(data), 10_000):
                await stdio.send(data[at : at + 10_000])
            await stdio.send_eof()
            await stdio.send_eof()
        assert bytes(received) == data
        assert (await end_of(task)).code == 3
        with pytest.raises(anyio.BrokenResourceError):
            await stdio.send(b"x")
        await stdio.aclose()
        await task.delete()

    async def test_stays_open_for_the_next_client(self, hull: Hull) -> None:
        task, stdio = await start(hull, CAT, open_stdin=True, stdin_once=False)
        await stdio.send(b"one")
        await read_until(stdio, b"one")
        await stdio.send_eof()
        await stdio.aclose()
        stdio = await task.attach()
        await stdio.send(b"two")
        await read_until(stdio, b"two")
        await stdio.aclose()
        await task.delete()

    async def test_ends_when_its_one_client_leaves(self, hull: Hull) -> None:
        task, stdio = await start(hull, CAT, open_stdin=True, stdin_once=True)
        await stdio.send(b"one")
        await read_until(stdio, b"one")
        await stdio.aclose()
        assert (await end_of(task)).code == 3
        await task.delete()


async def test_terminal(hull: Hull) -> None:
    task, stdio = await start(hull, TERMINAL, tty=True, open_stdin=True, console_size=(33, 101))
    await read_until(stdio, b"33 101")
    await task.resize(rows=20, columns=70)
    await stdio.send(b"go\n")
    out, err = await read_all(stdio)
    assert b"20 70" in out
    assert err == b""
    assert (await end_of(task)).code == 0
    await stdio.aclose()
    await task.delete()


async def test_signals_and_pause(hull: Hull) -> None:
    task, stdio = await start(hull, TRAP)
    await read_until(stdio, b"ready")
    await task.pause()
    await task.pause()
    await task.resume()
    await task.resume()
    await task.resize(rows=1, columns=1)  # it has no terminal
    await task.kill(signal.SIGUSR1)
    assert (await read_all(stdio))[0] == b"caught\n"
    assert (await end_of(task)).code == 5
    await stdio.aclose()
    await task.delete()


async def test_a_paused_task_does_nothing(hull: Hull) -> None:
    task, stdio = await start(hull, TICK)
    await read_until(stdio, b"tick\n" * 3)
    await task.pause()
    with anyio.move_on_after(0.3):  # what was on its way
        while True:
            await stdio.receive()
    with pytest.raises(TimeoutError), anyio.fail_after(0.3):
        await stdio.receive()
    await task.resume()
    await read_until(stdio, b"tick\n" * 2)
    await task.pause()
    await task.kill(signal.SIGKILL)
    await task.resume()  # as the engine does: frozen v1 cgroups keep even SIGKILL waiting
    assert (await end_of(task)).code == 137
    await stdio.aclose()
    await task.delete()


async def test_exec(hull: Hull) -> None:
    task, stdio = await start(hull, SLEEP)
    await read_until(stdio, b"ready")

    process = await task.exec(ExecId(new_id()), exec_spec(SPEAK), attached=True)
    assert process.stdio is not None
    assert await read_all(process.stdio) == (b"out\n", b"err\n")
    status = await end_of(process)
    assert status.code == 7
    assert await end_of(process) == status
    await process.stdio.aclose()

    changes = {"env": ("PATH=/bin", "A=hello"), "cwd": "/etc", "user": "65534"}
    process = await task.exec(ExecId(new_id()), exec_spec(TELL, **changes), attached=True)
    assert process.stdio is not None
    assert (await read_all(process.stdio))[0] == b"hello /etc 65534\n"
    await process.stdio.aclose()

    spec = exec_spec(CAT, open_stdin=True, stdin_once=True)
    process = await task.exec(ExecId(new_id()), spec, attached=True)
    assert process.stdio is not None
    assert process.pid > 0
    await process.stdio.send(b"in")
    await process.stdio.send_eof()
    assert (await read_all(process.stdio))[0] == b"in"
    assert (await end_of(process)).code == 3
    await process.stdio.aclose()

    process = await task.exec(ExecId(new_id()), exec_spec(SOON), attached=False)
    assert process.stdio is None
    await process.resize(rows=1, columns=1)
    assert (await end_of(process)).code == 6

    for program, code in ((MISSING, 127), (NOT_EXECUTABLE, 126)):
        with pytest.raises(StartFailed) as caught:
            await task.exec(ExecId(new_id()), exec_spec(program), attached=True)
        assert caught.value.exit_code == code

    process = await task.exec(ExecId(new_id()), exec_spec(SLEEP), attached=True)
    assert process.stdio is not None
    await process.kill()
    assert (await end_of(process)).code == 137
    await process.kill()
    await read_all(process.stdio)
    await process.stdio.aclose()

    process = await task.exec(ExecId(new_id()), exec_spec(SLEEP), attached=True)
    assert process.stdio is not None
    await task.delete()
    await read_all(process.stdio)  # it ends with its task
    await process.stdio.aclose()
    await stdio.aclose()
    with pytest.raises(EngineError):
        await task.exec(ExecId(new_id()), exec_spec(SPEAK), attached=False)


async def test_exec_with_a_terminal(hull: Hull) -> None:
    task, stdio = await start(hull, SLEEP)
    await read_until(stdio, b"ready")
    spec = exec_spec(TERMINAL, tty=True, open_stdin=True, console_size=(40, 90))
    process = await task.exec(ExecId(new_id()), spec, attached=True)
    assert process.stdio is not None
    await read_until(process.stdio, b"40 90")
    await process.resize(rows=21, columns=71)
    await process.stdio.send(b"go\n")
    out, err = await read_all(process.stdio)
    assert b"21 71" in out
    assert err == b""
    await process.stdio.aclose()
    await stdio.aclose()
    await task.delete()


async def test_stats_processes_and_limits(hull: Hull) -> None:
    task, stdio = await start(hull, SLEEP)
    await read_until(stdio, b"ready")
    first = await task.stats()
    assert first.pids >= 1
    assert first.cpu_total_ns > 0
    assert first.memory_usage > 0
    await anyio.sleep(0.01)
    assert (await task.stats()).read_at_ns > first.read_at_ns
    table = await task.processes("-ef")
    assert "PID" in table.titles
    assert all(len(row) == len(table.titles) for row in table.rows)
    assert any("sleep" in " ".join(row) for row in table.rows)
    with pytest.raises(InvalidParameter):
        await task.processes("--bad")
    await task.update(Resources(memory_bytes=100 << 20, memory_swap_bytes=200 << 20, pids=100))
    await task.update(Resources())
    await stdio.aclose()
    await task.delete()


class TestLaterDaemon:
    async def test_finds_what_runs(self, hull: Hull) -> None:
        left = await hull.leave(TRAP)
        async with hull.daemon() as runtime:
            found = await runtime.find(left.id)
            assert found is not None
            assert (found.id, found.pid) == (left.id, left.pid)
            stdio = await found.attach()
            process = await found.exec(ExecId(new_id()), exec_spec(SPEAK), attached=True)
            assert process.stdio is not None
            assert await read_all(process.stdio) == (b"out\n", b"err\n")
            await process.stdio.aclose()
            await found.kill(signal.SIGUSR1)
            await read_until(stdio, b"caught")
            assert (await end_of(found)).code == 5
            await stdio.aclose()
            await found.delete()
            assert await runtime.find(left.id) is None
            assert b"ready" in left.log_path.read_bytes()

    async def test_finds_what_ended(self, hull: Hull) -> None:
        left = await hull.leave(SOON)
        await gone(left.pid)
        async with hull.daemon() as runtime:
            found = await runtime.find(left.id)
            assert found is not None
            assert (await end_of(found)).code == 6
            await found.delete()

    async def test_forgets_what_runs(self, hull: Hull) -> None:
        left = await hull.leave(SLEEP)
        async with hull.daemon() as runtime:
            await runtime.forget(left.id)
            await runtime.forget(left.id)
            assert await runtime.find(left.id) is None
        await gone(left.pid)

    async def test_knows_nothing_of_strangers(self, hull: Hull) -> None:
        stranger = ContainerId(new_id())
        assert await hull.runtime.find(stranger) is None
        await hull.runtime.forget(stranger)


async def test_features_are_complete(hull: Hull) -> None:
    features = hull.runtime.features
    assert hull.runtime.name
    assert set(features.network_modes) <= {"bridge", "none", "host", "container"}
    assert features.min_memory_bytes > 0
    assert all(name.startswith("HostConfig.") and reason for name, reason in features.refused.items())

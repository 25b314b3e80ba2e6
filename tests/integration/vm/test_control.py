# SPDX-License-Identifier: Apache-2.0
"""A running VM under control: signals, exec, pause, limits, readings, twins, the daemon's death."""

from __future__ import annotations

import os
import signal
import time
from ipaddress import IPv4Interface
from pathlib import Path

import anyio
import pytest

from proa.host.cgroup import Cgroup, get_hierarchies
from proa.model.errors import (
    Conflict,
    FeatureMissing,
    InvalidParameter,
    StartFailed,
    TaskLost,
    Unavailable,
    WrongState,
)
from proa.model.ids import ContainerId, ExecId, new_id
from proa.model.task import Interface, Namespaces, NetworkAttachment, ProcessSpec, Resources, Security
from proa.runtime.seam import Task
from proa.runtime.vm.runtime import VmRuntime
from proa.runtime.vm.task import VmTask
from tests.integration.vm.conftest import MIB, Stage, end_of, read_all, read_until

pytestmark = pytest.mark.anyio


def drop_link(task: Task) -> None:
    """What the daemon's death does: its sockets are closed."""
    assert isinstance(task, VmTask)
    task._guest.close()
    task._clone.console.close()


def exec_id() -> ExecId:
    return ExecId(new_id())


async def test_signals(stage: Stage) -> None:
    script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    task = await stage.create("sh", "-c", script)
    stdio = await task.attach()
    await task.start()
    await read_until(stdio, b"ready\n")
    await stdio.aclose()
    await task.kill(signal.SIGTERM)
    assert (await end_of(task)).code == 7
    with pytest.raises(WrongState):
        await task.kill(signal.SIGTERM)
    await task.delete()


async def test_kill_without_mercy(stage: Stage) -> None:
    task = await stage.create("sleep", "1000")
    await task.start()
    await task.kill(signal.SIGKILL)
    assert (await end_of(task)).code == 137
    await task.delete()


async def test_kill_of_a_guest_that_does_not_answer(stage: Stage) -> None:
    task = await stage.create("sleep", "1000")
    await task.start()
    os.kill(task.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        await task.kill(signal.SIGKILL)
        assert (await end_of(task)).code == 137
        assert time.monotonic() - began < 5
    finally:
        await task.delete()


async def test_exec(stage: Stage) -> None:
    task = await stage.create("sleep", "1000", process={"env": ("A=1",)})
    await task.start()
    process = await task.exec(
        exec_id(),
        ProcessSpec(
            args=("sh", "-c", "cat; echo $B; exit 12"), env=("B=2",), open_stdin=True, stdin_once=True
        ),
        attached=True,
    )
    assert process.pid > 0
    assert process.stdio is not None
    await process.stdio.send(b"in\n")
    await process.stdio.send_eof()
    assert await read_all(process.stdio) == (b"in\n2\n", b"")
    assert (await process.wait()).code == 12
    await process.stdio.aclose()
    detached = await task.exec(exec_id(), ProcessSpec(args=("true",)), attached=False)
    assert detached.stdio is None
    assert (await detached.wait()).code == 0
    with pytest.raises(StartFailed) as caught:
        await task.exec(exec_id(), ProcessSpec(args=("nothing-here",)), attached=False)
    assert caught.value.exit_code == 127
    lasting = await task.exec(exec_id(), ProcessSpec(args=("sleep", "900")), attached=True)
    await task.delete()
    with pytest.raises(TaskLost):
        await lasting.wait()


async def test_pause(stage: Stage) -> None:
    task = await stage.create("sh", "-c", "while :; do echo tick; sleep 0.02; done")
    stdio = await task.attach()
    await task.start()
    await read_until(stdio, b"tick\n")
    await task.pause()
    await task.pause()
    with anyio.move_on_after(0.2):  # what was under way
        while True:
            await stdio.receive()
    with anyio.move_on_after(0.2) as silence:
        await stdio.receive()
    assert silence.cancelled_caught
    await task.stats()
    await task.resume()
    await task.resume()
    await read_until(stdio, b"tick\n")
    await task.pause()
    await task.kill(signal.SIGKILL)
    assert (await end_of(task)).code == 137
    await stdio.aclose()
    await task.delete()


async def test_readings(stage: Stage) -> None:
    task = await stage.create("sleep", "1000", resources=Resources(memory_bytes=64 * MIB, pids=20))
    await task.start()
    stats = await task.stats()
    assert stats.memory_limit == 64 * MIB
    assert 0 < stats.memory_usage < 64 * MIB
    assert stats.pids >= 1
    assert stats.pids_limit == 20
    assert stats.system_cpu_ns > 0
    assert "inactive_file" in stats.memory_stats
    table = await task.processes("")
    assert table.titles[:3] == ("UID", "PID", "PPID")
    assert [row[-1] for row in table.rows] == ["sleep 1000"]
    assert (await task.processes("-o pid,comm")).titles == ("PID", "COMMAND")
    with pytest.raises(InvalidParameter):
        await task.processes("--nonsense")
    await task.update(Resources(memory_bytes=40 * MIB, pids=10))
    stats = await task.stats()
    assert (stats.memory_limit, stats.pids_limit) == (40 * MIB, 10)
    with pytest.raises(FeatureMissing):
        await task.update(Resources(memory_bytes=4096 * MIB))
    await task.delete()
    with pytest.raises(WrongState):
        await task.stats()


async def test_memory_limit_kills_the_program_not_the_guest(stage: Stage) -> None:
    fill = ("dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=100")
    task = await stage.create(*fill, resources=Resources(memory_bytes=64 * MIB), shm_size_bytes=256 * MIB)
    await task.start()
    status = await end_of(task)
    assert status.code == 137
    assert status.oom_killed
    await task.delete()


async def test_a_fraction_of_a_cpu_is_a_cgroup_around_qemu(stage: Stage) -> None:
    task = await stage.create(
        "sleep", "1000", resources=Resources(cpu_quota_us=50_000, cpu_period_us=100_000)
    )
    await task.start()
    assert f"/proa/{task.id}" in open(f"/proc/{task.pid}/cgroup").read()  # noqa: SIM115, PTH123
    await task.update(Resources())
    await task.delete()


async def test_a_cgroup_parent_without_limits(stage: Stage) -> None:
    parent = f"proa-test-{os.getpid()}"
    task = await stage.create("sleep", "1000", cgroup_parent=f"/{parent}")
    try:
        assert f"/{parent}/{task.id}" in Path(f"/proc/{task.pid}/cgroup").read_text()
        await task.delete()
    finally:
        await Cgroup(f"/{parent}", get_hierarchies()).delete()


async def test_clones_are_individuals(stage: Stage) -> None:
    command = ("sh", "-c", "head -c 16 /dev/urandom | xxd -p; cat /proc/sys/kernel/random/uuid; date +%s")
    first = (await stage.run(*command))[1].split()
    before = time.time()
    second = (await stage.run(*command))[1].split()
    assert len(first) == 3
    assert first[0] != second[0]
    assert first[1] != second[1]
    assert int(before) <= int(second[2]) <= time.time()


async def test_found_by_the_next_daemon(stage: Stage) -> None:
    task = await stage.create(
        "sh",
        "-c",
        "while read x; do echo got $x; [ $x = end ] && exit 21; done",
        process={"open_stdin": True},
    )
    await task.start()
    first = await task.attach()
    await first.send(b"a\n")
    await read_until(first, b"got a\n")
    async with anyio.create_task_group() as others:
        drop_link(task)
        later = VmRuntime(**{**stage.settings, "tasks": others})
        found = await later.find(task.id)
        assert found is not None
        assert found.pid == task.pid
        with pytest.raises(WrongState):
            await found.start()
        stdio = await found.attach()
        await stdio.send(b"b\n")
        await read_until(stdio, b"got b\n")
        process = await found.exec(exec_id(), ProcessSpec(args=("echo", "exec")), attached=True)
        assert process.stdio is not None
        assert (await read_all(process.stdio))[0] == b"exec\n"
        await stdio.send(b"end\n")
        assert (await read_all(stdio))[0] == b"got end\n"
        await stdio.aclose()
        assert (await end_of(found)).code == 21
        await found.delete()
    await first.aclose()
    await task.delete()
    assert "got a" in stage.log(task)


async def test_an_end_while_no_daemon_was_there(stage: Stage) -> None:
    spec = await stage.spec("sh", "-c", "sleep 0.5; echo late; exit 6")
    async with anyio.create_task_group() as tasks:
        earlier = VmRuntime(**{**stage.settings, "tasks": tasks})
        task = await earlier.create(spec)
        await task.start()
        tasks.cancel_scope.cancel()
    assert isinstance(task, VmTask)
    drop_link(task)
    with anyio.fail_after(60):
        await task._clone.process.wait()  # reaped, as init would
    found = await stage.runtime.find(spec.id)
    assert found is not None
    assert (await end_of(found)).code == 6
    assert "stdout F late" in stage.log(found)
    with pytest.raises(WrongState):
        await found.stats()
    await found.delete()
    assert await stage.runtime.find(spec.id) is None


async def test_qemu_killed_from_outside(stage: Stage) -> None:
    task = await stage.create("sleep", "1000")
    await task.start()
    stdio = await task.attach()
    os.kill(task.pid, signal.SIGKILL)
    with pytest.raises(TaskLost):
        await end_of(task)
    assert await read_all(stdio) == (b"", b"")
    await stdio.aclose()
    await task.delete()


async def test_forget_cleans_up_what_was_half_made(stage: Stage) -> None:
    task = await stage.create("sleep", "1000")
    pid = task.pid
    with pytest.raises(Conflict):
        await stage.runtime.create(task._spec)  # type: ignore[attr-defined]
    await stage.runtime.forget(task.id)
    await stage.runtime.forget(task.id)
    with pytest.raises(TaskLost):
        await end_of(task)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await task.delete()
    assert await stage.runtime.find(ContainerId(new_id())) is None


async def test_what_a_vm_cannot_do_is_refused(stage: Stage) -> None:
    for more in (
        {"security": Security(seccomp='{"defaultAction": "SCMP_ACT_ALLOW"}')},
        {"namespaces": Namespaces(pid="host")},
        {"network": NetworkAttachment(host=True)},
    ):
        with pytest.raises(FeatureMissing):
            await stage.create("true", **more)
    missing = Interface(
        name="eth0",
        device="proa-nothing",
        network_id=new_id(),  # type: ignore[arg-type]  # any id
        mac="02:42:ac:11:00:02",
        address=IPv4Interface("172.17.0.2/16"),
    )
    with pytest.raises(Unavailable):
        await stage.create("true", network=NetworkAttachment(interfaces=(missing,)))


async def test_a_cancelled_create_leaves_nothing(stage: Stage) -> None:
    await (await stage.create("true")).delete()  # so that there is a template
    for delay_s in (0.005, 0.03, 0.1, 0.2):
        with anyio.move_on_after(delay_s):
            task = await stage.create("true")
            await task.delete()

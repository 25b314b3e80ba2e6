# SPDX-License-Identifier: Apache-2.0
"""Running copies of machines: what goes on in them, what differs, and what is left when one fails."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from proa.model.errors import Internal, StartFailed, WrongState
from proa.model.ids import ContainerId
from proa.model.task import BlockRootfs, ProcessSpec, TaskSpec
from proa.runtime.seam import Task
from proa.runtime.vm import forking
from proa.runtime.vm.monitor import greeted_monitor
from proa.runtime.vm.runtime import VmRuntime
from proa.runtime.vm.task import VmTask
from tests.integration.vm.conftest import Stage, processes_with, read_all
from tests.integration.vm.test_control import drop_link, exec_id

pytestmark = pytest.mark.anyio

# What it knows is in its memory alone, and in a file that it holds open without a name.
COUNTER = (
    "exec 3<>/secret; echo kept >&3; rm /secret; echo disk >/on-disk; sync; i=0;"
    "while :; do i=$((i+1)); echo $i; sleep 0.05; done"
)


async def say(task: Task, script: str) -> str:
    process = await task.exec(exec_id(), ProcessSpec(args=("sh", "-c", script)), attached=True)
    assert process.stdio is not None
    out, err = await read_all(process.stdio)
    await process.stdio.aclose()
    return (out + err).decode()


async def reach(stage: Stage, task: Task, more_than: int) -> list[int]:
    """Wait until the copy's or the source's counter has gone on; return what it has written."""
    with anyio.fail_after(60):
        while True:
            lines = [int(line.split()[-1]) for line in stage.log(task).splitlines()]
            if lines and lines[-1] > more_than:
                return lines
            await anyio.sleep(0.05)


async def copy_spec(stage: Stage, hostname: str = "copy") -> TaskSpec:
    return replace(
        await stage.spec("sh", "-c", COUNTER), hostname=hostname, files={"/etc/hosts": b"copy's hosts\n"}
    )


@pytest.fixture
async def counting(stage: Stage) -> AsyncIterator[Task]:
    spec = await stage.spec("sh", "-c", COUNTER, files={"/etc/hosts": b"source's\n"})
    task = await stage.runtime.create(replace(spec, hostname="source"))
    await task.start()
    await reach(stage, task, 3)
    yield task
    await task.delete()


def machines(stage: Stage) -> list[Path]:
    return sorted((stage.base / "x").iterdir())


async def test_copies_go_on_as_others(stage: Stage, counting: Task) -> None:
    """Two of them, and one of a copy: counters, files, names, random numbers."""
    first = await stage.runtime.fork(counting, await copy_spec(stage, "one"))
    second = await stage.runtime.fork(counting, await copy_spec(stage, "two"))
    third = await stage.runtime.fork(first, await copy_spec(stage, "three"))
    every = (counting, first, second, third)
    try:
        for copy in (first, second, third):
            seen = await reach(stage, copy, 6)
            assert seen[0] > 3, "it went on from where the source was"
            assert seen == list(range(seen[0], seen[-1] + 1))
        before = len(await reach(stage, counting, 6))
        seen = await reach(stage, counting, before + 3)
        assert seen == list(range(1, seen[-1] + 1)), "the source has not noticed"
        files = "/on-disk /etc/hosts /proc/1/fd/3"
        script = f"hostname; cat {files}; head -c 16 /dev/urandom | md5sum; cat /etc/machine-id"
        told = [(await say(task, script)).splitlines() for task in every]
        assert [lines[0] for lines in told] == ["source", "one", "two", "three"]
        assert [lines[1] for lines in told] == ["disk"] * 4
        assert [lines[2] for lines in told] == ["source's", *["copy's hosts"] * 3]
        assert [lines[3] for lines in told] == ["kept"] * 4
        assert len({lines[4] for lines in told}) == 4, "no two have the same random numbers"
        assert [lines[5] for lines in told] == [task.id[:32] for task in every]
        await say(first, "echo more >>/on-disk; dd if=/dev/zero of=/zeros bs=1M count=4 2>/dev/null; sync")
        assert await say(second, "cat /on-disk; ls /zeros 2>&1 | wc -l") == "disk\n1\n"
        assert await say(counting, "cat /on-disk") == "disk\n"
    finally:
        for task in (first, second, third):
            await task.delete()


async def test_a_copy_is_a_task_like_any_other(stage: Stage, counting: Task) -> None:
    """It is found by the next daemon, paused, killed; and its disk can be started from."""
    spec = await copy_spec(stage)
    copy = await stage.runtime.fork(counting, spec)
    drop_link(copy)
    async with anyio.create_task_group() as tasks:
        found = await VmRuntime(**{**stage.settings, "tasks": tasks}).find(copy.id)
        assert isinstance(found, VmTask)
        await found.pause()
        with pytest.raises(WrongState, match="paused, not running"):
            await stage.runtime.fork(found, await copy_spec(stage))
        await found.resume()
        again = await stage.runtime.fork(found, await copy_spec(stage))
        await again.delete()
        await found.kill(9)
        assert (await found.wait()).code == 137
        await found.delete()
        tasks.cancel_scope.cancel()
    assert isinstance(spec.rootfs, BlockRootfs)
    kept = replace(spec.rootfs, is_new=False)
    code, out, _ = await stage.run("sh", "-c", "cat /on-disk; ls /secret 2>&1 | wc -l", rootfs=kept)
    assert (code, out) == (0, b"disk\n1\n")


async def test_what_fails_leaves_nothing(
    stage: Stage, counting: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def fail_now(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = machines(stage)
    for name, put, error in (
        ("copy_changed", fail_now, Internal),
        ("save_devices", fail, Internal),
        ("_identify", fail, OSError),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(forking, name, put)
            with pytest.raises(error, match="No space left"):
                await stage.runtime.fork(counting, await copy_spec(stage))
        assert machines(stage) == before
        assert len(processes_with(str(stage.base / "x"))) == 1
        assert not (before[0] / "copying").exists()
    monkeypatch.setattr(forking, "ENTROPY_BYTES", 1)
    with pytest.raises(StartFailed, match="entropy and clock"):
        await stage.runtime.fork(counting, await copy_spec(stage))
    assert machines(stage) == before
    await reach(stage, counting, len(stage.log(counting).splitlines()) + 3)


async def test_the_daemon_died_in_the_middle(stage: Stage, counting: Task) -> None:
    """A source that stood still goes on, and a copy that was not finished is ended."""
    assert isinstance(counting, VmTask)
    copy = await stage.runtime.fork(counting, await copy_spec(stage))
    assert isinstance(copy, VmTask)
    record = copy.home.path / "state.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "is_unfinished": True}))
    async with greeted_monitor(counting.home.monitor) as monitor:
        counting.home.copying.touch()
        await monitor.execute("stop")
    for task in (counting, copy):
        drop_link(task)
    async with anyio.create_task_group() as tasks:
        runtime = VmRuntime(**{**stage.settings, "tasks": tasks})
        assert await runtime.find(ContainerId(copy.id)) is None
        assert not copy.home.exists()
        assert copy.clone.process.has_ended()
        found = await runtime.find(counting.id)
        assert found is not None
        assert not counting.home.copying.exists()
        await reach(stage, counting, len(stage.log(counting).splitlines()) + 3)
        await found.delete()
        tasks.cancel_scope.cancel()
    await copy.delete()

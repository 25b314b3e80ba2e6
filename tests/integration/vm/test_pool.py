# SPDX-License-Identifier: Apache-2.0
"""The pool: machines that wait become containers like any other, once, and leave nothing when they do not."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Interface
from pathlib import Path

import anyio
import pytest

from proa.host import process
from proa.host.tap import create_tap
from proa.host.watch import get_start_time
from proa.model.ids import NetworkId
from proa.model.task import BlockRootfs, Interface, Mount, MountKind, TaskSpec
from proa.runtime.seam import NetworkTask, Task
from proa.runtime.vm import pool
from proa.runtime.vm.image_template import STARTS
from proa.runtime.vm.pooled import PREFIX, Pooled
from proa.runtime.vm.runtime import VmRuntime
from tests.integration.vm.conftest import Stage, end_of, processes_with, read_all
from tests.integration.vm.test_control import drop_link
from tests.integration.vm.test_image_templates import made

pytestmark = pytest.mark.anyio

SIZE = 2


@pytest.fixture
async def pooling(stage: Stage) -> AsyncIterator[Stage]:
    """A runtime whose pool is full of machines of the busybox image."""
    async with anyio.create_task_group() as tasks:
        settings = {**stage.settings, "tasks": tasks, "pool_size": SIZE}
        mine = replace(stage, runtime=VmRuntime(**settings), settings=settings)
        for _ in range(STARTS):
            assert (await mine.run("true"))[0] == 0
        await filled(mine)
        yield mine
        tasks.cancel_scope.cancel()
    assert not list((stage.base / "x").glob(f"{PREFIX}*"))
    assert not list((stage.base / "pool").iterdir())
    assert processes_with(f"{stage.base}/x/{PREFIX}") == []


def waiting(stage: Stage) -> list[Pooled]:
    return stage.runtime._pool._waiting


async def filled(stage: Stage, size: int = SIZE) -> None:
    await made(lambda: len(waiting(stage)) == size)


async def finish(task: Task) -> list[str]:
    """Run it to its end; return its lines."""
    stdio = await task.attach()
    await task.start()
    lines = (await read_all(stdio))[0].decode().splitlines()
    await stdio.aclose()
    await end_of(task)
    await task.delete()
    return lines


async def taken(stage: Stage, spec: TaskSpec) -> Task:
    """Make the task, from the pool."""
    pids = {each.process.pid for each in waiting(stage)}
    task = await stage.runtime.create(spec)
    assert task.pid in pids
    assert task.pid not in {each.process.pid for each in waiting(stage)}
    return task


async def test_one_becomes_a_container_like_any_other_and_is_replaced(pooling: Stage) -> None:
    script = """
        cat /etc/hosts /etc/machine-id
        cat /etc/resolv.conf
        hostname; echo $$
        cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max
        ip -4 addr | grep -c 198.18
        grep -c / /proc/mounts
        (echo 1 >/proc/sys/vm/swappiness) 2>&1 | grep -c Read-only
        test $(date +%s) -gt 1700000000 && echo dated
        echo kept >/kept
    """
    spec = await pooling.spec("sh", "-c", script, files={"/etc/hosts": b"127.0.0.1 localhost\n"})
    task = await taken(pooling, spec)
    lines = await finish(task)
    assert "stdout F dated" in pooling.log(task)
    await filled(pooling)
    for each in list(waiting(pooling)):
        pooling.runtime._pool._waiting.remove(each)
        await each.end()
    plain = await pooling.spec("sh", "-c", script, files={"/etc/hosts": b"127.0.0.1 localhost\n"})
    expected = [
        line.replace(plain.id[:32], spec.id[:32]).replace(plain.hostname, spec.hostname)
        for line in await finish(await pooling.runtime.create(plain))
    ]
    assert lines == expected
    assert lines[:4] == ["127.0.0.1 localhost", spec.id[:32], spec.hostname, "1"]
    assert isinstance(spec.rootfs, BlockRootfs)
    again = replace(spec, rootfs=replace(spec.rootfs, is_new=False))
    again = replace(again, process=replace(spec.process, args=("cat", "/kept")))
    assert await finish(await pooling.runtime.create(again)) == ["kept"]


async def test_no_two_of_them_are_twins(pooling: Stage) -> None:
    script = "head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid /etc/machine-id"
    seen = [
        set(await finish(await taken(pooling, await pooling.spec("sh", "-c", script)))) for _ in range(SIZE)
    ]
    assert [len(each) for each in seen] == [3] * SIZE
    assert not seen[0] & seen[1]


async def test_what_does_not_fit_is_made_as_ever(pooling: Stage, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("shared\n")
    before = list(waiting(pooling))
    mount = Mount(kind=MountKind.BIND, source=tmp_path, target="/share")
    spec = await pooling.spec("cat", "/share/file", mounts=(mount,))
    assert await finish(await pooling.runtime.create(spec)) == ["shared"]
    spec = await pooling.spec("echo", "logged")
    spec.log_path.write_text("2026-01-01T00:00:00+00:00 stdout F before\n")
    assert await finish(await pooling.runtime.create(spec)) == ["logged"]
    assert len(spec.log_path.read_text().splitlines()) == 2
    assert waiting(pooling) == before


async def test_one_that_fails_at_its_claim_is_ended_and_a_clone_made(pooling: Stage) -> None:
    for each in waiting(pooling):
        each.disk.unlink()
    broken = waiting(pooling)[0].process
    assert await finish(await pooling.runtime.create(await pooling.spec("echo", "hi"))) == ["hi"]
    assert broken.has_ended()
    gone = waiting(pooling)[0]
    await gone.process.end()
    assert await finish(await pooling.runtime.create(await pooling.spec("echo", "hi"))) == ["hi"]


async def test_one_that_was_claimed_by_a_daemon_that_died_is_not_taken_up(pooling: Stage) -> None:
    task = await taken(pooling, await pooling.spec("sleep", "1000"))
    drop_link(task)
    async with anyio.create_task_group() as others:
        later = VmRuntime(
            **{**pooling.settings, "tasks": others, "pool_size": 0, "exec_root": pooling.base / "x"}
        )
        await later.forget(task.id)
        assert get_start_time(task.pid) is None or processes_with(task.id) == []
        assert await later.find(task.id) is None
        others.cancel_scope.cancel()
    await task.delete()


async def test_what_a_dead_daemon_had_waiting_is_ended(stage: Stage) -> None:
    home = stage.base / "left" / f"{PREFIX}1"
    home.mkdir(parents=True)
    (stage.base / "pool-left").mkdir()
    (stage.base / "pool-left" / "1.ext4").touch()
    async with await anyio.open_process(["sleep", "1000"]) as orphan:
        (home / "pid").write_text(f"{orphan.pid} {get_start_time(orphan.pid)}\n")
        async with anyio.create_task_group() as tasks:
            settings = {**stage.settings, "tasks": tasks, "pool_root": stage.base / "pool-left"}
            VmRuntime(**{**settings, "exec_root": home.parent})
            await made(lambda: not home.exists() and not list((stage.base / "pool-left").iterdir()))
            tasks.cancel_scope.cancel()
        assert await orphan.wait() == -signal.SIGKILL


async def test_it_is_emptied_when_memory_is_short(pooling: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    machines = list(waiting(pooling))
    monkeypatch.setattr(pool, "is_memory_short", lambda: True)
    await filled(pooling, 0)
    await made(lambda: all(each.process.has_ended() for each in machines))
    assert await finish(await pooling.runtime.create(await pooling.spec("echo", "hi"))) == ["hi"]


async def test_one_is_connected_to_a_network_and_taken_off_it(pooling: Stage) -> None:
    tap = "pvmt2"
    interface = Interface(
        name="eth7",
        device=tap,
        network_id=NetworkId("net"),
        mac="02:42:c6:33:64:06",
        address=IPv4Interface("198.51.100.6/30"),
    )
    script = "ls /sys/class/net; cat /sys/class/net/eth7/address; ip -o -4 addr show eth7"
    create_tap(tap)
    try:
        for interfaces in ([interface], []):
            task = await taken(pooling, await pooling.spec("sh", "-c", script))
            assert isinstance(task, NetworkTask)
            task.check_change(joins=True)
            await task.set_networks([interface])
            await task.set_networks(interfaces)
            lines = await finish(task)
            assert lines[:1] == (["eth7"] if interfaces else ["lo"])
            assert ("02:42:c6:33:64:06" in lines) == bool(interfaces)
            assert ("198.51.100.6/30" in " ".join(lines)) == bool(interfaces)
            await filled(pooling)
    finally:
        await process.run(["ip", "link", "del", tap], check=False)

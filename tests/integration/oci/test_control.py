# SPDX-License-Identifier: Apache-2.0
"""Freezing, limits, readings, the process list."""

from __future__ import annotations

import anyio
import pytest

from proa.model.errors import InvalidParameter
from proa.model.task import Resources
from tests.integration.oci.conftest import Hull

pytestmark = pytest.mark.anyio

MIB = 1 << 20


async def test_pause_stops_and_resume_goes_on(hull: Hull) -> None:
    task = await hull.create(hull.spec("sh", "-c", "while :; do echo .; sleep 0.01; done"))
    stdio = await task.attach()
    await task.start()
    await stdio.receive()
    await task.pause()
    await task.pause()
    with anyio.move_on_after(0.2):
        while True:
            await stdio.receive()  # what was under way
    with anyio.move_on_after(0.1) as scope:
        await stdio.receive()
    assert scope.cancelled_caught
    await task.resume()
    await task.resume()
    with anyio.fail_after(2):
        await stdio.receive()
    await task.pause()  # and is removed though frozen
    await stdio.aclose()


async def test_limits_hold_are_read_and_are_replaced(hull: Hull) -> None:
    spec = hull.spec("sleep", "100", resources=Resources(memory_bytes=32 * MIB, pids=10, cpu_shares=512))
    task = await hull.start(spec)
    stats = await task.stats()
    assert stats.memory_limit == 32 * MIB
    assert stats.pids_limit == 10
    assert stats.pids >= 1  # runc may not have become the program yet, and has threads
    assert stats.online_cpus >= 1
    assert stats.system_cpu_ns > stats.cpu_total_ns > 0
    assert stats.networks == {}
    await task.update(Resources(memory_bytes=64 * MIB, memory_swap_bytes=96 * MIB, cpu_quota_us=20_000))
    stats = await task.stats()
    assert stats.memory_limit == 64 * MIB
    assert stats.pids_limit == 0
    await task.update(Resources())
    assert (await task.stats()).memory_limit > 64 * MIB


async def test_out_of_memory_is_told(hull: Hull) -> None:
    spec = hull.spec(
        "sh", "-c", "tail /dev/zero", resources=Resources(memory_bytes=16 * MIB, memory_swap_bytes=16 * MIB)
    )
    task = await hull.start(spec)
    with anyio.fail_after(20):
        status = await task.wait()
    assert status.code == 137
    assert status.oom_killed


async def test_a_child_out_of_memory_is_told_while_it_runs(hull: Hull) -> None:
    spec = hull.spec(
        "sh", "-c", "tail /dev/zero; sleep 1000",
        resources=Resources(memory_bytes=16 * MIB, memory_swap_bytes=16 * MIB),
    )  # fmt: skip
    task = await hull.start(spec)
    told = anyio.Event()

    async def tell() -> None:
        told.set()

    async with anyio.create_task_group() as group:
        group.start_soon(task.watch_oom, tell)
        with anyio.fail_after(20):
            await told.wait()
        group.cancel_scope.cancel()
    await task.kill(9)
    with anyio.fail_after(20):
        assert (await task.wait()).oom_killed


async def test_pids_limit(hull: Hull) -> None:
    code, text = await hull.run(
        "sh", "-c", "sleep 1 & sleep 1 & sleep 1 & sleep 1 & echo no", resources=Resources(pids=3)
    )
    assert "no" not in text.split()
    assert code != 0


async def test_process_list(hull: Hull) -> None:
    task = await hull.start(hull.spec("sh", "-c", "sleep 100 & sleep 200"))
    await anyio.sleep(0.1)
    table = await task.processes("-ef")
    assert table.titles[:2] == ("UID", "PID")
    commands = [row[-1] for row in table.rows]
    assert sorted(commands)[-2:] == ["sleep 100", "sleep 200"]
    assert all(len(row) == len(table.titles) for row in table.rows)
    table = await task.processes("aux")
    assert "COMMAND" in table.titles
    assert len(table.rows) == len(commands)
    assert (await task.processes("-o pid,comm")).titles == ("PID", "COMMAND")
    for wrong in ("-o comm", "-Z-no-such-option", "-o comm=PID"):
        with pytest.raises(InvalidParameter):
            await task.processes(wrong)

# SPDX-License-Identifier: Apache-2.0
"""An engine that starts later finds the containers of the one before, running or ended."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio
import pytest

from proa.host.cgroup import Cgroup, get_hierarchies
from proa.host.watch import wait_pid_exit
from proa.model.errors import TaskLost
from proa.model.ids import ContainerId, ExecId, new_id
from proa.model.task import ProcessSpec
from tests.integration.oci.conftest import Hull, make_runtime, read_all

pytestmark = pytest.mark.anyio


async def test_running_container_is_found(hull: Hull) -> None:
    first = await hull.start(
        hull.spec("sh", "-c", "trap 'echo bye; exit 6' TERM; while :; do sleep 0.05; done")
    )
    found = await hull.later_engine().find(first.id)
    assert found is not None
    assert found.pid == first.pid
    assert (await found.stats()).pids >= 1
    stdio = await found.attach()
    process = await found.exec(ExecId(new_id()), ProcessSpec(args=("echo", "in")), attached=True)
    assert process.stdio is not None
    assert await read_all(process.stdio) == "in\n"
    await process.stdio.aclose()
    await anyio.sleep(0.1)  # the shell sets its trap
    await found.kill(signal.SIGTERM)
    assert await read_all(stdio) == "bye\n"
    await stdio.aclose()
    status = await found.wait()
    assert status.code == 6
    assert await first.wait() == status
    await found.delete()
    await first.delete()
    assert await hull.later_engine().find(first.id) is None


async def test_created_container_is_found_and_started(hull: Hull) -> None:
    first = await hull.create(hull.spec("sh", "-c", "exit 9"))
    found = await hull.later_engine().find(first.id)
    assert found is not None
    await found.start()
    assert (await found.wait()).code == 9


async def test_ended_container_is_found_with_its_status(hull: Hull) -> None:
    first = await hull.start(hull.spec("sh", "-c", "exit 9"))
    status = await first.wait()
    found = await hull.later_engine().find(first.id)
    assert found is not None
    with anyio.fail_after(2):
        assert await found.wait() == status


async def test_lost_supervisor_is_a_lost_task(hull: Hull) -> None:
    first = await hull.start(hull.spec("sleep", "100"))
    supervisor = int(Path(f"/proc/{first.pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(supervisor, signal.SIGKILL)
    with anyio.fail_after(5):
        with pytest.raises(TaskLost):
            await first.wait()
        await wait_pid_exit(first.pid)


async def test_the_other_runtime_does_not_take_it(hull: Hull) -> None:
    first = await hull.start(hull.spec("sleep", "100"))
    other = make_runtime({"crun": "runc", "runc": "crun"}[hull.runtime.name], hull.exec_root, hull.tasks)
    assert await other.find(first.id) is None


async def test_half_made_container_is_forgotten(hull: Hull) -> None:
    task = await hull.start(hull.spec("sleep", "100"))
    await hull.runtime.forget(task.id)
    await wait_pid_exit(task.pid)
    assert not Cgroup(f"/proa/{task.id}", get_hierarchies()).exists()
    assert await hull.runtime.find(task.id) is None
    await hull.runtime.forget(task.id)
    await hull.runtime.forget(ContainerId(new_id()))


async def test_removed_container_leaves_nothing(hull: Hull) -> None:
    task = await hull.start(hull.spec("sh", "-c", "sleep 100 & sleep 100"))
    group = Cgroup(f"/proa/{task.id}", get_hierarchies())
    pids = group.pids()
    assert pids
    await task.delete()
    for pid in pids:
        await wait_pid_exit(pid)
    assert not group.exists()
    assert str(hull.exec_root) not in Path("/proc/self/mountinfo").read_text()
    assert not (hull.exec_root / task.id).exists()

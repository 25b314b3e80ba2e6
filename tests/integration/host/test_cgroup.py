# SPDX-License-Identifier: Apache-2.0
"""proa.host.cgroup on the kernel's own trees, whichever layout this host has. Needs root."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import anyio
import pytest

from proa.host import process
from proa.host.cgroup import Cgroup, ensure_hierarchies, find_cgroups, get_hierarchies
from proa.model.errors import InvalidParameter
from proa.model.task import Resources

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
async def group() -> AsyncIterator[Cgroup]:
    group = Cgroup(f"/proa-test-{os.getpid()}/one", get_hierarchies())
    yield group
    await group.delete()
    await Cgroup(f"/proa-test-{os.getpid()}", get_hierarchies()).delete()


async def test_life_of_a_cgroup(group: Cgroup) -> None:
    group.create(Resources(memory_bytes=64 << 20, pids=20, cpu_quota_us=50_000, cpuset_cpus="0"))
    read, write = os.pipe()
    child = await process.spawn(["sh", "-c", "read word; sleep 100 & sleep 100 & wait"], stdin=read)
    os.close(read)
    group.attach(child.pid)
    os.close(write)
    with anyio.fail_after(5):
        while len(group.pids()) < 3:  # noqa: ASYNC110
            await anyio.sleep(0.01)
    usage = group.usage()
    assert usage.memory_limit == 64 << 20
    assert usage.pids_limit == 20
    assert usage.cpu_total_ns > 0
    assert group.oom_kills() == 0

    group.set_limits(Resources(memory_bytes=128 << 20), reset=True)
    assert group.usage().memory_limit == 128 << 20
    assert group.usage().pids_limit == 0
    with pytest.raises(InvalidParameter, match=r"cannot set cpuset.cpus to 4000"):
        group.set_limits(Resources(cpuset_cpus="4000"))

    await group.set_frozen(True)
    assert group.is_frozen()
    await group.set_frozen(True)
    await group.set_frozen(False)
    assert not group.is_frozen()

    await group.set_frozen(True)
    await group.delete()  # kills, though frozen
    assert await child.wait() == -9
    assert not group.exists()
    assert group.pids() == []
    with pytest.raises(FileNotFoundError):
        group.usage()
    await group.delete()


async def test_a_limit_that_fails_leaves_nothing(group: Cgroup) -> None:
    with pytest.raises(InvalidParameter):
        group.create(Resources(cpuset_cpus="4000"))
    assert not group.exists()


async def test_nested_cgroups_are_removed(group: Cgroup) -> None:
    group.create()
    Cgroup(group.path + "/a/b", group.hierarchies).create()
    await group.delete()
    assert not group.exists()


async def test_found_by_its_name(group: Cgroup) -> None:
    name = f"proa-found-{os.getpid()}"
    assert find_cgroups(name) == []
    nested = Cgroup(f"{group.path}/{name}", group.hierarchies)
    nested.create()
    found = find_cgroups(name)
    assert [one.path for one in found] == [nested.path]
    await found[0].delete()
    assert not nested.exists()


async def test_missing_trees_are_mounted_once() -> None:
    first = await ensure_hierarchies()
    assert await ensure_hierarchies() == first
    assert first.is_v2 or "memory" in first.v1

# SPDX-License-Identifier: Apache-2.0
"""Many rounds, and creates given up at any moment, leave nothing: files, descriptors, processes, cgroups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from proa.host.cgroup import get_hierarchies
from proa.model.ids import ExecId, new_id
from proa.model.task import ProcessSpec
from tests.integration.oci.conftest import Hull, read_all

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Left:
    """What can be left behind by this hull."""

    descriptors: int
    mounts: int
    cgroups: frozenset[str]
    processes: frozenset[str]
    files: frozenset[str]


def look(hull: Hull, identifiers: list[str]) -> Left:
    groups = {
        str(path)
        for root in get_hierarchies().roots
        for identifier in identifiers
        if (path := root / "proa" / identifier).exists()
    }
    return Left(
        descriptors=len(list(Path("/proc/self/fd").iterdir())),
        mounts=len(Path("/proc/self/mountinfo").read_text().splitlines()),
        cgroups=frozenset(groups),
        processes=frozenset(_processes(identifiers)),
        files=frozenset(str(path) for path in hull.exec_root.rglob("*") if path.is_dir()),
    )


def _processes(identifiers: list[str]) -> list[str]:
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                line = (path / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if any(identifier in line for identifier in identifiers):
                found.append(line)
    return found


async def test_rounds_leave_nothing(hull: Hull) -> None:
    async def once() -> str:
        task = await hull.runtime.create(hull.spec("sleep", "100"))
        stdio = await task.attach()
        await task.start()
        process = await task.exec(ExecId(new_id()), ProcessSpec(args=("echo", "in")), attached=True)
        assert process.stdio is not None
        await read_all(process.stdio)
        await process.stdio.aclose()
        await process.wait()
        await task.kill(9)
        await task.wait()
        await stdio.aclose()
        await task.delete()
        return task.id

    await once()
    before = look(hull, [])
    identifiers = [await once() for _ in range(10)]
    assert look(hull, identifiers) == before


async def test_creates_given_up_at_any_moment_leave_nothing(hull: Hull) -> None:
    await hull.run("true")
    before = look(hull, [])
    identifiers = []
    given_up = 0
    for step in range(12):
        spec = hull.spec("sleep", "100")
        identifiers.append(str(spec.id))
        with anyio.move_on_after(step * 0.003) as scope:
            task = await hull.runtime.create(spec)
        if scope.cancelled_caught:
            given_up += 1
        else:
            await task.delete()
    assert given_up
    with anyio.fail_after(10):
        while look(hull, identifiers) != before:  # noqa: ASYNC110 - nothing tells that a process is gone
            await anyio.sleep(0.05)


async def test_execs_given_up_leave_nothing(hull: Hull) -> None:
    task = await hull.start(hull.spec("sleep", "100"))
    directory = hull.exec_root / task.id / "exec"
    for step in range(1, 8):
        with anyio.move_on_after(step * 0.003):
            process = await task.exec(ExecId(new_id()), ProcessSpec(args=("true",)), attached=True)
            assert process.stdio is not None
            await process.stdio.aclose()
            await process.wait()
    with anyio.fail_after(5):
        while list(directory.iterdir()):  # noqa: ASYNC110
            await anyio.sleep(0.05)


async def test_half_made_create_of_a_dead_engine_is_forgotten(hull: Hull) -> None:
    task = await hull.create(hull.spec("sleep", "100"))
    record = hull.exec_root / task.id / "task.json"
    record.write_text(record.read_text().replace(f'"pid":{task.pid}', '"pid":0'))
    later = hull.later_engine()
    assert await later.find(task.id) is None
    await later.forget(task.id)
    with anyio.fail_after(5):
        while _processes([str(task.id)]):  # noqa: ASYNC110
            await anyio.sleep(0.02)

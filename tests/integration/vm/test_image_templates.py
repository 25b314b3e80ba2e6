# SPDX-License-Identifier: Apache-2.0
"""Templates with an image's root file system: made behind the starts, used by new containers only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from proa.model.task import BlockRootfs, Security, TaskSpec
from proa.runtime.vm.image_template import STARTS
from proa.runtime.vm.runtime import VmRuntime
from tests.integration.vm.conftest import Stage, end_of, processes_with, read_all

pytestmark = pytest.mark.anyio

MADE_WITHIN_S = 60.0
UNMASKED = Security(masked_paths=(), readonly_paths=())


def own(stage: Stage) -> Stage:
    """A runtime with templates of this test's own: the others share theirs."""
    return replace(stage, runtime=VmRuntime(**{**stage.settings, "templates": stage.base / "own"}))


def image_template(stage: Stage) -> Path:
    (directory,) = (stage.base / "own").glob("image-*")
    return directory


async def made(is_there: Callable[[], bool]) -> None:
    with anyio.fail_after(MADE_WITHIN_S):
        while True:
            if is_there():
                return
            await anyio.sleep(0.05)


@pytest.fixture
async def prepared(stage: Stage) -> AsyncIterator[Stage]:
    """A runtime that has started the image often enough to have its template."""
    mine = own(stage)
    for _ in range(STARTS):
        assert (await mine.run("true"))[0] == 0
    await made(lambda: bool(list((stage.base / "own").glob("image-*/meta.json"))))
    yield mine


async def lines_of(stage: Stage, spec: TaskSpec) -> list[str]:
    task = await stage.runtime.create(spec)
    stdio = await task.attach()
    await task.start()
    out = (await read_all(stdio))[0].decode()
    await stdio.aclose()
    await end_of(task)
    await task.delete()
    return out.splitlines()


async def test_a_container_finds_all_it_would_have_otherwise(prepared: Stage) -> None:
    directory = image_template(prepared)
    assert sorted(path.name for path in directory.iterdir()) == ["mem", "meta.json", "new", "state"]
    assert processes_with(str(directory.parent)) == []
    script = """
        cat /etc/hosts /etc/machine-id
        test -e /etc/resolv.conf || echo none
        grep -c ' / ' /proc/mounts
        cat /proc/kcore | wc -c
        (echo 1 >/proc/sys/vm/swappiness) 2>&1 | grep -c Read-only
        grep /dev/shm /proc/mounts | grep -o size=.*k
        echo $$; hostname; ls /sys/firmware | wc -l
        test $(stat -c %Y /) -gt 1700000000 && echo dated
    """
    spec = await prepared.spec(
        "sh", "-c", script, files={"/etc/hosts": b"127.0.0.1 localhost\n"}, shm_size_bytes=8 << 20
    )
    first_use = directory.stat().st_mtime_ns
    assert await lines_of(prepared, spec) == [
        *("127.0.0.1 localhost", spec.id[:32], "1", "0"),
        *("1", "size=8192k", "1", spec.hostname, "0", "dated"),
    ]
    assert directory.stat().st_mtime_ns > first_use


async def test_two_containers_of_it_are_not_twins(prepared: Stage) -> None:
    script = "head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid /etc/machine-id"
    seen = [set(await lines_of(prepared, await prepared.spec("sh", "-c", script))) for _ in range(2)]
    assert len(seen[0]) == 3 and not seen[0] & seen[1]


async def test_what_is_written_is_there_at_the_next_start(prepared: Stage) -> None:
    spec = await prepared.spec("sh", "-c", "date >>/kept; wc -l </kept")
    for lines in (1, 2, 3):
        assert await lines_of(prepared, spec) == [str(lines)]
        assert isinstance(spec.rootfs, BlockRootfs)
        spec = replace(spec, rootfs=replace(spec.rootfs, is_new=False))


@pytest.mark.parametrize("security", [Security(privileged=True), UNMASKED], ids=["privileged", "unmasked"])
async def test_unusual_containers_do_without(prepared: Stage, security: Security) -> None:
    spec = await prepared.spec("sh", "-c", "echo 1 >/proc/sys/vm/swappiness && echo done", security=security)
    assert await lines_of(prepared, spec) == ["done"]


async def test_a_damaged_one_is_made_again(prepared: Stage) -> None:
    state = image_template(prepared) / "state"
    state.write_bytes(b"damaged")
    later = own(prepared)
    for _ in range(STARTS):
        assert (await later.run("echo", "hi"))[1] == b"hi\n"
    await made(lambda: state.exists() and state.stat().st_size > 100)
    assert (await later.run("echo", "hi"))[1] == b"hi\n"

# SPDX-License-Identifier: Apache-2.0
"""proa.host.process: what a started program gets, and that nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import anyio
import pytest

from proa.host import process
from proa.model.errors import ToolFailed

pytestmark = pytest.mark.anyio


async def test_output_status_and_stdin() -> None:
    done = await process.run(["sh", "-c", "cat; echo oops >&2; exit 3"], stdin=b"hello", check=False)
    assert (done.stdout, done.stderr, done.status) == (b"hello", "oops\n", 3)


async def test_large_input_and_output_come_whole() -> None:
    data = os.urandom(1 << 20)
    assert (await process.run(["cat"], stdin=data)).stdout == data


async def test_failure_names_command_and_last_words() -> None:
    with pytest.raises(ToolFailed, match="sh failed with status 4: broken") as failure:
        await process.run(["sh", "-c", "echo broken >&2; exit 4"])
    assert failure.value.status == 4


async def test_only_the_end_of_stderr_is_kept() -> None:
    done = await process.run(["sh", "-c", "yes x | head -c 100000 >&2; printf end >&2"])
    assert len(done.stderr) == process.STDERR_TAIL_BYTES
    assert done.stderr.endswith("end")


async def test_missing_program_is_a_tool_failure() -> None:
    with pytest.raises(ToolFailed) as failure:
        await process.run(["/no/such/program"])
    assert failure.value.status == 127


async def test_environment_is_built_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROA_LEAK", "1")
    done = await process.run(["/usr/bin/env"], env={"A": "b"})
    assert done.stdout == b"A=b\n"


async def test_time_out_ends_the_program() -> None:
    with pytest.raises(ToolFailed, match="did not end within"):
        await process.run(["sleep", "100"], timeout_s=0.05)


async def test_cancellation_reaps() -> None:
    before = children()
    with anyio.move_on_after(0.05) as scope:
        await process.run(["sleep", "100"])
    assert scope.cancelled_caught
    assert children() <= before, (
        "ended and reaped; other tests of this process may have children of their own"
    )


def children() -> set[str]:
    """Return the pids of this process's children, zombies included."""
    return {pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()}


async def test_descendants_that_hold_the_output_do_not_hold_the_caller() -> None:
    began = time.monotonic()
    done = await process.run(["sh", "-c", "echo early; sleep 3 & exit 0"])
    assert done.stdout == b"early\n"
    assert time.monotonic() - began < 1


async def test_signal_status_and_several_waiters() -> None:
    child = await process.spawn(["sleep", "100"])
    statuses: list[int] = []

    async def wait() -> None:
        statuses.append(await child.wait())

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        group.start_soon(wait)
        await anyio.lowlevel.checkpoint()
        child.send_signal(signal.SIGKILL)
    assert statuses == [-9, -9]
    assert await child.wait() == -9
    assert await child.stop() == -9


async def test_stop_kills_what_ignores_term() -> None:
    read, write = os.pipe()
    child = await process.spawn(["sh", "-c", "trap '' TERM; echo; while :; do sleep 1; done"], stdout=write)
    os.close(write)
    os.read(read, 1)
    os.close(read)
    assert await child.stop(grace_s=0.05) == -signal.SIGKILL


async def test_no_descriptor_is_left() -> None:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    await process.run(["true"], stdin=b"x")
    assert len(set(os.listdir("/proc/self/fd"))) <= len(before)  # noqa: PTH208

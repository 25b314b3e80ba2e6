# SPDX-License-Identifier: Apache-2.0
"""proa.host.watch: processes are pinned, and their end is noticed."""

from __future__ import annotations

import contextlib
import os
import signal

import anyio
import pytest

from proa.host import process, watch

pytestmark = pytest.mark.anyio


async def test_end_is_noticed_by_all_waiters() -> None:
    child = await process.spawn(["sleep", "100"])
    ended: list[int] = []

    async def wait() -> None:
        await watch.wait_pid_exit(child.pid)
        ended.append(1)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        group.start_soon(wait)
        await anyio.lowlevel.checkpoint()
        assert not ended
        child.send_signal(signal.SIGKILL)
    assert ended == [1, 1]
    await child.wait()
    await watch.wait_pid_exit(child.pid)


async def test_zombie_has_ended() -> None:
    child = await process.spawn(["sleep", "100"])
    handle = watch.open_process(child.pid)
    assert handle is not None
    with contextlib.closing(handle):
        assert not handle.has_ended()
        assert handle.send_signal(signal.SIGKILL)
        await handle.wait()
        assert handle.has_ended()  # not reaped yet
        await child.wait()
        assert handle.has_ended()
        assert not handle.send_signal(signal.SIGTERM)
    handle.close()


def test_another_process_of_the_same_number_is_not_taken() -> None:
    start = watch.get_start_time(os.getpid())
    assert start is not None
    handle = watch.open_process(os.getpid(), start_time=start)
    assert handle is not None
    handle.close()
    assert watch.open_process(os.getpid(), start_time=start + 1) is None
    assert watch.open_process(0) is None
    assert watch.open_process(1 << 22) is None

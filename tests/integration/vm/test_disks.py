# SPDX-License-Identifier: Apache-2.0
"""What a container deletes goes back to the host."""

from __future__ import annotations

import pytest

from proa.model.task import BlockRootfs
from tests.integration.vm.conftest import Stage, read_until

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
WRITTEN_MIB = 40


async def test_deleted_files_leave_the_disk(stage: Stage) -> None:
    script = f"""
        dd if=/dev/zero of=/big bs=1M count={WRITTEN_MIB} 2>/dev/null; sync; echo written; read go
        rm /big; sync; sync; echo deleted; read go
    """
    spec = await stage.spec("sh", "-c", script, process={"open_stdin": True})
    assert isinstance(spec.rootfs, BlockRootfs)
    task = await stage.runtime.create(spec)
    stdio = await task.attach()
    await task.start()
    await read_until(stdio, b"written\n")
    assert spec.rootfs.writable.stat().st_blocks * 512 > WRITTEN_MIB * MIB
    await stdio.send(b"\n")
    await read_until(stdio, b"deleted\n")
    assert spec.rootfs.writable.stat().st_blocks * 512 < WRITTEN_MIB * MIB // 4
    await stdio.aclose()
    await task.delete()

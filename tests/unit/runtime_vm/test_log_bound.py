# SPDX-License-Identifier: Apache-2.0
"""What a guest can make QEMU write on the host's tmpfs stays small."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from proa.model.ids import ContainerId
from proa.model.task import ExitStatus
from proa.runtime.vm import log_bound
from proa.runtime.vm.home import Home, Pid, Record
from proa.runtime.vm.log_bound import MAX_SMALL_BYTES

pytestmark = pytest.mark.anyio

RECORD = Record(
    qemu=Pid(pid=1, start_time=1),
    fs_server=None,
    memory_bytes=1,
    vcpus=1,
    capabilities=0,
    no_new_privileges=False,
    tty=False,
    open_stdin=False,
    stdin_once=False,
    cgroup="/proa/x",
)


async def test_small_files_are_cut_and_the_first_exit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the log has no bound. Files that are small, or not there, are left alone."""
    monkeypatch.setattr(log_bound, "SWEEP_S", 0.001)
    home = Home(tmp_path, ContainerId("c" * 64))
    home.create()
    flood = b"7 0 1\n" + b"9 0 2\n" * MAX_SMALL_BYTES
    home.exit_record.write_bytes(flood)
    (home.path / "qemu.log").write_bytes(b"honest\n")
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log_bound.keep_bounded, home, RECORD)
            while home.exit_record.stat().st_size > MAX_SMALL_BYTES:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    assert home.exit_record.read_bytes() == flood[:MAX_SMALL_BYTES]
    assert home.read_exit() == ExitStatus(code=7, finished_at_ns=1, oom_killed=False)
    assert (home.path / "qemu.log").read_bytes() == b"honest\n"

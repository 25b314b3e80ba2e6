# SPDX-License-Identifier: Apache-2.0
"""Keeps the log file of a VM within its bound.

QEMU appends what the guest writes to the log's port, and knows no bound. So the size is looked at once in a
while, and QEMU is given another file when the present one is full: its monitor changes the port's back end
between two writes, so no line is lost or cut. What a guest can write in a second comes on top of the bound;
while no daemon runs there is none.

Source: QEMU QMP reference, add-fd, chardev-change; proa.model.task.TaskSpec.log_max_bytes.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import anyio

from proa.model.errors import EngineError
from proa.runtime.vm.home import Home, Record
from proa.runtime.vm.monitor import greeted_monitor

log = logging.getLogger(__name__)

# What QEMU and the file server complain of, and the exit record, are on a tmpfs. An honest guest makes a few
# lines; what a hostile one makes is cut at its beginning, where the record of the exit is.
_SMALL_FILES = ("exit", "qemu.log", "fs-server.log")
MAX_SMALL_BYTES = 256 * 1024
SWEEP_S = 1.0  # a stat of one file; emulated guests write 60 MB in that time at the most


async def keep_bounded(home: Home, record: Record) -> None:
    """Look after the log, if it has a bound, and the small files, until cancelled."""
    path = Path(record.log_path)
    while True:
        await anyio.sleep(SWEEP_S)
        _cut_small_files(home)
        try:
            if record.log_max_bytes and path.stat().st_size >= record.log_max_bytes:
                with anyio.CancelScope(shield=True):
                    await _replace(home, path, record.log_chardev)
        except (EngineError, OSError) as error:
            log.warning("bounding the log %s: %s", path, error)


def _cut_small_files(home: Home) -> None:
    for name in _SMALL_FILES:
        with contextlib.suppress(OSError):
            if (home.path / name).stat().st_size > MAX_SMALL_BYTES:
                os.truncate(home.path / name, MAX_SMALL_BYTES)


async def _replace(home: Home, path: Path, chardev: str) -> None:
    new = path.with_name(f"{path.name}.tmp")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        async with greeted_monitor(home.monitor) as monitor:
            added = await monitor.execute("add-fd", {"opaque": chardev}, fd=fd)
            file = {"out": f"/dev/fdset/{added['fdset-id']}", "append": True}
            await monitor.execute(
                "chardev-change", {"id": chardev, "backend": {"type": "file", "data": file}}
            )
        new.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    finally:
        os.close(fd)

# SPDX-License-Identifier: Apache-2.0
"""Snapshots inside a machine's qcow2 disks: of a running machine with its memory, of a stopped one without.

A running QEMU makes, loads and deletes them as jobs, told over its monitor; of a stopped machine qemu-img
does, disk by disk. A snapshot is known by its tag, which all disks of the machine carry.

Source: QEMU QMP reference, snapshot-save, snapshot-load, snapshot-delete, query-jobs; qemu-img(1),
snapshot.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import msgspec

from proa.host import process
from proa.model.errors import Internal, InvalidParameter, Unavailable
from proa.runtime.vm.monitor import Arguments, MonitorError, greeted_monitor

JOB_TIMEOUT_S = 600.0  # for gigabytes of memory on a slow disk
_JOB = "proa"
_POLL_S = 0.05
_TOOL_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One snapshot.

    :ivar memory_bytes: of the machine's memory and devices in it; 0: it is of the disks alone.
    """

    name: str
    created_at_ns: int
    memory_bytes: int


# --- of a running machine ---


async def save(monitor: Path, name: str, disks: Sequence[str]) -> None:
    """Keep memory and disks; the machine stands still meanwhile. Raises Internal, Unavailable."""
    await _run_job(monitor, "snapshot-save", {"tag": name, "vmstate": disks[0], "devices": list(disks)})


async def load(monitor: Path, name: str, disks: Sequence[str]) -> None:
    """Go back. When it fails the machine stands still, its memory perhaps half replaced. Raises Internal."""
    async with greeted_monitor(monitor) as session:
        await session.execute("stop")
    await _run_job(monitor, "snapshot-load", {"tag": name, "vmstate": disks[0], "devices": list(disks)})
    async with greeted_monitor(monitor) as session:
        await session.execute("cont")


async def delete(monitor: Path, name: str, disks: Sequence[str]) -> None:
    """Forget one. Raises Internal."""
    await _run_job(monitor, "snapshot-delete", {"tag": name, "devices": list(disks)})


# --- of a stopped machine ---


async def save_disks(disks: Sequence[Path], name: str) -> None:
    """Keep the disks. On failure none has it. Raises ToolFailed."""
    done: list[Path] = []
    try:
        for disk in disks:
            await _qemu_img("-c", name, disk)
            done.append(disk)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await delete_disks(done, name)
        raise


async def load_disks(disks: Sequence[Path], name: str) -> None:
    """Go back. Raises ToolFailed."""
    for disk in disks:
        await _qemu_img("-a", name, disk)


async def delete_disks(disks: Sequence[Path], name: str) -> None:
    """Forget one; disks that do not have it are left alone. Raises ToolFailed."""
    for disk in disks:
        if any(one.name == name for one in await list_of(disk)):
            await _qemu_img("-d", name, disk)


async def list_of(disk: Path) -> list[Snapshot]:
    """Return what a disk has, oldest first, whether a QEMU has it open or not. Raises ToolFailed."""
    words: list[str | Path] = ["qemu-img", "info", "-U", "--output=json", "-f", "qcow2", disk]
    done = await process.run(words, timeout_s=_TOOL_TIMEOUT_S)
    found: list[dict[str, Any]] = msgspec.json.decode(done.stdout).get("snapshots") or []  # Any: JSON
    return [
        Snapshot(
            name=str(one["name"]),
            created_at_ns=int(one["date-sec"]) * 1_000_000_000 + int(one["date-nsec"]),
            memory_bytes=int(one["vm-state-size"]),
        )
        for one in found
    ]


# --- machinery ---


async def _qemu_img(flag: str, name: str, disk: Path) -> None:
    await process.run(["qemu-img", "snapshot", flag, name, disk], timeout_s=_TOOL_TIMEOUT_S)


async def _run_job(path: Path, command: str, arguments: Arguments) -> None:
    """Run a job to its end. Raises Internal with QEMU's reason, Unavailable when it does not end."""
    async with greeted_monitor(path) as session:
        with contextlib.suppress(MonitorError):  # one that a daemon was killed over
            await session.execute("job-dismiss", {"id": _JOB})
        await session.execute(command, {"job-id": _JOB, **arguments})
        with anyio.move_on_after(JOB_TIMEOUT_S):
            while True:
                jobs = [one for one in await session.execute("query-jobs") if one.get("id") == _JOB]
                if not jobs or jobs[0]["status"] == "concluded":
                    break
                await anyio.sleep(_POLL_S)
            await session.execute("job-dismiss", {"id": _JOB})
            if jobs and jobs[0].get("error"):
                raise Internal(f"QEMU: {command}: {jobs[0]['error']}")
            return
    raise Unavailable(f"QEMU did not finish {command} within {JOB_TIMEOUT_S:g} s")


def check_disks(disks: Sequence[str]) -> None:
    """Raise InvalidParameter for a machine that has nothing to keep a snapshot in."""
    if not disks:
        raise InvalidParameter("the machine has no disk, in which a snapshot would be kept")

# SPDX-License-Identifier: Apache-2.0
"""Copies the disks of a machine that runs, as they all were at one moment, while it goes on.

QEMU does it: a backup job for each disk, all begun in one transaction; what the guest overwrites meanwhile is
copied first. The files are opened here and passed as descriptors, since QEMU may open nothing. Snapshots
inside a disk are not copied. A job that a daemon was killed over ends by itself, in a file that nobody has.

Source: QEMU QMP reference, add-fd, query-chardev, blockdev-add, transaction, blockdev-backup, query-jobs,
job-dismiss, blockdev-del; QEMU docs/interop/live-block-operations.rst.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio

from proa.machines import images
from proa.model.errors import EngineError, Internal, Unavailable
from proa.runtime.vm.monitor import MonitorError, greeted_monitor

COPY_TIMEOUT_S = 3600.0  # for tens of gigabytes on a slow disk
_POLL_S = (0.05, 0.1, 0.2, 0.5)  # the last repeats
_CANCEL_TIMEOUT_S = 10.0

Frozen = Callable[[], AbstractAsyncContextManager[None]]


async def copy_disks(monitor: Path, targets: Mapping[str, tuple[int, Path]], *, frozen: Frozen) -> None:
    """Copy disks to new qcow2 files.

    :param targets: by the name of the disk: its size in bytes, and the file to make.
    :param frozen: a span in which the guest's file systems are at rest, if they can be.
    :raises Internal: QEMU failed, with its reason; the files may be there, half-written.
    :raises Unavailable: it took too long.
    """
    mark = f"copy-{secrets.token_hex(4)}"
    jobs = {name: f"{mark}-{number}" for number, name in enumerate(targets)}
    async with _opened(monitor, {jobs[name]: target for name, target in targets.items()}):
        actions = [
            {
                "type": "blockdev-backup",
                "data": {
                    "job-id": job,
                    "device": name,
                    "target": job,
                    "sync": "full",
                    "auto-dismiss": False,
                },
            }
            for name, job in jobs.items()
        ]
        together = {"completion-mode": "grouped"} if len(actions) > 1 else {}
        try:
            async with frozen(), greeted_monitor(monitor) as session:
                await session.execute("transaction", {"actions": actions, "properties": together})
            with anyio.fail_after(COPY_TIMEOUT_S):
                await _wait(monitor, list(jobs.values()))
        except TimeoutError:
            raise Unavailable(f"QEMU did not copy the disks within {COPY_TIMEOUT_S:g} s") from None
        finally:
            with anyio.CancelScope(shield=True):
                await _dismiss(monitor, list(jobs.values()))


async def has_agent(monitor: Path) -> bool:
    """Whether somebody in the guest listens where its agent would: else asking it takes seconds."""
    async with greeted_monitor(monitor) as session:
        lines = await session.execute("query-chardev")
    return any(one["label"] == "agent" and one["frontend-open"] for one in lines)


@asynccontextmanager
async def _opened(monitor: Path, nodes: Mapping[str, tuple[int, Path]]) -> AsyncIterator[None]:
    """Let QEMU have new files as block nodes, for the span of the block."""
    added: list[str] = []
    try:
        for node, (size, path) in nodes.items():
            await images.create_blank(path, size)
            await _open_node(monitor, node, path)
            added.append(node)
        yield
    finally:
        with anyio.CancelScope(shield=True), contextlib.suppress(EngineError):
            async with greeted_monitor(monitor) as session:
                for node in added:
                    with contextlib.suppress(MonitorError):
                        await session.execute("blockdev-del", {"node-name": node})


async def _open_node(monitor: Path, node: str, path: Path) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        async with greeted_monitor(monitor) as session:
            fdset = (await session.execute("add-fd", fd=fd))["fdset-id"]
            try:
                file = {"driver": "file", "filename": f"/dev/fdset/{fdset}"}
                await session.execute("blockdev-add", {"driver": "qcow2", "node-name": node, "file": file})
            finally:
                await session.execute("remove-fd", {"fdset-id": fdset})
    finally:
        os.close(fd)


async def _wait(monitor: Path, jobs: list[str]) -> None:
    """Return when all have ended well. The monitor is free between two looks. Raises Internal."""
    for round_ in range(1 << 62):
        async with greeted_monitor(monitor) as session:
            found = {one["id"]: one for one in await session.execute("query-jobs")}
        ours = [found.get(job, {"status": "concluded", "error": "it is gone"}) for job in jobs]
        for one in ours:
            if one.get("error"):
                raise Internal(f"QEMU: copying a disk: {one['error']}")
        if all(one["status"] == "concluded" for one in ours):
            return
        await anyio.sleep(_POLL_S[min(round_, len(_POLL_S) - 1)])


async def _dismiss(monitor: Path, jobs: list[str]) -> None:
    """End the jobs and forget them. Never raises."""
    with contextlib.suppress(EngineError), anyio.move_on_after(_CANCEL_TIMEOUT_S):
        left = set(jobs)
        while left:
            async with greeted_monitor(monitor) as session:
                present = {one["id"]: one["status"] for one in await session.execute("query-jobs")}
                left &= set(present)
                for job in left:
                    command = "job-dismiss" if present[job] == "concluded" else "job-cancel"
                    with contextlib.suppress(MonitorError):
                        await session.execute(command, {"id": job})
            await anyio.sleep(_POLL_S[0] if left else 0)

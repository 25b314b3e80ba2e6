# SPDX-License-Identifier: Apache-2.0
"""Disks that come and go while a machine runs, in the PCI Express ports that every machine has for that.

The file is opened here and passed as a descriptor, since QEMU may open nothing. What comes this way has the
id of its place (``hot0``…), so it is known from QEMU alone which disks can go again. A guest is asked to let
go, and may not: then the disk stays, or goes later.

Source: QEMU QMP reference, add-fd, blockdev-add, device_add, device_del, query-block, qom-list; QEMU
docs/pcie.txt, 5.3 Hot-plug.
"""

from __future__ import annotations

import os
from pathlib import Path

import anyio

from proa.machines.plan import HOT_PORTS, hot_device, hot_port
from proa.model.errors import Unavailable, WrongState
from proa.runtime.vm.monitor import Monitor, MonitorError, greeted_monitor

LET_GO_TIMEOUT_S = 30.0  # a guest that listens needs a second, under emulation some
_ASKED = "already in the process of unplug"
_POLL_S = (0.05, 0.1, 0.2, 0.5)  # the last repeats


async def plug(monitor: Path, name: str, path: Path) -> None:
    """Give a running machine a disk (qcow2). Raises WrongState when it has no place left, MonitorError."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        async with greeted_monitor(monitor) as session:
            place = await _free_place(session)
            fdset = (await session.execute("add-fd", fd=fd))["fdset-id"]
            try:
                file = {"driver": "file", "filename": f"/dev/fdset/{fdset}"}
                node = {"driver": "qcow2", "node-name": name, "discard": "unmap", "file": file}
                await session.execute("blockdev-add", node)
            finally:
                await session.execute("remove-fd", {"fdset-id": fdset})
            device = {
                "driver": "virtio-blk-pci",
                "id": hot_device(place),
                "bus": hot_port(place),
                "drive": name,
                "serial": name,
            }
            try:
                await session.execute("device_add", device)
            except MonitorError:
                await session.execute("blockdev-del", {"node-name": name})
                raise
    finally:
        os.close(fd)


async def unplug(monitor: Path, name: str) -> None:
    """Take a disk from a running machine, if it is there; the guest is asked to let go of it.

    :raises WrongState: it was there at the start, and can go only when the machine is stopped.
    :raises Unavailable: the guest does not let go; the disk is still there.
    """
    async with greeted_monitor(monitor) as session:
        device = await _device_of(session, name)
        if device is not None:
            if device not in _places():
                raise WrongState(
                    f"disk {name} was there when the machine was started: it can be removed only when stopped"
                )
            try:
                await session.execute("device_del", {"id": device})
            except MonitorError as error:
                if _ASKED not in error.message:  # else it has been asked before, and may let go now
                    raise
    with anyio.move_on_after(LET_GO_TIMEOUT_S):
        for round_ in range(1 << 62):
            async with greeted_monitor(monitor) as session:
                if await _device_of(session, name) is None:
                    if name in {one["node-name"] for one in await _nodes(session)}:
                        await session.execute("blockdev-del", {"node-name": name})
                    return
            await anyio.sleep(_POLL_S[min(round_, len(_POLL_S) - 1)])
    raise Unavailable(
        f"the guest does not let go of disk {name} within {LET_GO_TIMEOUT_S:g} s: it is still there "
        "(the guest may be starting, or have no PCI hot-plug: stop the machine first)"
    )


async def has_plugged(monitor: Path) -> bool:
    """Whether a disk has come while the machine runs."""
    async with greeted_monitor(monitor) as session:
        return bool(_places() & await _devices(session))


def _places() -> set[str]:
    return {hot_device(place) for place in range(HOT_PORTS)}


async def _free_place(session: Monitor) -> int:
    present = await _devices(session)
    if not any(hot_port(place) in present for place in range(HOT_PORTS)):
        raise WrongState(
            "the machine was started by an earlier proa, without places for disks: stop it first"
        )
    for place in range(HOT_PORTS):
        if hot_device(place) not in present:
            return place
    raise WrongState(f"{HOT_PORTS} disks have come since the machine was started: stop it to add more")


async def _devices(session: Monitor) -> set[str]:
    """Return the ids of the devices that have one."""
    return {one["name"] for one in await session.execute("qom-list", {"path": "/machine/peripheral"})}


async def _device_of(session: Monitor, name: str) -> str | None:
    """Return the id of the device that a disk is in, "" when it has none; None when it is in none."""
    for one in await session.execute("query-block"):
        if one.get("inserted", {}).get("node-name") == name:
            path = str(one.get("qdev", ""))
            return path.removeprefix("/machine/peripheral/").partition("/")[0]
    return None


async def _nodes(session: Monitor) -> list[dict[str, str]]:
    found: list[dict[str, str]] = await session.execute("query-named-block-nodes", {"flat": True})
    return found

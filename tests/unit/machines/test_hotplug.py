# SPDX-License-Identifier: Apache-2.0
"""Disks of a machine that runs, with a QEMU that is played."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proa.machines import hotplug
from proa.model.errors import Unavailable, WrongState
from proa.runtime.vm.monitor import MonitorError

pytestmark = pytest.mark.anyio
MONITOR = Path("/nowhere")


class PlayedQemu:
    """What a few commands do to devices and block nodes."""

    def __init__(self, ports: int = 4) -> None:
        self.devices = {f"port{place}": "" for place in range(ports)}
        self.nodes: set[str] = set()
        self.anonymous: set[str] = set()
        self.lets_go = True
        self.refuses = ""
        self.fdsets = 0

    async def execute(self, command: str, arguments: dict[str, Any] | None = None, *, fd: int = -1) -> Any:
        wanted = arguments or {}  # Any: JSON
        if command == self.refuses:
            raise MonitorError(f"QEMU: {command}: no")
        match command:
            case "qom-list":
                return [{"name": name} for name in self.devices]
            case "query-block":
                found = [
                    {"qdev": f"/machine/peripheral/{name}/virtio-backend", "inserted": {"node-name": node}}
                    for name, node in self.devices.items()
                    if node
                ]
                anonymous = "/machine/peripheral-anon/device[2]/virtio-backend"
                return found + [
                    {"qdev": anonymous, "inserted": {"node-name": node}} for node in self.anonymous
                ]
            case "query-named-block-nodes":
                return [{"node-name": node} for node in self.nodes]
            case "add-fd":
                self.fdsets += 1
                return {"fdset-id": 1}
            case "remove-fd":
                self.fdsets -= 1
            case "blockdev-add":
                self.nodes.add(wanted["node-name"])
            case "blockdev-del":
                self.nodes.remove(wanted["node-name"])
            case "device_add":
                self.devices[wanted["id"]] = wanted["drive"]
            case "device_del" if self.lets_go:
                del self.devices[wanted["id"]]
            case "device_del":
                self.lets_go = True
                raise MonitorError("QEMU: Device hot0 is already in the process of unplug")
        return None


@pytest.fixture
def qemu(monkeypatch: pytest.MonkeyPatch) -> PlayedQemu:
    played = PlayedQemu()

    @asynccontextmanager
    async def greeted(_: Path) -> AsyncIterator[PlayedQemu]:
        yield played

    monkeypatch.setattr(hotplug, "greeted_monitor", greeted)
    return played


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(b"")
    return path


async def test_there_and_gone(qemu: PlayedQemu, disk: Path) -> None:
    for name in ("a", "b", "c", "d"):
        assert await hotplug.has_plugged(MONITOR) == (name != "a")
        await hotplug.plug(MONITOR, name, disk)
    assert (qemu.devices["hot3"], qemu.fdsets) == ("d", 0)
    with pytest.raises(WrongState, match="stop it to add more"):
        await hotplug.plug(MONITOR, "e", disk)
    await hotplug.unplug(MONITOR, "b")
    assert qemu.nodes == {"a", "c", "d"}
    await hotplug.plug(MONITOR, "e", disk)
    assert qemu.devices["hot1"] == "e"


async def test_one_that_never_came_is_gone(qemu: PlayedQemu) -> None:
    await hotplug.unplug(MONITOR, "a")
    qemu.nodes.add("b")  # a daemon was killed between two steps
    await hotplug.unplug(MONITOR, "b")
    assert not qemu.nodes


async def test_one_that_was_there_stays(qemu: PlayedQemu) -> None:
    qemu.anonymous.add("disk0")
    with pytest.raises(WrongState, match="only when stopped"):
        await hotplug.unplug(MONITOR, "disk0")


async def test_a_guest_that_does_not_let_go(
    qemu: PlayedQemu, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hotplug, "LET_GO_TIMEOUT_S", 0.01)
    await hotplug.plug(MONITOR, "a", disk)
    qemu.lets_go = False
    with pytest.raises(Unavailable, match="does not let go"):
        await hotplug.unplug(MONITOR, "a")
    await hotplug.unplug(MONITOR, "a")


@pytest.mark.parametrize("command", ["blockdev-add", "device_add"])
async def test_what_qemu_refuses_is_not_there(qemu: PlayedQemu, disk: Path, command: str) -> None:
    qemu.refuses = command
    with pytest.raises(MonitorError):
        await hotplug.plug(MONITOR, "a", disk)
    assert (qemu.nodes, qemu.fdsets) == (set(), 0)


async def test_an_old_machine_has_no_places(qemu: PlayedQemu, disk: Path) -> None:
    qemu.devices.clear()
    with pytest.raises(WrongState, match="stop it first"):
        await hotplug.plug(MONITOR, "a", disk)

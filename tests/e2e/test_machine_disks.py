# SPDX-License-Identifier: Apache-2.0
"""Disks that come to a running machine, and go."""

from __future__ import annotations

import signal
from pathlib import Path

from proa.machines.plan import HOT_PORTS
from tests.e2e.test_machine_copies import machine
from tests.e2e.test_machines import LINUX, create, inspect, type_and_read, wait_for_console
from tests.support.daemon import Daemon

__all__ = ["machine"]  # a fixture


def wait_for_disk(daemon: Daemon, machine: str, disk: str, *, there: bool) -> None:
    condition = f"[ -e /sys/block/{disk} ]"
    if not there:
        condition = f"! {condition}"
    typed = f"until {condition}; do sleep 1; done; echo seen {disk} ''\n"
    assert f"seen {disk} \r" in type_and_read(daemon, machine, typed, f"seen {disk} \r")


def test_disks_come_and_go(daemon: Daemon, machine: str, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(b"brought along\n".ljust(1 << 20, b"\0"))
    create(daemon, machine, *LINUX, "--network", "none", "--disk", "4m", "--start")
    wait_for_console(daemon, machine, "guest: up")
    assert daemon.proa("vm", "disk", "add", machine, f"data={image}").out.strip() == "data"
    wait_for_disk(daemon, machine, "vdb", there=True)
    assert "data brought along" in type_and_read(
        daemon, machine, "echo $(cat /sys/block/vdb/serial) $(head -n1 /dev/vdb)\n", "data brought along"
    )
    daemon.proa("vm", "disk", "resize", machine, "data", "8m")
    more = daemon.proa("vm", "snapshot", "create", machine, "s", check=False)
    assert "came while it runs" in more.err
    daemon.proa("vm", "fork", machine, f"{machine}-f")
    assert [disk["Name"] for disk in inspect(daemon, f"{machine}-f")["Disks"]] == ["disk0", "data"]
    for _ in range(1, HOT_PORTS):
        daemon.proa("vm", "disk", "add", machine, "1m")
    assert "stop it to add more" in daemon.proa("vm", "disk", "add", machine, "1m", check=False).err
    names = [disk["Name"] for disk in inspect(daemon, machine)["Disks"]]
    assert len(names) == 1 + HOT_PORTS
    assert len(list((daemon.data_root / "machines" / inspect(daemon, machine)["Id"]).glob("*.qcow2"))) == len(
        names
    )

    daemon.restart(signal.SIGKILL)
    daemon.proa("vm", "disk", "rm", machine, "data")
    wait_for_disk(daemon, machine, "vdb", there=False)
    assert "only when stopped" in daemon.proa("vm", "disk", "rm", machine, "disk0", check=False).err
    assert daemon.proa("vm", "disk", "add", machine, "data=2m").out.strip() == "data"
    wait_for_disk(daemon, machine, "vdb", there=True)
    daemon.proa("vm", "pause", machine)
    assert "paused" in daemon.proa("vm", "disk", "rm", machine, "data", check=False).err
    daemon.proa("vm", "kill", machine)
    daemon.proa("vm", "start", machine)  # with all that came
    names = [disk["Name"] for disk in inspect(daemon, machine)["Disks"]]
    for name in names:
        wait_for_console(daemon, machine, f"guest: disk {name} of")

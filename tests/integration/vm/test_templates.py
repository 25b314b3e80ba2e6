# SPDX-License-Identifier: Apache-2.0
"""The store of templates, the probe of the accelerator, and a guest's network."""

from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface

import anyio
import pytest

from proa.host import process, watch
from proa.host.tap import create_tap
from proa.model.errors import Unavailable
from proa.model.ids import NetworkId
from proa.model.task import Interface, NetworkAttachment
from proa.runtime.vm.accel import guest_of, probe_accelerator
from proa.runtime.vm.machine import MIB, Shape
from proa.runtime.vm.template import Templates
from proa.storage.disks import Disks
from tests.integration.vm.conftest import LIB, Stage, processes_with

pytestmark = pytest.mark.anyio

SHAPE = Shape(memory_bytes=128 * MIB, vcpus=1, nics=0)


async def test_one_maker_while_others_wait_and_damage_is_noticed(stage: Stage) -> None:
    accelerator = stage.settings["accelerator"]
    guest = guest_of(LIB, None, qemu=accelerator.qemu, accelerator=accelerator.name)
    root = stage.base / "templates"
    store = Templates(root, guest, accelerator.qemu_version)
    blank = await Disks(stage.base, size_bytes=256 * MIB).ensure_blank()
    half = root / ".making-of-a-daemon-that-was-killed"
    half.mkdir(parents=True)
    orphan = process.spawn_now(["sleep", "1000"])
    (half / "pid").write_text(f"{orphan.pid} {watch.get_start_time(orphan.pid)}\n")
    (root / "older").mkdir()
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(store.ensure, SHAPE, blank)
    assert await orphan.wait() == -9
    template = await store.ensure(SHAPE, blank)
    assert [each.name for each in root.iterdir()] == [template.memory_file.parent.name]
    assert sorted(each.name for each in template.memory_file.parent.iterdir()) == [
        "mem",
        "meta.json",
        "state",
    ]
    assert processes_with(str(root)) == []

    again = Templates(root, guest, accelerator.qemu_version)
    assert await again.ensure(SHAPE, blank) == template
    inode = template.state_file.stat().st_ino
    template.state_file.write_bytes(b"damaged")
    remade = await Templates(root, guest, accelerator.qemu_version).ensure(SHAPE, blank)
    assert remade.state_file.stat().st_ino != inode or remade.state_file.stat().st_size > 1000

    # Written to by whoever had it open: the same size, another page. The store that knows it notices, too.
    later = Templates(root, guest, accelerator.qemu_version)
    known = await later.ensure(SHAPE, blank)
    os.utime(known.memory_file.parent)
    assert await later.ensure(SHAPE, blank) == known
    with known.memory_file.open("r+b") as memory:
        memory.seek(4096)
        memory.write(b"evil" * 1024)
    remade = await later.ensure(SHAPE, blank)
    with remade.memory_file.open("rb") as memory:
        memory.seek(4096)
        assert memory.read(4) != b"evil"


async def test_a_guest_that_does_not_boot(stage: Stage) -> None:
    accelerator = stage.settings["accelerator"]
    guest = guest_of(LIB, None, qemu=accelerator.qemu, accelerator=accelerator.name)
    broken = stage.base / "initramfs"
    broken.write_bytes(b"nothing")
    root = stage.base / "templates"
    store = Templates(root, replace(guest, initramfs=broken), accelerator.qemu_version)
    blank = await Disks(stage.base, size_bytes=256 * MIB).ensure_blank()
    with pytest.raises(Unavailable, match="panic"):
        await store.ensure(SHAPE, blank)
    assert list(root.iterdir()) == []
    with pytest.raises(Unavailable, match="make setup"):
        guest_of(stage.base, None, qemu=accelerator.qemu, accelerator="tcg")


async def test_the_verdict_on_kvm_is_kept(stage: Stage) -> None:
    first = await probe_accelerator(stage.base, lib=LIB, time_limit_s=3)
    assert first.name in ("kvm", "tcg")
    assert first.reason
    with anyio.fail_after(2):
        assert await probe_accelerator(stage.base, lib=LIB) == first


async def test_network(stage: Stage) -> None:
    tap, host, guest = "pvmt0", "198.51.100.1", "198.51.100.2"
    create_tap(tap)
    try:
        await process.run(["ip", "addr", "add", f"{host}/30", "dev", tap], check=True)
        await process.run(["ip", "link", "set", tap, "up"], check=True)
        interface = Interface(
            name="eth0",
            device=tap,
            network_id=NetworkId("n"),
            mac="02:42:c6:33:64:02",
            address=IPv4Interface(f"{guest}/30"),
            gateway=IPv4Address(host),
        )
        code, out, err = await stage.run(
            "sh",
            "-c",
            f"ping -c 1 -W 5 {host} >&2; cat /sys/class/net/eth0/address; ip route",
            network=NetworkAttachment(interfaces=(interface,)),
        )
        assert code == 0, err
        assert out.splitlines()[0] == b"02:42:c6:33:64:02"
        assert f"default via {host} dev eth0".encode() in out
        assert b"1 packets received" in err
    finally:
        await process.run(["ip", "link", "del", tap], check=False)

# SPDX-License-Identifier: Apache-2.0
"""The words QEMU gets for a full machine, by architecture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from proa.machines.plan import BOARDS, HOT_PORTS, Drive, Firmware, Nic, Plan, Sockets, render
from proa.runtime.vm.machine import RunAs

PLAN = Plan(
    qemu=Path("/usr/bin/qemu"),
    identifier="0123456789abcdef0123456789abcdef" * 2,
    name="a,b",
    architecture="x86_64",
    accelerator="tcg",
    cpus=2,
    memory_bytes=512 << 20,
    sockets=Sockets(monitor=3, events=4, console=5, agent=6),
    drives=(
        Drive(name="disk0", path=Path("/d/a,b.qcow2")),
        Drive(name="seed", path=Path("/d/seed"), raw=True, read_only=True),
    ),
    cdrom=Path("/i.iso"),
    nics=(Nic(tap="tap7", mac="52:54:00:00:00:01"),),
    run_as=RunAs(uid=1234, root=Path("/run/m"), has_run_with=False),
)


def values(words: list[str], option: str) -> list[str]:
    return [words[index + 1] for index, word in enumerate(words) if word == option]


def test_a_pc() -> None:
    words = render(PLAN)
    assert words[0] == "/usr/bin/qemu"
    assert values(words, "-name") == ["a,,b"]
    assert values(words, "-uuid") == ["01234567-89ab-cdef-0123-456789abcdef"]
    assert values(words, "-machine") == ["q35,vmport=off"]
    assert values(words, "-cpu") == ["max"]
    assert values(words, "-m") == ["512M"]
    assert values(words, "-mon") == ["chardev=monitor,mode=control", "chardev=events,mode=control"]
    assert values(words, "-vnc") == ["127.0.0.1:0,to=1000,password=on"]
    assert values(words, "-netdev") == ["tap,id=net0,ifname=tap7,script=no,downscript=no,vnet_hdr=on"]


def test_disks_are_named_formats_and_boot_in_order() -> None:
    words = render(PLAN)
    disk, seed, cdrom = values(words, "-blockdev")
    assert disk.startswith("driver=qcow2,node-name=disk0,read-only=off,discard=unmap,")
    assert disk.endswith("file.filename=/d/a,,b.qcow2")
    assert seed.startswith("driver=raw,node-name=seed,read-only=on,")
    assert cdrom.endswith("file.filename=/i.iso")
    devices = values(words, "-device")
    assert "virtio-blk-pci,drive=disk0,serial=disk0,bootindex=1" in devices
    assert "ide-cd,bus=ide.0,drive=cdrom,bootindex=3" in devices


def test_it_is_confined() -> None:
    words = render(PLAN)
    assert values(words, "-sandbox") == [
        "on,obsolete=deny,elevateprivileges=allow,spawn=deny,resourcecontrol=deny"
    ]
    assert values(words, "-runas") == ["1234:1234"]
    assert values(words, "-chroot") == ["/run/m"]
    words = render(replace(PLAN, run_as=None))
    assert "elevateprivileges=deny" in values(words, "-sandbox")[0]
    assert "-runas" not in words


def test_hardware_runs_the_hosts_processor() -> None:
    words = render(replace(PLAN, accelerator="kvm"))
    assert (values(words, "-accel"), values(words, "-cpu")) == (["kvm"], ["host"])


def test_a_headless_machine_has_no_screen() -> None:
    words = render(replace(PLAN, headless=True))
    assert values(words, "-machine") == ["q35,vmport=off,graphics=off"]
    assert "-vnc" not in words
    assert "-vga" not in words


def test_a_kernel() -> None:
    words = render(replace(PLAN, kernel=Path("/k"), initrd=Path("/i"), kernel_arguments="a=1,2 b"))
    assert (values(words, "-kernel"), values(words, "-initrd")) == (["/k"], ["/i"])
    assert values(words, "-append") == ["a=1,2 b"]


def test_secure_boot_has_two_flash_chips() -> None:
    firmware = Firmware(code=Path("/c"), variables=Path("/v"), secure=True)
    words = render(replace(PLAN, firmware=firmware))
    assert values(words, "-machine") == ["q35,vmport=off,smm=on"]
    assert values(words, "-drive") == [
        "if=pflash,format=raw,unit=0,file=/c,readonly=on",
        "if=pflash,format=raw,unit=1,file=/v",
    ]


def test_other_architectures() -> None:
    for name, board in BOARDS.items():
        words = render(replace(PLAN, architecture=name, firmware=Firmware(image=Path("/b"))))
        assert values(words, "-machine") == [board.machine]
        assert values(words, "-bios") == ["/b"]
        assert any(word.startswith(board.cdrom[-1]) for word in words)


def test_a_tpm() -> None:
    sockets = replace(PLAN.sockets, tpm=7)
    for name, device in (("x86_64", "tpm-crb,tpmdev=tpm0"), ("aarch64", "tpm-tis-device,tpmdev=tpm0")):
        words = render(replace(PLAN, architecture=name, sockets=sockets))
        assert "socket,id=tpm,fd=7" in values(words, "-chardev")
        assert values(words, "-tpmdev") == ["emulator,id=tpm0,chardev=tpm"]
        assert device in values(words, "-device")


def test_places_for_disks_that_come_later() -> None:
    for name, slot in (("x86_64", "0x1e"), ("aarch64", "0x1f"), ("riscv64", "0x1f")):
        words = values(render(replace(PLAN, architecture=name)), "-device")
        ports = [word for word in words if word.startswith("pcie-root-port,")]
        assert len(ports) == HOT_PORTS
        assert ports[1].startswith("pcie-root-port,id=port1,chassis=2,port=1,bus=pcie.0,")
        assert f"addr={slot}.1" in ports[1]

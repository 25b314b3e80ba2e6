# SPDX-License-Identifier: Apache-2.0
"""The words QEMU gets: golden lists of a template and of a clone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from proa.runtime.vm.cmdline import option, render
from proa.runtime.vm.machine import Boot, Disk, Incoming, Machine, Ports, RunAs, Shape, Standing
from proa.runtime.vm.nics import SPARES

SHAPE = Shape(memory_bytes=256 << 20, vcpus=2, nics=1)
DEVICES = [
    "virtio-serial-device,id=serial,max_ports=5",
    "virtserialport,bus=serial.0,nr=1,chardev=control,name=proa.control",
    "virtserialport,bus=serial.0,nr=2,chardev=log,name=proa.log",
    "virtserialport,bus=serial.0,nr=3,chardev=exit,name=proa.exit",
    "virtserialport,bus=serial.0,nr=4,chardev=fs,name=proa.fs",
    "virtio-blk-device,id=layers,drive=layers-node",
    "virtio-blk-device,id=new,drive=new-node",
    "virtio-blk-device,id=kept,drive=kept-node",
    "virtio-net-device,id=net0-nic,netdev=net0,mac=02:70:72:6f:00:00",
    *(f"virtio-net-device,id=spare{n}-nic,netdev=spare{n},mac=02:70:72:6f:01:0{n}" for n in range(SPARES)),
]
HUBS = [f"hubport,id=spare{n},hubid={n}" for n in range(SPARES)]


def template() -> Machine:
    return Machine(
        qemu=Path("/usr/bin/qemu"),
        name="t",
        accelerator="tcg",
        shape=SHAPE,
        memory_file=Path("/t/mem"),
        begins=Boot(kernel=Path("/k"), initramfs=Path("/i"), arguments="a=1,2 quiet"),
        ports=Ports(monitor_fd=3, control_fd=4, console_fd=5),
        is_template=True,
        new=Disk(path=Path("/t/new")),
        taps=("tap%d",),
    )


def clone() -> Machine:
    return Machine(
        qemu=Path("/usr/bin/qemu"),
        name="c,1",
        accelerator="kvm",
        shape=SHAPE,
        memory_file=Path("/t,1/mem"),
        begins=Incoming(state_fd=9),
        ports=Ports(
            monitor_fd=3, control_fd=4, console_fd=5, fs_fd=6, log=Path("/l,og"), exit_record=Path("/x/exit")
        ),
        layers=Disk(path=Path("/x/layers.vmdk"), is_vmdk=True, read_only=True),
        kept=Disk(path=Path("/w.ext4")),
        taps=("tap-a",),
        run_as=RunAs(uid=4711, root=Path("/h,1"), has_run_with=False),
    )


def values(words: list[str], name: str) -> list[str]:
    return [words[index + 1] for index, word in enumerate(words) if word == name]


def test_a_template() -> None:
    words = render(template())
    assert words[0] == "/usr/bin/qemu"
    assert values(words, "-append") == ["a=1,2 quiet"]
    assert values(words, "-device") == DEVICES
    assert values(words, "-object") == [
        "memory-backend-file,id=memory,size=268435456,mem-path=/t/mem,share=on",
    ]
    assert values(words, "-accel") == ["tcg,thread=multi,tb-size=32"]
    assert values(words, "-blockdev") == [
        "driver=null-co,node-name=layers-node,size=1099511627776,read-zeroes=on",
        "driver=raw,node-name=new-node,read-only=off,discard=unmap,file.driver=file,file.filename=/t/new",
        "driver=null-co,node-name=kept-node,size=1099511627776,read-zeroes=on",
    ]
    assert values(words, "-chardev") == [
        "socket,id=monitor,fd=3,server=on,wait=off",
        "socket,id=console,fd=5,server=on,wait=off",
        "socket,id=control,fd=4,server=on,wait=off",
        "null,id=log",
        "null,id=exit",
        "null,id=fs",
    ]
    assert "-incoming" not in words
    assert "-runas" not in words
    assert values(words, "-sandbox") == [
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    ]


def test_a_clone() -> None:
    words = render(clone())
    assert values(words, "-device") == DEVICES
    assert values(words, "-name") == ["c,,1"]
    assert values(words, "-accel") == ["kvm"]
    assert values(words, "-object") == [
        "memory-backend-file,id=memory,size=268435456,mem-path=/t,,1/mem,share=off",
    ]
    assert values(words, "-incoming") == ["defer"]
    assert "-kernel" not in words
    assert values(words, "-runas") == ["4711:4711"]
    assert values(words, "-chroot") == ["/h,1"]
    newer = RunAs(uid=4711, root=Path("/h,1"), has_run_with=True)
    assert values(render(replace(clone(), run_as=newer)), "-run-with") == ["chroot=/h,,1"]
    assert values(words, "-netdev") == ["tap,id=net0,ifname=tap-a,script=no,downscript=no,vnet_hdr=on", *HUBS]
    assert values(words, "-blockdev") == [
        "driver=vmdk,node-name=layers-node,read-only=on,discard=ignore,"
        "file.driver=file,file.filename=/x/layers.vmdk",
        "driver=null-co,node-name=new-node,size=1099511627776,read-zeroes=on",
        "driver=raw,node-name=kept-node,read-only=off,discard=unmap,file.driver=file,file.filename=/w.ext4",
    ]
    assert values(words, "-chardev")[3:] == [
        "file,id=log,path=/l,,og,append=on",
        "file,id=exit,path=/x/exit,append=on",
        "socket,id=fs,fd=6",
    ]


def test_commas_are_doubled_once() -> None:
    assert option("file", path="a,b,,c", id="x") == "file,path=a,,b,,,,c,id=x"


def test_a_tap_may_be_inherited() -> None:
    words = render(replace(clone(), taps=(7,)))
    assert values(words, "-netdev") == ["tap,id=net0,fd=7", *HUBS]


def test_seats_have_ports_disks_and_a_card_each_and_nothing_behind_them() -> None:
    ports = Ports(monitor_fd=3, control_fd=4, console_fd=5, seat_fds=(8, 9))
    shape = replace(SHAPE, nics=2, seats=2)
    words = render(replace(clone(), shape=shape, ports=ports, taps=(6, 7)))
    assert values(words, "-device") == [
        "virtio-serial-device,id=serial,max_ports=9",
        *(
            f"virtserialport,bus=serial.0,nr={4 * seat + nr},chardev={port}-{seat},name=proa.{port}.{seat}"
            for seat in (0, 1)
            for nr, port in enumerate(("control", "log", "exit", "fs"), 1)
        ),
        "virtio-blk-device,id=layers-0,drive=layers-0-node",
        "virtio-blk-device,id=written-0,drive=written-0-node",
        "virtio-blk-device,id=layers-1,drive=layers-1-node",
        "virtio-blk-device,id=written-1,drive=written-1-node",
        "virtio-net-device,id=net0-nic,netdev=net0,mac=02:70:72:6f:00:00",
        "virtio-net-device,id=net1-nic,netdev=net1,mac=02:70:72:6f:00:01",
    ]
    assert "null,id=log-1" in values(words, "-chardev")
    assert "socket,id=control-1,fd=9,server=on,wait=off" in values(words, "-chardev")
    assert not any("file.filename" in node for node in values(words, "-blockdev"))


def test_a_copy_waits_for_the_state_of_its_devices_alone() -> None:
    words = render(replace(clone(), begins=Standing(), memory_file=Path("/proc/self/fd/9")))
    assert values(words, "-device") == DEVICES
    assert values(words, "-incoming") == ["defer"]
    assert "-S" in words
    assert "migration.send-configuration=off" in values(words, "-global")
    assert values(words, "-M")[0].endswith(",suppress-vmdesc=on")

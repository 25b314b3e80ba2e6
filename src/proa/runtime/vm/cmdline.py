# SPDX-License-Identifier: Apache-2.0
"""Turns the plan of a machine into the words of a QEMU command line, one small renderer per device.

The order of the devices is part of what a template and its clones must have in common. A comma inside a
value is doubled, which is QEMU's own quoting; there is no shell.

Source: QEMU invocation (qemu-system-x86_64(1)); "microvm" machine; ``-blockdev`` options in QAPI.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from proa.runtime.vm.machine import (
    MIB,
    PLACEHOLDER_BYTES,
    TB_CACHE_MIB,
    Disk,
    Incoming,
    Machine,
    Ports,
    RunAs,
    Standing,
)
from proa.runtime.vm.nics import Card, spares_for

_MACHINE_TYPE = "microvm,x-option-roms=off,pit=on,pic=on,rtc=on,isa-serial=on,acpi=on,memory-backend=memory"
# Numbers of the ports on the virtio-serial bus. Number 0 is reserved for a console.
_PORT_NUMBERS = {"control": 1, "log": 2, "exit": 3, "fs": 4}


def render(machine: Machine) -> list[str]:
    """Return the whole command line, the program first."""
    return [
        str(machine.qemu),
        *_base(machine),
        *confinement(machine.run_as),
        *_processor(machine),
        *_memory(machine),
        *_beginning(machine),
        *_monitor(machine.ports),
        *_console(machine.ports),
        *(_seats(machine) if machine.shape.seats else _own(machine)),
        *(word for index, tap in enumerate(machine.taps) for word in _nic(index, tap)),
        *(word for number in range(spares_for(machine.shape)) for word in _spare(number)),
    ]


def _own(machine: Machine) -> Iterator[str]:
    yield from _serial(machine.ports)
    yield from _disk("layers", machine.layers)
    yield from _disk("new", machine.new)
    yield from _disk("kept", machine.kept)


def option(*kind: str, **named: str | int | Path) -> str:
    """Join ``kind,key=value…`` with commas in values doubled. ``__`` in a key stands for a dot."""
    return option_of(*kind, values={key.replace("__", "."): value for key, value in named.items()})


def option_of(*kind: str, values: Mapping[str, str | int | Path]) -> str:
    """``option`` for keys that are not Python names."""
    words = [*kind, *(f"{key}={value}" for key, value in values.items())]
    return ",".join(word.replace(",", ",,") for word in words)


def confinement(run_as: RunAs | None) -> Iterator[str]:
    """Yield what takes QEMU's rights away before the guest runs."""
    # To take another uid QEMU needs setuid once; afterwards, without capabilities and without execve, the
    # call gives it nothing.
    elevate = "deny" if run_as is None else "allow"
    sandbox = option("on", obsolete="deny", elevateprivileges=elevate, spawn="deny", resourcecontrol="deny")
    yield from ("-sandbox", sandbox)
    if run_as is not None:
        yield from ("-runas", f"{run_as.uid}:{run_as.uid}")
        if run_as.has_run_with:
            yield from ("-run-with", option(chroot=run_as.root))
        else:
            yield from ("-chroot", str(run_as.root))


def _base(machine: Machine) -> Iterator[str]:
    yield from ("-name", option(machine.name))
    # Option ROMs only cost time. acpi=on: Debian's kernel has no virtio-mmio devices on its command line.
    # pit, pic, rtc: without them the guest hangs under TCG.
    is_bare = isinstance(machine.begins, Standing)
    yield from ("-M", _MACHINE_TYPE + (",suppress-vmdesc=on" if is_bare else ""))
    yield from ("-nodefaults", "-no-user-config", "-display", "none")
    # The agent powers off, a panic reboots: both end QEMU.
    yield "-no-reboot"


def _processor(machine: Machine) -> Iterator[str]:
    if machine.accelerator == "tcg":
        yield from ("-accel", f"tcg,thread=multi,tb-size={TB_CACHE_MIB}")
    else:
        yield from ("-accel", option(machine.accelerator))
    yield from ("-cpu", "max")
    yield from ("-smp", str(machine.shape.vcpus))


def _memory(machine: Machine) -> Iterator[str]:
    yield from ("-m", f"{machine.shape.memory_bytes // MIB}M")
    values: dict[str, str | int | Path] = {
        "id": "memory",
        "size": machine.shape.memory_bytes,
        "mem-path": machine.memory_file,
        "share": "on" if machine.is_template else "off",
    }
    yield from ("-object", option_of("memory-backend-file", values=values))
    # A clone would announce the MAC of the template to the network.
    yield from ("-global", "migration.announce-rounds=0")


def _beginning(machine: Machine) -> Iterator[str]:
    begins = machine.begins
    if isinstance(begins, Incoming):
        yield from ("-incoming", "defer")  # until the monitor has been told to leave the memory alone
        return
    if isinstance(begins, Standing):
        # The state of devices alone comes without the sections that say of what configuration it is.
        yield from ("-incoming", "defer", "-S", "-global", "migration.send-configuration=off")
        return
    yield from ("-kernel", str(begins.kernel), "-initrd", str(begins.initramfs))
    yield from ("-append", begins.arguments)


def _monitor(ports: Ports) -> Iterator[str]:
    yield from ("-chardev", _listening("monitor", ports.monitor_fd))
    yield from ("-mon", option(chardev="monitor", mode="control"))


def _console(ports: Ports) -> Iterator[str]:
    yield from ("-chardev", _listening("console", ports.console_fd))
    yield from ("-serial", "chardev:console")


def _serial(ports: Ports) -> Iterator[str]:
    yield from ("-device", option("virtio-serial-device", id="serial", max_ports=len(_PORT_NUMBERS) + 1))
    yield from _port("control", _listening("control", ports.control_fd))
    yield from _port("log", _appended("log", ports.log))
    yield from _port("exit", _appended("exit", ports.exit_record))
    connected = option("null", id="fs") if ports.fs_fd is None else option("socket", id="fs", fd=ports.fs_fd)
    yield from _port("fs", connected)


def _port(name: str, chardev: str) -> Iterator[str]:
    yield from ("-chardev", chardev)
    device = option(
        "virtserialport", bus="serial.0", nr=_PORT_NUMBERS[name], chardev=name, name=f"proa.{name}"
    )
    yield from ("-device", device)


def _listening(name: str, fd: int) -> str:
    return option("socket", id=name, fd=fd, server="on", wait="off")


def _appended(name: str, path: Path | None) -> str:
    return option("null", id=name) if path is None else option("file", id=name, path=path, append="on")


def _disk(name: str, disk: Disk) -> Iterator[str]:
    yield from ("-blockdev", _block_node(name, disk))
    yield from ("-device", option("virtio-blk-device", id=name, drive=f"{name}-node"))


def _block_node(name: str, disk: Disk) -> str:
    node = {"node-name": f"{name}-node"}
    if disk.path is None:
        return option_of(values={"driver": "null-co", **node, "size": PLACEHOLDER_BYTES, "read-zeroes": "on"})
    values: dict[str, str | int | Path] = {
        "driver": "vmdk" if disk.is_vmdk else "raw",  # named, never probed
        **node,
        "read-only": "on" if disk.read_only else "off",
        "discard": "ignore" if disk.read_only else "unmap",
        "file.driver": "file",
        "file.filename": disk.path,
    }
    return option_of(values=values)


def _seats(machine: Machine) -> Iterator[str]:
    """What each seat has: nothing stands behind its ports and disks until a container comes."""
    seats = machine.shape.seats
    ports = option("virtio-serial-device", id="serial", max_ports=len(_PORT_NUMBERS) * seats + 1)
    yield from ("-device", ports)
    for seat in range(seats):
        for port, number in _PORT_NUMBERS.items():
            name = f"{port}-{seat}"
            is_control = port == "control"
            chardev = (
                _listening(name, machine.ports.seat_fds[seat]) if is_control else option("null", id=name)
            )
            yield from ("-chardev", chardev)
            values: dict[str, str | int | Path] = {
                "bus": "serial.0",
                "nr": len(_PORT_NUMBERS) * seat + number,
                "chardev": name,
                "name": f"proa.{port}.{seat}",
            }
            yield from ("-device", option_of("virtserialport", values=values))
    for seat in range(seats):
        for disk in ("layers", "written"):
            yield from _seat_disk(f"{disk}-{seat}", read_only=disk == "layers")


def _seat_disk(name: str, *, read_only: bool) -> Iterator[str]:
    """A disk whose file can be replaced: the device holds a node of format raw, whose child changes."""
    read = {"read-only": "on" if read_only else "off"}
    nothing: dict[str, str | int | Path] = {
        "driver": "null-co",
        "node-name": f"{name}-nothing",
        "size": PLACEHOLDER_BYTES,
        "read-zeroes": "on",
        **read,
    }
    yield from ("-blockdev", option_of(values=nothing))
    node: dict[str, str | int | Path] = {
        "driver": "raw",
        "node-name": f"{name}-node",
        "file": f"{name}-nothing",
        **read,
    }
    yield from ("-blockdev", option_of(values=node if read_only else {**node, "discard": "unmap"}))
    yield from ("-device", option("virtio-blk-device", id=name, drive=f"{name}-node"))


def _nic(index: int, tap: str | int) -> Iterator[str]:
    card = Card(is_spare=False, number=index)
    if isinstance(tap, int):
        yield from ("-netdev", option("tap", id=card.netdev, fd=tap))
    else:
        named = option("tap", id=card.netdev, ifname=tap, script="no", downscript="no", vnet_hdr="on")
        yield from ("-netdev", named)
    yield from ("-device", _network_card(card))


def _spare(number: int) -> Iterator[str]:
    card = Card(is_spare=True, number=number)
    yield from ("-netdev", option("hubport", id=card.netdev, hubid=card.hub))
    yield from ("-device", _network_card(card))


def _network_card(card: Card) -> str:
    return option("virtio-net-device", id=f"{card.netdev}-nic", netdev=card.netdev, mac=card.mac.hex(":"))

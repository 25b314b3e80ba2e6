# SPDX-License-Identifier: Apache-2.0
"""What a full machine consists of when QEMU is started, as values; and QEMU's words for it.

Pure: golden tests show the whole. One renderer for each kind of device; what differs between the
architectures is in ``BOARDS``. Devices get the same addresses at every start because their order is fixed.

Source: QEMU invocation (qemu-system-x86_64(1)); system/arm/virt, system/riscv/virt; docs/system/vnc-security.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from proa.runtime.vm.cmdline import confinement, option, option_of
from proa.runtime.vm.machine import RunAs

MIB = 1024 * 1024
TB_CACHE_MIB = 256  # of translated code under TCG; the default would be a quarter of the host's memory
HOT_PORTS = 4  # places for disks that come while it runs; firmware looks at each at every start
VNC_PORTS = 1000  # displays that are tried, from 5900 on


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """What differs between architectures.

    :ivar cpu: the model under emulation.
    :ivar display: the graphics card, as words of the command line.
    :ivar cdrom: the device that an ISO image lies in.
    :ivar ports_slot: of the PCI bus, where the ports for disks are that come later: its last that is free.
    :ivar tpm: the device that a TPM is; "": there is none.
    """

    program: str
    package: str
    machine: str
    cpu: str
    display: tuple[str, ...]
    cdrom: tuple[str, ...]
    ports_slot: int = 0x1F
    tpm: str = ""


_SCSI_CDROM = ("-device", "virtio-scsi-pci,id=scsi", "-device", "scsi-cd,bus=scsi.0,drive=cdrom")
_GPU = ("-device", "virtio-gpu-pci", "-device", "qemu-xhci", "-device", "usb-kbd", "-device", "usb-tablet")
BOARDS = {
    "x86_64": Board(
        program="qemu-system-x86_64",
        package="qemu-system-x86",
        machine="q35,vmport=off",
        cpu="max",
        display=("-vga", "std", "-device", "qemu-xhci", "-device", "usb-tablet"),
        cdrom=("-device", "ide-cd,bus=ide.0,drive=cdrom"),
        ports_slot=0x1E,  # in the last are the board's own devices
        tpm="tpm-crb",
    ),
    "aarch64": Board(
        program="qemu-system-aarch64",
        package="qemu-system-arm",
        machine="virt,gic-version=max",
        cpu="max",
        display=_GPU,
        cdrom=_SCSI_CDROM,
        tpm="tpm-tis-device",
    ),
    "riscv64": Board(
        program="qemu-system-riscv64",
        package="qemu-system-misc",
        machine="virt",
        cpu="rv64",
        display=_GPU,
        cdrom=_SCSI_CDROM,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    """What runs first. ``code`` with ``variables`` is UEFI in two flash chips; ``image`` is for ``-bios``."""

    code: Path | None = None
    variables: Path | None = None
    image: Path | None = None
    secure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """A disk: qcow2 of our own making, unless ``raw``."""

    name: str
    path: Path
    raw: bool = False
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """A card, and the tap that it is plugged into."""

    tap: str
    mac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sockets:
    """Descriptors of unix sockets that QEMU inherits: listening ones, and one that a TPM is behind."""

    monitor: int
    events: int
    console: int
    agent: int
    tpm: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One start of one machine.

    :ivar identifier: of the machine; its first 32 digits are the guest's UUID.
    :ivar run_as: None: it stays what it is.
    """

    qemu: Path
    identifier: str
    name: str
    architecture: str
    accelerator: str
    cpus: int
    memory_bytes: int
    sockets: Sockets
    firmware: Firmware = Firmware()
    kernel: Path | None = None
    initrd: Path | None = None
    kernel_arguments: str = ""
    drives: Sequence[Drive] = ()
    cdrom: Path | None = None
    nics: Sequence[Nic] = ()
    headless: bool = False
    run_as: RunAs | None = None


def render(plan: Plan) -> list[str]:
    """Return the whole command line, the program first."""
    return [
        str(plan.qemu),
        *_base(plan),
        *confinement(plan.run_as),
        *_firmware(plan.firmware),
        *_kernel(plan),
        *_monitors(plan.sockets),
        *_serial(plan.sockets),
        *(word for number, drive in enumerate(plan.drives, 1) for word in _drive(number, drive)),
        *_cdrom(plan),
        *(word for number, nic in enumerate(plan.nics) for word in _nic(number, nic)),
        *_ports(plan),
        *_tpm(plan),
        *_display(plan),
    ]


def _base(plan: Plan) -> Iterator[str]:
    board = BOARDS[plan.architecture]
    machine = board.machine
    if plan.architecture == "x86_64" and plan.headless:
        machine += ",graphics=off"  # SeaBIOS then speaks on the serial line
    if plan.firmware.secure:
        machine += ",smm=on"
    yield from ("-name", option(plan.name))
    yield from ("-uuid", _uuid(plan.identifier))
    yield from ("-machine", machine)
    yield from ("-nodefaults", "-no-user-config", "-display", "none")
    if plan.accelerator == "tcg":
        yield from ("-accel", f"tcg,thread=multi,tb-size={TB_CACHE_MIB}", "-cpu", board.cpu)
    else:
        yield from ("-accel", option(plan.accelerator), "-cpu", "host")
    yield from ("-smp", str(plan.cpus), "-m", f"{plan.memory_bytes // MIB}M")
    yield from ("-rtc", "base=utc")
    yield from ("-device", "virtio-rng-pci")


def _firmware(firmware: Firmware) -> Iterator[str]:
    if firmware.image is not None:
        yield from ("-bios", str(firmware.image))
    if firmware.code is None or firmware.variables is None:
        return
    if firmware.secure:
        yield from ("-global", "driver=cfi.pflash01,property=secure,value=on")
    for unit, path in enumerate((firmware.code, firmware.variables)):
        values: dict[str, str | int | Path] = {"if": "pflash", "format": "raw", "unit": unit, "file": path}
        if unit == 0:
            values["readonly"] = "on"
        yield from ("-drive", option_of(values=values))


def _kernel(plan: Plan) -> Iterator[str]:
    if plan.kernel is None:
        return
    yield from ("-kernel", str(plan.kernel))
    if plan.initrd is not None:
        yield from ("-initrd", str(plan.initrd))
    if plan.kernel_arguments:
        yield from ("-append", plan.kernel_arguments)


def _monitors(sockets: Sockets) -> Iterator[str]:
    """Two, because one serves a single client at a time: commands, and the events that we listen to."""
    for name, fd in (("monitor", sockets.monitor), ("events", sockets.events)):
        yield from ("-chardev", _listening(name, fd))
        yield from ("-mon", option(chardev=name, mode="control"))


def _serial(sockets: Sockets) -> Iterator[str]:
    yield from ("-chardev", _listening("console", sockets.console), "-serial", "chardev:console")
    yield from ("-chardev", _listening("agent", sockets.agent))
    yield from ("-device", "virtio-serial-pci")
    yield from ("-device", option("virtserialport", chardev="agent", name="org.qemu.guest_agent.0"))


def _listening(name: str, fd: int) -> str:
    return option("socket", id=name, fd=fd, server="on", wait="off")


def _drive(number: int, drive: Drive) -> Iterator[str]:
    yield from ("-blockdev", _node(drive.name, drive.path, raw=drive.raw, read_only=drive.read_only))
    yield from (
        "-device",
        option("virtio-blk-pci", drive=drive.name, serial=drive.name, bootindex=number),
    )


def _node(name: str, path: Path, *, raw: bool, read_only: bool) -> str:
    values: dict[str, str | int | Path] = {
        "driver": "raw" if raw else "qcow2",  # named, never probed
        "node-name": name,
        "read-only": "on" if read_only else "off",
        "discard": "ignore" if read_only else "unmap",
        "file.driver": "file",
        "file.filename": path,
    }
    return option_of(values=values)


def _cdrom(plan: Plan) -> Iterator[str]:
    if plan.cdrom is None:
        return
    yield from ("-blockdev", _node("cdrom", plan.cdrom, raw=True, read_only=True))
    words = BOARDS[plan.architecture].cdrom
    yield from words[:-1]
    yield f"{words[-1]},bootindex={len(plan.drives) + 1}"  # after the disks: an installed system goes first


def _nic(number: int, nic: Nic) -> Iterator[str]:
    yield from (
        "-netdev",
        option("tap", id=f"net{number}", ifname=nic.tap, script="no", downscript="no", vnet_hdr="on"),
    )
    # romfile: no boot from the network, whose ROM is a package of its own
    yield from ("-device", option("virtio-net-pci", netdev=f"net{number}", mac=nic.mac, romfile=""))


def hot_port(place: int) -> str:
    """The id of a port for a disk that comes later."""
    return f"port{place}"


def hot_device(place: int) -> str:
    """The id of what is in such a port."""
    return f"hot{place}"


def _ports(plan: Plan) -> Iterator[str]:
    slot = BOARDS[plan.architecture].ports_slot
    for place in range(HOT_PORTS):
        address = f"{slot:#x}.{place}"
        values: dict[str, str | int] = {"bus": "pcie.0", "addr": address, "multifunction": "on"}
        yield from (
            "-device",
            option("pcie-root-port", id=hot_port(place), chassis=place + 1, port=place, **values),
        )


def _tpm(plan: Plan) -> Iterator[str]:
    if plan.sockets.tpm is None:
        return
    yield from ("-chardev", option("socket", id="tpm", fd=plan.sockets.tpm))
    yield from ("-tpmdev", option("emulator", id="tpm0", chardev="tpm"))
    yield from ("-device", option(BOARDS[plan.architecture].tpm, tpmdev="tpm0"))


def _display(plan: Plan) -> Iterator[str]:
    if plan.headless:
        return
    yield from BOARDS[plan.architecture].display
    # Nobody gets in until a password has been set; and QEMU's listens on loopback alone.
    yield from ("-vnc", f"127.0.0.1:0,to={VNC_PORTS},password=on")


def _uuid(identifier: str) -> str:
    digits = identifier[:32]
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))

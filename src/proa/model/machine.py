# SPDX-License-Identifier: Apache-2.0
"""A full machine: what a user asks of it, in the API's own shape, and what proa knows of it.

The configuration is received, stored and shown in one form, as a container's is. Paths are of the daemon's
host.

Source: docs/reference/vms.yaml.
"""

from __future__ import annotations

import enum
from typing import NewType

import msgspec

from proa.model.config import ApiStruct, PortBinding

MachineId = NewType("MachineId", str)  # 64 hex digits

MIB = 1024 * 1024


class MachineState(enum.Enum):
    """Where a machine is in its life. CREATING, STARTING and REMOVING end when a daemon takes them up."""

    CREATING = "creating"
    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    CRASHED = "crashed"  # QEMU ended as nobody wanted; the reason is in the record
    REMOVING = "removing"

    @property
    def is_alive(self) -> bool:
        """Whether there is a QEMU."""
        return self in (MachineState.RUNNING, MachineState.PAUSED)

    @property
    def is_off(self) -> bool:
        """Whether nobody has its disks open."""
        return self in (MachineState.CREATED, MachineState.STOPPED, MachineState.CRASHED)


class MachineDisk(ApiStruct, frozen=True, kw_only=True):
    """A disk. With a ``source`` it begins as a copy of that image; without, it is blank.

    :ivar size: bytes; 0 takes the size of the source.
    """

    name: str = ""
    source: str = ""
    size: int = 0


class CloudInit(ApiStruct, frozen=True, kw_only=True):
    """What cloud-init is told by a NoCloud seed. ``user_data`` is a whole document of the user's own, in
    place of one made of the other fields."""

    user: str = ""
    ssh_keys: list[str] | None = None
    password: str = ""  # of the user; plain, or a hash as in shadow(5)
    packages: list[str] | None = None
    user_data: str = ""


class MachineNic(ApiStruct, frozen=True, kw_only=True):
    """A place on a network. Empty values let proa choose; a chosen MAC address stays for good."""

    network: str = ""
    address: str = ""
    mac: str = ""
    aliases: list[str] | None = None


class MachineConfig(ApiStruct, frozen=True, kw_only=True):
    """Everything a user may ask of a machine.

    :ivar architecture: x86_64, aarch64 or riscv64; empty: the host's.
    :ivar firmware: bios, uefi, uefi-secure, or a path of an image for QEMU's ``-bios``; empty: the
        machine's usual one.
    :ivar cdrom: an ISO image, read where it lies.
    :ivar image: of the store, which the disk ``root`` and what boots it are made of.
    :ivar image_disk_size: bytes of that disk; 0 lets proa choose.
    :ivar cmd: what an ``image`` runs, in place of its own kernel, init or command.
    :ivar nics: None: one on the default network; []: none.
    :ivar tpm: a TPM 2.0, whose state stays with the machine.
    :ivar headless: no display, no VNC; firmware then speaks on the serial console.
    """

    architecture: str = ""
    cpus: int = 1
    memory: int = 512 * MIB  # bytes
    firmware: str = ""
    kernel: str = ""
    initrd: str = ""
    kernel_arguments: str = ""
    disks: list[MachineDisk] | None = None
    cdrom: str = ""
    image: str = ""
    image_disk_size: int = 0
    cmd: list[str] | None = None
    cloud_init: CloudInit | None = None
    nics: list[MachineNic] | None = None
    port_bindings: dict[str, list[PortBinding] | None] | None = None
    hostname: str = ""
    autostart: bool = False
    headless: bool = False
    tpm: bool = False
    labels: dict[str, str] | None = None


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The record of one machine.

    :ivar reason: how its last run ended, in words; empty before.
    :ivar boot_id: of the host, when its state was last changed: after a reboot it is another one.
    :ivar instance_id: what cloud-init knows it by; empty: its id. A machine that was imported keeps it.
    """

    id: MachineId
    name: str
    created_at_ns: int
    config: MachineConfig
    state: MachineState
    started_at_ns: int = 0
    finished_at_ns: int = 0
    reason: str = ""
    boot_id: str = ""
    instance_id: str = ""

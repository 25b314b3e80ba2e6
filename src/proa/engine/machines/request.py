# SPDX-License-Identifier: Apache-2.0
"""Checks what a user asks of a machine, and completes it. Everything wrong is found before anything is made.

Source: docs/reference/vms.yaml, VmConfig.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from ipaddress import AddressValueError, IPv4Address

import msgspec

from proa.engine.ports import parse_ports
from proa.machines import images, seed
from proa.machines.downloads import find_address
from proa.model.config import ContainerConfig, HostConfig
from proa.model.errors import InvalidParameter
from proa.model.machine import MIB, Machine, MachineConfig, MachineDisk, MachineNic
from proa.model.network import EndpointRequest, PublishedPort

MAX_CPUS = 255  # of QEMU's q35 without an interrupt remapping unit
SMALLEST_BYTES = 16 * MIB
MAX_DISKS, MAX_NICS = 16, 8  # each takes a slot of the PCI bus, which has 32
DEFAULT_NETWORK = "bridge"
MAX_ARGUMENTS = 2000  # x86's COMMAND_LINE_SIZE is 2048

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_HOSTNAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?")
_DISK_NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")  # the guest sees it as the serial number: 20 characters
_RESERVED_DISKS = frozenset({"seed", "cdrom"})
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def check_name(name: str) -> None:
    """Raise InvalidParameter for a name that no machine can have."""
    if _NAME.fullmatch(name) is None:
        raise InvalidParameter(
            f"Invalid virtual machine name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )


def check_instance(instance: str) -> str:
    """Return the id that cloud-init knows a machine by. Raises InvalidParameter."""
    if re.fullmatch(r"[a-zA-Z0-9.-]{1,128}", instance) is None:
        raise InvalidParameter(f"invalid instance id: {instance!r}")
    return instance


def complete(config: MachineConfig) -> MachineConfig:
    """Return the configuration with names and MAC addresses filled in. Raises InvalidParameter."""
    disks = list(config.disks or ())
    config = msgspec.structs.replace(
        config,
        disks=[
            disk if disk.name else msgspec.structs.replace(disk, name=f"disk{number}")
            for number, disk in enumerate(disks)
        ],
        nics=[complete_nic(nic) for nic in ([MachineNic()] if config.nics is None else config.nics)],
    )
    check(config)
    return config


def complete_nic(nic: MachineNic) -> MachineNic:
    """Fill in the network and a MAC address, which stays: guests know their cards by it."""
    mac = nic.mac.lower() or "52:54:00:" + secrets.token_bytes(3).hex(":")
    return msgspec.structs.replace(nic, network=nic.network or DEFAULT_NETWORK, mac=mac)


def check(config: MachineConfig) -> None:
    """Raise InvalidParameter for what no machine can be."""
    check_size(config)
    if config.hostname and _HOSTNAME.fullmatch(config.hostname) is None:
        raise InvalidParameter(f"invalid hostname: {config.hostname!r}")
    if not (config.kernel or config.disks or config.cdrom or config.firmware.startswith("/")):
        raise InvalidParameter("nothing to boot: a disk, an installer image (cdrom) or a kernel is needed")
    if config.initrd and not config.kernel:
        raise InvalidParameter("an initrd needs a kernel")
    if config.kernel_arguments and not (config.kernel or config.image):
        raise InvalidParameter("kernel arguments need a kernel")
    if len(config.kernel_arguments) > MAX_ARGUMENTS or "\0" in config.kernel_arguments:
        raise InvalidParameter(f"kernel arguments of more than {MAX_ARGUMENTS} bytes, or with NUL in them")
    for path in (config.kernel, config.initrd):
        check_path(path)
    check_source(config.cdrom)
    check_disks(config.disks or ())
    if config.cloud_init is not None:
        seed.user_data(config.cloud_init)
    if len(config.nics or ()) > MAX_NICS:
        raise InvalidParameter(f"{len(config.nics or ())} networks: {MAX_NICS} are possible")
    endpoint_requests(config)
    published_ports(config)


def check_size(config: MachineConfig) -> None:
    """Raise InvalidParameter for processors and memory that cannot be."""
    if not 1 <= config.cpus <= MAX_CPUS:
        raise InvalidParameter(f"{config.cpus} CPUs: 1 to {MAX_CPUS} are possible")
    host_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if not SMALLEST_BYTES <= config.memory <= host_bytes:
        raise InvalidParameter(
            f"{config.memory} bytes of memory: {SMALLEST_BYTES} to the host's {host_bytes} are possible"
        )


def check_disks(disks: Sequence[MachineDisk]) -> None:
    """Raise InvalidParameter for disks that cannot be together in a machine."""
    if len(disks) > MAX_DISKS:
        raise InvalidParameter(f"{len(disks)} disks: {MAX_DISKS} are possible")
    names = [disk.name for disk in disks]
    for disk in disks:
        if _DISK_NAME.fullmatch(disk.name) is None or disk.name in _RESERVED_DISKS:
            raise InvalidParameter(f"invalid name of a disk: {disk.name!r} (such as data1)")
        if names.count(disk.name) > 1:
            raise InvalidParameter(f"two disks are called {disk.name}")
        if not disk.source and not disk.size:
            raise InvalidParameter(f"disk {disk.name} needs a size or a source")
        if disk.size:
            images.check_size(disk.size)
        check_source(disk.source)


def check_source(source: str) -> None:
    """Raise InvalidParameter for what is neither an address nor an absolute path; "" is neither."""
    if find_address(source) is None:
        check_path(source)


def check_path(path: str) -> None:
    """Raise InvalidParameter for what is no absolute path of the daemon's host; "" is none."""
    if path and (not path.startswith("/") or "\0" in path):
        raise InvalidParameter(f"{path!r}: the path of a file on the daemon's host must be absolute")


def endpoint_requests(config: MachineConfig) -> list[EndpointRequest]:
    """Return what the networks are asked for. Raises InvalidParameter."""
    wanted = []
    for nic in config.nics or ():
        if _MAC.fullmatch(nic.mac) is None or int(nic.mac[:2], 16) & 1:
            raise InvalidParameter(f"invalid MAC address: {nic.mac}")
        if nic.network in ("host", "none") or nic.network.startswith("container:"):
            raise InvalidParameter(
                f"a machine cannot be on network {nic.network}: it has a kernel of its own"
            )
        try:
            address = IPv4Address(nic.address) if nic.address else None
        except AddressValueError as error:
            raise InvalidParameter(f"invalid IPv4 address: {nic.address}") from error
        wanted.append(
            EndpointRequest(
                network=nic.network, address=address, mac=nic.mac, aliases=tuple(nic.aliases or ())
            )
        )
    return wanted


def published_ports(config: MachineConfig) -> Sequence[PublishedPort]:
    """Return the ports to publish. Raises InvalidParameter."""
    return parse_ports(ContainerConfig(), HostConfig(port_bindings=config.port_bindings))


def hostname_of(machine: Machine) -> str:
    """Return what the guest is told to be called: a name that every system takes."""
    if machine.config.hostname:
        return machine.config.hostname
    name = re.sub(r"[^a-zA-Z0-9-]", "-", machine.name).strip("-")
    return name or "machine"

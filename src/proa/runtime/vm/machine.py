# SPDX-License-Identifier: Apache-2.0
"""The plan of one QEMU machine: what it has, as values. ``cmdline`` turns it into words for QEMU.

A template and its clones must have the same devices in the same order, or the saved state does not fit. So
both are described by one ``Machine``; they differ in what stands behind the devices.

    device            template                     clone
    memory            file, shared (written)       the same file, private (copy on write)
    disk "layers"     placeholder of 1 TiB         the image's EROFS layers, read-only
    disk "new"        a blank ext4 disk, mounted   the container's copy of it, at its first start
    disk "kept"       placeholder of 1 TiB         the container's ext4 disk, at later starts
    nic               a tap that QEMU makes        the tap that the network prepared
    spare nic         an empty hub                 an empty hub, which taps join and leave
    port proa.log     nothing                      the container's log file
    port proa.exit    nothing                      the exit record
    port proa.fs      nothing                      the socket of fs-server, when there are binds
    begins with       kernel and initramfs         the saved state

Source: docs/reference/agent-protocol.md, section 1; QEMU invocation, microvm machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024
# What the guest's kernel, its page tables and the agent take of the memory before a workload gets any.
OVERHEAD_BYTES = 64 * MIB
SMALLEST_BYTES = 96 * MIB  # below, Debian's kernel runs out of memory while unpacking its initramfs
PLACEHOLDER_BYTES = 1 << 40  # the capacity that clones' disks seem to have; none may be larger
MAX_VCPUS = 64
TB_CACHE_MIB = 32  # of translated code under TCG; the default (a quarter of host memory) is kept private


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What makes two machines interchangeable: a template exists once for each shape."""

    memory_bytes: int
    vcpus: int
    nics: int
    seats: int = 0  # containers that may share it (proa.runtime.vm.pods); 0: it is one container's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """A machine that begins with a kernel."""

    kernel: Path
    initramfs: Path
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """A machine that goes on from a saved state, read from an inherited descriptor."""

    state_fd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A machine that stands still until it has been given memory, and a state of its devices alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """What stands behind a disk.

    :ivar path: a raw image, or a VMDK descriptor when ``is_vmdk``; None is the placeholder.
    """

    path: Path | None = None
    is_vmdk: bool = False
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What stands behind the virtio-serial ports and the console; descriptors are inherited by QEMU.

    :ivar monitor_fd: listening unix socket of the QMP monitor.
    :ivar control_fd: listening unix socket of the agent's control port.
    :ivar fs_fd: connected unix socket to fs-server; None: nobody there.
    :ivar console_fd: listening unix socket of the serial console.
    :ivar seat_fds: for each seat a listening unix socket, of its agent's control port.
    """

    monitor_fd: int
    control_fd: int
    console_fd: int
    fs_fd: int | None = None
    log: Path | None = None
    exit_record: Path | None = None
    seat_fds: Sequence[int] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAs:
    """What QEMU gives its rights up for, once everything is open.

    :ivar uid: the gid as well.
    :ivar root: the directory that becomes its ``/``: one that only root may enter, so that nothing is left
        that it could name.
    :ivar has_run_with: whether this QEMU has ``-run-with``, which took the place of ``-chroot`` in 8.1.
    """

    uid: int
    root: Path
    has_run_with: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Everything about one QEMU process.

    :ivar name: shown by ps and QMP.
    :ivar accelerator: "kvm" or "tcg".
    :ivar taps: for each NIC an interface of the host, in a template a pattern that the kernel numbers; or
        an inherited descriptor of a tap.
    :ivar is_template: what the guest writes goes to the memory file, to be saved with it.
    :ivar run_as: None: it stays what it is.
    """

    qemu: Path
    name: str
    accelerator: str
    shape: Shape
    memory_file: Path
    begins: Boot | Incoming | Standing
    ports: Ports
    is_template: bool = False
    layers: Disk = Disk()
    new: Disk = Disk()
    kept: Disk = Disk()
    taps: Sequence[str | int] = ()
    run_as: RunAs | None = None


def memory_for(limit_bytes: int, default_bytes: int) -> int:
    """Return the memory of a machine whose workload may use ``limit_bytes`` (0: no limit).

    The limit itself is held in the guest, by a cgroup, so that a container sees the same limit in both
    hulls; the machine is larger by what the kernel takes. Sizes are powers of two and the steps half-way, so
    that few templates serve many limits.
    """
    wanted = limit_bytes + OVERHEAD_BYTES if limit_bytes > 0 else default_bytes
    size = SMALLEST_BYTES
    while size < wanted:
        # 96, 128, 192, 256, 384… MiB
        size = size // 3 * 4 if (size & (size - 1)) else size // 2 * 3
    return size


def usable_bytes(memory_bytes: int) -> int:
    """Return the largest memory limit that a running machine of this size can hold."""
    return max(0, memory_bytes - OVERHEAD_BYTES)


def vcpus_for(cpus: float, default: int, host_cpus: int) -> int:
    """Return the number of vCPUs for a quota of ``cpus`` (0: none), at most what the host has."""
    wanted = int(-(-cpus // 1)) if cpus > 0 else default
    return max(1, min(wanted, host_cpus, MAX_VCPUS))

# SPDX-License-Identifier: Apache-2.0
"""What the VM hull honours and what it refuses, with the reason a user reads.

An option is refused when it speaks of something that a guest does not share with the host (namespaces,
devices, the host's kernel). All else is honoured: in the guest by the agent, or around QEMU by a cgroup.

Source: Engine API 1.51, HostConfig.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence

from proa.host.cgroup import get_hierarchies
from proa.model.errors import FeatureMissing
from proa.model.task import Mount, MountKind, NetworkKind, RootfsKind, Security, TaskSpec
from proa.runtime.seam import NO_WEIGHT, Asked, Features
from proa.runtime.vm.kernels import parse_choice

NAME = "vm"
MIN_MEMORY_BYTES = 6 * 1024 * 1024  # Docker's own: the guest gets what its kernel needs on top

_OWN_KERNEL = "a virtual machine has a kernel of its own, whose namespaces the host does not share"
_HOST_DEVICE = "devices of the host are not passed into a virtual machine"
_HOST_PIPE = "its other end is in the host's kernel, which a virtual machine does not reach"
_HOST_DISK = "the guest's disks are files, not the host's block devices"

REFUSED: dict[str, str] = {
    "HostConfig.PidMode": _OWN_KERNEL,
    "HostConfig.IpcMode": _OWN_KERNEL,
    "HostConfig.UTSMode": _OWN_KERNEL,
    "HostConfig.UsernsMode": _OWN_KERNEL,
    "HostConfig.CgroupnsMode": "cgroups of the host do not exist inside a virtual machine",
    "HostConfig.Devices": _HOST_DEVICE,
    "HostConfig.DeviceCgroupRules": _HOST_DEVICE,
    "HostConfig.DeviceRequests": _HOST_DEVICE,
    "HostConfig.BlkioWeightDevice": _HOST_DISK,
    "HostConfig.BlkioDeviceReadBps": _HOST_DISK,
    "HostConfig.BlkioDeviceWriteBps": _HOST_DISK,
    "HostConfig.BlkioDeviceReadIOps": _HOST_DISK,
    "HostConfig.BlkioDeviceWriteIOps": _HOST_DISK,
    "HostConfig.CpuRealtimePeriod": "QEMU's threads are not real-time tasks",
    "HostConfig.CpuRealtimeRuntime": "QEMU's threads are not real-time tasks",
    "HostConfig.OomKillDisable": "a guest whose memory is used up must be able to end processes",
    "HostConfig.MemorySwappiness": "a virtual machine has no swap",
    "HostConfig.StorageOpt": "the size of the writable disk cannot be chosen",
}
_MEMORY_DEVICES = 1  # major number of null, zero, full, random, which every kernel has
_SHARED_PROPAGATION = ("shared", "rshared", "slave", "rslave")


def judge(asked: Asked) -> Sequence[str]:
    """Refuse what is not a field but a value in one; warn of a weight that the kernel does not know."""
    _check_values(asked.mounts, asked.security)
    parse_choice(asked.host.annotations or {})
    for spec in asked.host.mounts or ():
        if spec.bind_options and spec.bind_options.read_only_non_recursive:
            raise FeatureMissing(
                NAME, "BindOptions.ReadOnlyNonRecursive", "a read-only share is read-only as a whole"
            )
    return (NO_WEIGHT,) if asked.host.blkio_weight and not get_hierarchies().weighs_io else ()


FEATURES = Features(
    rootfs=RootfsKind.BLOCK,
    network=NetworkKind.TAP,
    refused=REFUSED,
    network_modes=frozenset({"bridge", "none"}),
    min_memory_bytes=MIN_MEMORY_BYTES,
    judge=judge,
)


def _check_values(mounts: Iterable[Mount], security: Security) -> None:
    for mount in mounts:
        if mount.kind is MountKind.BIND:
            for option in mount.options:
                if option in _SHARED_PROPAGATION:
                    raise FeatureMissing(
                        NAME, f"bind propagation {option}", "mounts do not propagate between two kernels"
                    )
            _check_source(mount)
    if security.seccomp not in ("", "unconfined"):
        raise FeatureMissing(
            NAME, "a seccomp profile", "the guest's kernel, not a filter, keeps the workload from the host"
        )


def _check_source(mount: Mount) -> None:
    """Refuse a file that is only a name of something in the host's kernel: the guest's has none."""
    if mount.source is None:
        return
    try:
        found = mount.source.stat()
    except OSError:
        return  # what is not there is told of elsewhere
    if stat.S_ISSOCK(found.st_mode) or stat.S_ISFIFO(found.st_mode):
        kind = "socket" if stat.S_ISSOCK(found.st_mode) else "pipe"
        raise FeatureMissing(NAME, f"binding the {kind} {mount.source}", _HOST_PIPE)
    is_device = stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)
    if is_device and os.major(found.st_rdev) != _MEMORY_DEVICES:
        raise FeatureMissing(NAME, f"binding the device {mount.source}", _HOST_DEVICE)


def check(spec: TaskSpec) -> None:
    """Raise FeatureMissing for a task that should have been refused when its container was created."""
    _check_values(spec.mounts, spec.security)
    if spec.security.devices or spec.security.device_cgroup_rules:
        raise FeatureMissing(NAME, "HostConfig.Devices", _HOST_DEVICE)
    spaces = spec.namespaces
    if any((spaces.pid, spaces.ipc, spaces.uts, spaces.cgroup)):
        raise FeatureMissing(NAME, "sharing of namespaces", _OWN_KERNEL)
    if spec.network.host or spec.network.namespace is not None:
        raise FeatureMissing(NAME, "the network of the host", "it has a network stack of its own")

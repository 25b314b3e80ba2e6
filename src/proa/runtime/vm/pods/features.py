# SPDX-License-Identifier: Apache-2.0
"""What a container in a shared machine honours: as one in a machine of its own, but for what is around QEMU.

A cgroup of the host around QEMU would limit the neighbours too, so what the guest cannot hold is refused.

Source: Engine API 1.51, HostConfig; docs/reference/pods.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from proa.model.errors import FeatureMissing
from proa.model.task import BlockRootfs, TaskSpec
from proa.runtime.seam import KERNEL_ANNOTATION, KERNEL_ARGUMENTS_ANNOTATION, Asked
from proa.runtime.vm import features
from proa.runtime.vm.disks import SLOTS

NAME = "pod"
_WHOLE = "it would hold for all containers of the virtual machine"
MAX_SEATS = 6  # the machine has room for some twenty devices, of which each seat has three
MOST_NETWORKS = 1

REFUSED = {
    **features.REFUSED,
    "HostConfig.CpusetCpus": _WHOLE,
    "HostConfig.CpusetMems": _WHOLE,
    "HostConfig.BlkioWeight": _WHOLE,
    "HostConfig.MemoryReservation": _WHOLE,
    "HostConfig.CgroupParent": _WHOLE,
}


def judge(asked: Asked) -> Sequence[str]:
    """As a machine of its own does, and refuse a kernel that the neighbours would have to share."""
    for name in (KERNEL_ANNOTATION, KERNEL_ARGUMENTS_ANNOTATION):
        if (asked.host.annotations or {}).get(name):
            raise FeatureMissing(NAME, f"annotation {name}", _WHOLE)
    return features.judge(asked)


FEATURES = replace(
    features.FEATURES,
    refused=REFUSED,
    judge=judge,
    network_modes=frozenset({"bridge", "none", "container"}),
    most_networks=MOST_NETWORKS,
)


def check(spec: TaskSpec) -> None:
    """Raise FeatureMissing for a task that should have been refused when its container was created."""
    features.check(spec)
    if len(spec.network.interfaces) > MOST_NETWORKS:
        raise FeatureMissing(NAME, "more than one network", "each of its containers has one network card")
    if isinstance(spec.rootfs, BlockRootfs) and len(spec.rootfs.layers) > SLOTS:
        raise FeatureMissing(NAME, f"an image of more than {SLOTS} layers", "its disks are divided ahead")

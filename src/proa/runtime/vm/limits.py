# SPDX-License-Identifier: Apache-2.0
"""The limits that hold around QEMU, on the host: what a number of vCPUs cannot express.

Memory and processes are limited inside the guest, by its own cgroups. Whole CPUs are vCPUs. A share, a
fraction of a CPU, a set of CPUs or a weight is a cgroup of the host with QEMU in it, made only when there is
such a limit: moving a process into it takes milliseconds.

Source: Engine API, Resources; proa.host.cgroup.
"""

from __future__ import annotations

import math

import anyio.to_thread

from proa.host.cgroup import Cgroup, get_hierarchies
from proa.model.errors import FeatureMissing
from proa.model.task import Resources, TaskSpec
from proa.runtime.vm.features import NAME
from proa.runtime.vm.machine import MIB, usable_bytes

_DEFAULT_PARENT = "/proa"


def path_for(spec: TaskSpec) -> str:
    """The cgroup of the container's QEMU, at the place that a container's cgroup would have."""
    parent = spec.cgroup_parent or _DEFAULT_PARENT
    return f"/{parent.strip('/')}/{spec.id}"


def around_qemu(resources: Resources, vcpus: int) -> Resources | None:
    """Return the limits that need a cgroup of the host; None when vCPUs say it all."""
    is_whole = resources.cpus == vcpus
    outside = Resources(
        cpu_shares=resources.cpu_shares,
        cpu_period_us=0 if is_whole else resources.cpu_period_us,
        cpu_quota_us=0 if is_whole else max(0, resources.cpu_quota_us),
        cpuset_cpus=resources.cpuset_cpus,
        cpuset_mems=resources.cpuset_mems,
        memory_reservation_bytes=resources.memory_reservation_bytes,
        blkio_weight=resources.blkio_weight,
    )
    return None if outside == Resources() else outside


async def enclose(path: str, pid: int, resources: Resources) -> None:
    """Make the cgroup and move QEMU into it. Raises InvalidParameter, Internal; then it is gone again."""
    cgroup = Cgroup(path, get_hierarchies())
    cgroup.create(resources)
    try:
        await anyio.to_thread.run_sync(cgroup.attach, pid)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await _leave(cgroup, pid)
        raise


async def change(path: str, pid: int, resources: Resources | None) -> None:
    """Replace the limits of a running QEMU. Raises InvalidParameter, Internal."""
    cgroup = Cgroup(path, get_hierarchies())
    if cgroup.exists():
        cgroup.set_limits(resources or Resources(), reset=True)
    elif resources is not None:
        await enclose(path, pid, resources)


async def remove(path: str) -> None:
    """Remove the cgroup, killing what is in it. Idempotent."""
    await Cgroup(path, get_hierarchies()).delete()


def check_update(resources: Resources, *, memory_bytes: int, vcpus: int) -> None:
    """Raise FeatureMissing for what a running machine cannot be given."""
    most = usable_bytes(memory_bytes)
    if resources.memory_bytes > most:
        raise FeatureMissing(
            NAME,
            f"raising the memory limit above {most // MIB}MB",
            "the machine was started with no more; set the limit when it is created",
        )
    if math.ceil(resources.cpus) > vcpus:
        raise FeatureMissing(
            NAME,
            f"raising the CPU limit above {vcpus}",
            "the machine was started with no more vCPUs; set the limit when it is created",
        )


async def _leave(cgroup: Cgroup, pid: int) -> None:
    """Not ``delete``, which would kill QEMU before its owner has seen what went wrong."""
    if pid not in cgroup.pids():
        await cgroup.delete()

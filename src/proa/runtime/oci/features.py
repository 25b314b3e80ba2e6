# SPDX-License-Identifier: Apache-2.0
"""What the container hull refuses, with the reason a user reads, and what it leaves out on some hosts.

Source: Engine API 1.51, HostConfig; runc, libcontainer/configs/validate (which sysctls have a namespace).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from proa.host.cgroup import get_hierarchies
from proa.model.config import HostConfig
from proa.model.errors import FeatureMissing, InvalidParameter
from proa.model.task import NetworkKind, RootfsKind
from proa.runtime.oci import seccomp
from proa.runtime.oci.block_io import weighs_devices
from proa.runtime.oci.facts import HostFacts
from proa.runtime.seam import KERNEL_ANNOTATION, KERNEL_ARGUMENTS_ANNOTATION, NO_WEIGHT, Asked, Features

MIN_MEMORY_BYTES = 6 * 1024 * 1024  # Docker's own

_NO_WEIGHT_DEVICE = (
    "Your kernel does not support Block I/O weight_device or the cgroup is not mounted. "
    "Weight-device discarded."
)
_NO_RATE = "Your kernel does not support {} limit or the cgroup is not mounted. Block I/O {} limit discarded."
_RATES = {
    "blkio_device_read_bps": _NO_RATE.format("BPS Block I/O read", "BPS read"),
    "blkio_device_write_bps": _NO_RATE.format("BPS Block I/O write", "BPS write"),
    "blkio_device_read_i_ops": _NO_RATE.format("IOPS Block read", "IOPS read"),
    "blkio_device_write_i_ops": _NO_RATE.format("IOPS Block write", "IOPS write"),
}
FEATURES = Features(
    rootfs=RootfsKind.DIRECTORY,
    network=NetworkKind.NAMESPACE,
    refused={
        "HostConfig.StorageOpt": "the writable layer has no quota",
    },
    network_modes=frozenset({"bridge", "none", "host", "container"}),
    min_memory_bytes=MIN_MEMORY_BYTES,
)

_IPC_SYSCTLS = frozenset(
    "kernel.msgmax kernel.msgmnb kernel.msgmni kernel.sem kernel.shmall kernel.shmmax kernel.shmmni "
    "kernel.shm_rmid_forced".split()
)


def judge(facts: HostFacts, asked: Asked) -> Sequence[str]:
    """Refuse values that crun would trip over at the start, and warn of limits this kernel does not know.

    Raises InvalidParameter.
    """
    _check_sysctls(asked.host)
    for name in (KERNEL_ANNOTATION, KERNEL_ARGUMENTS_ANNOTATION):
        if (asked.host.annotations or {}).get(name):
            raise FeatureMissing(
                asked.host.runtime or "crun", f"annotation {name}", "a container runs on the host's kernel"
            )
    if (asked.host.cpu_realtime_period or asked.host.cpu_realtime_runtime) and not facts.has_realtime:
        raise InvalidParameter("Your kernel does not support CPU real-time scheduler")
    if asked.security.seccomp not in ("", "unconfined"):
        seccomp.convert(
            seccomp.parse_profile(asked.security.seccomp),
            capabilities=(),
            architecture=facts.architecture,
            kernel=facts.kernel,
        )
    return tuple(_left_out(asked.host, facts))


def _check_sysctls(host: HostConfig) -> None:
    for name in host.sysctls or {}:
        if name in _IPC_SYSCTLS or name.startswith("fs.mqueue."):
            is_own, whose = host.ipc_mode != "host", "IPC"
        elif name.startswith("net."):
            is_own, whose = host.network_mode != "host", "network"
        else:
            is_own, whose = name == "kernel.domainname" and host.uts_mode != "host", "UTS"
        if not is_own:
            raise InvalidParameter(
                f"sysctl {name} is not supported: it would change the host, "
                f"as it belongs to no {whose} namespace of the container"
            )


def _left_out(host: HostConfig, facts: HostFacts) -> Iterator[str]:
    """The sentences are the Docker Engine's."""
    if host.memory_swap and not facts.limits_swap:
        yield (
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. "
            "Memory limited without swap."
        )
    if host.memory_swappiness not in (None, -1) and facts.cgroup_is_v2:
        yield (
            "Your kernel does not support memory swappiness capabilities, or the cgroup is not mounted. "
            "Memory swappiness discarded."
        )
    if host.oom_kill_disable and facts.cgroup_is_v2:
        yield "Your kernel does not support OomKillDisable. OomKillDisable discarded."
    if host.blkio_weight and not get_hierarchies().weighs_io:
        yield NO_WEIGHT
    if host.blkio_weight_device and not weighs_devices():
        yield _NO_WEIGHT_DEVICE
    if not facts.throttles_io:
        for field, warning in _RATES.items():
            if getattr(host, field):
                yield warning

# SPDX-License-Identifier: Apache-2.0
"""What the container hull refuses, with the reason a user reads, and what it leaves out on some hosts.

Source: Engine API 1.51, HostConfig; runc, libcontainer/configs/validate (which sysctls have a namespace).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from proa.host.cgroup import get_hierarchies
from proa.model.config import HostConfig
from proa.model.errors import InvalidParameter
from proa.model.task import NetworkKind, RootfsKind
from proa.runtime.oci import seccomp
from proa.runtime.oci.facts import HostFacts
from proa.runtime.seam import NO_WEIGHT, Asked, Features

MIN_MEMORY_BYTES = 6 * 1024 * 1024  # Docker's own

_NO_THROTTLING = "limits of single block devices are not passed on yet"
FEATURES = Features(
    rootfs=RootfsKind.DIRECTORY,
    network=NetworkKind.NAMESPACE,
    refused={
        "HostConfig.DeviceRequests": "there is no driver for device requests (GPUs)",
        "HostConfig.UsernsMode": "user namespaces are not remapped",
        "HostConfig.StorageOpt": "the writable layer has no quota",
        "HostConfig.CpuRealtimePeriod": "real-time scheduling of cgroups is not passed on",
        "HostConfig.CpuRealtimeRuntime": "real-time scheduling of cgroups is not passed on",
        "HostConfig.BlkioWeightDevice": _NO_THROTTLING,
        "HostConfig.BlkioDeviceReadBps": _NO_THROTTLING,
        "HostConfig.BlkioDeviceWriteBps": _NO_THROTTLING,
        "HostConfig.BlkioDeviceReadIOps": _NO_THROTTLING,
        "HostConfig.BlkioDeviceWriteIOps": _NO_THROTTLING,
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

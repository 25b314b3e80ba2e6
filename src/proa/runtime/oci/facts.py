# SPDX-License-Identifier: Apache-2.0
"""What this host and this process allow, read once: a container cannot be given more than that.

Source: proc_pid_status(5), getrlimit(2), proc_pid_oom_score_adj(5).
"""

from __future__ import annotations

import os
import platform
import re
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from proa.host.cgroup import Hierarchies
from proa.runtime.oci import capabilities

# Go's names, which seccomp profiles use, of the kernel's machine names.
_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "i686": "x86",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """:ivar capabilities: those the engine may hand on.
    :ivar hard_limits: the engine's own hard rlimits, by lower-case name, -1 for none; empty when it may
        raise them (CAP_SYS_RESOURCE).
    :ivar nr_open: no RLIMIT_NOFILE may exceed it, whoever asks.
    :ivar lowest_oom_score_adj: a lower one cannot be set.
    :ivar throttles_io: single block devices can be limited.
    :ivar has_realtime: cgroups are given time for real-time tasks.
    """

    capabilities: frozenset[str]
    hard_limits: Mapping[str, int]
    nr_open: int
    oom_score_adj: int
    lowest_oom_score_adj: int
    kernel: tuple[int, int]
    architecture: str
    cgroup_is_v2: bool
    limits_swap: bool
    throttles_io: bool = True
    has_realtime: bool = False


def get_facts(hierarchies: Hierarchies) -> HostFacts:
    """Read the facts."""
    status = Path("/proc/self/status").read_text()
    masks = dict(re.findall(r"^(CapPrm|CapBnd):\s*([0-9a-f]+)$", status, re.MULTILINE))
    available = capabilities.parse_mask(masks["CapPrm"]) & capabilities.parse_mask(masks["CapBnd"])
    may_raise = "CAP_SYS_RESOURCE" in available
    own_adj = int(Path("/proc/self/oom_score_adj").read_text())
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    machine = platform.machine()
    memory, cpu = hierarchies.root_of("memory"), hierarchies.root_of("cpu")
    return HostFacts(
        capabilities=available,
        hard_limits={} if may_raise else _hard_limits(),
        nr_open=int(Path("/proc/sys/fs/nr_open").read_text()),
        oom_score_adj=own_adj,
        lowest_oom_score_adj=-1000 if may_raise else own_adj,
        kernel=(int(version[1]), int(version[2])) if version else (0, 0),
        architecture=_ARCHITECTURES.get(machine, machine),
        cgroup_is_v2=hierarchies.is_v2,
        limits_swap=hierarchies.is_v2
        or (memory is not None and (memory / "memory.memsw.limit_in_bytes").exists()),
        throttles_io=_throttles_io(hierarchies),
        has_realtime=not hierarchies.is_v2 and cpu is not None and (cpu / "cpu.rt_runtime_us").exists(),
    )


def _throttles_io(hierarchies: Hierarchies) -> bool:
    root = hierarchies.root_of("io" if hierarchies.is_v2 else "blkio")
    if root is None:
        return False
    if hierarchies.is_v2:
        return "io" in (root / "cgroup.controllers").read_text().split()
    return (root / "blkio.throttle.read_bps_device").exists()


def _hard_limits() -> dict[str, int]:
    names = [name for name in dir(resource) if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"]
    return {
        name.removeprefix("RLIMIT_").lower(): resource.getrlimit(getattr(resource, name))[1] for name in names
    }

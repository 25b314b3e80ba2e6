# SPDX-License-Identifier: Apache-2.0
"""One reading of a container's use in the terms of Docker's stats.

Source: Engine API, ContainerStats; proc_stat(5); proc_pid_net(5) for dev.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from proa.host.cgroup import Cgroup
from proa.host.cgroup_usage import TICK_NS
from proa.model.errors import WrongState
from proa.model.task import NetworkCounters, TaskStats

_CPU_FIELDS = 7  # user nice system idle iowait irq softirq: what Docker adds up


def read_stats(cgroup: Cgroup, *, network_pid: int) -> TaskStats:
    """Read everything now.

    :param network_pid: a process in the container's own network namespace, 0 when it has none.
    :raises WrongState: the cgroup is gone.
    """
    try:
        usage = cgroup.usage()
    except FileNotFoundError as error:
        raise WrongState("the container has ended") from error
    system_ns, cpus = parse_cpu(Path("/proc/stat").read_text())
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return TaskStats(
        read_at_ns=time.time_ns(),
        cpu_total_ns=usage.cpu_total_ns,
        cpu_user_ns=usage.cpu_user_ns,
        cpu_kernel_ns=usage.cpu_kernel_ns,
        online_cpus=cpus,
        system_cpu_ns=system_ns,
        throttled_periods=usage.throttled_periods,
        throttled_ns=usage.throttled_ns,
        memory_usage=usage.memory_usage,
        # Without a limit the host's memory is the limit, as Docker shows it.
        memory_limit=min(usage.memory_limit or total, total),
        memory_stats=usage.memory_stats,
        pids=usage.pids,
        pids_limit=usage.pids_limit,
        read_bytes=usage.read_bytes,
        write_bytes=usage.write_bytes,
        networks=_networks(network_pid),
    )


def parse_cpu(text: str) -> tuple[int, int]:
    """Return the time of all CPUs together in nanoseconds, and their number, from /proc/stat."""
    lines = text.splitlines()
    ticks = sum(int(field) for field in lines[0].split()[1 : 1 + _CPU_FIELDS])
    cpus = sum(1 for line in lines[1:] if line.startswith("cpu"))
    return ticks * TICK_NS, cpus or 1


def parse_net_dev(text: str) -> dict[str, NetworkCounters]:
    """Return the counters of every interface but the loopback, from /proc/<pid>/net/dev."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        fields = [int(field) for field in rest.split()]
        if name.strip() != "lo" and len(fields) >= 12:
            found[name.strip()] = NetworkCounters(
                rx_bytes=fields[0],
                rx_packets=fields[1],
                rx_errors=fields[2],
                rx_dropped=fields[3],
                tx_bytes=fields[8],
                tx_packets=fields[9],
                tx_errors=fields[10],
                tx_dropped=fields[11],
            )
    return found


def _networks(pid: int) -> dict[str, NetworkCounters]:
    if pid <= 0:
        return {}
    try:
        return parse_net_dev(Path(f"/proc/{pid}/net/dev").read_text())
    except OSError:
        return {}

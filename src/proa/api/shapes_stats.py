# SPDX-License-Identifier: Apache-2.0
"""Readings of a container's use as Docker shows them. Source: Engine API, ContainerStatsResponse."""

from __future__ import annotations

from msgspec import UNSET

from proa.engine.container import Container
from proa.model.task import NetworkCounters, TaskStats
from proa.wire import stats as wire
from proa.wire.times import ZERO_TIME, format_time


def reading(container: Container, now: TaskStats | None, before: TaskStats | None) -> wire.ContainerStats:
    """Return one reading beside the one before it; of a container that does not run, only its name."""
    if now is None:
        return wire.ContainerStats(name=f"/{container.name}", id=container.id)
    return wire.ContainerStats(
        name=f"/{container.name}",
        id=container.id,
        read=format_time(now.read_at_ns),
        preread=format_time(before.read_at_ns) if before else ZERO_TIME,
        pids_stats=wire.PidsStats(current=now.pids or UNSET, limit=now.pids_limit or UNSET),
        blkio_stats=wire.BlkioStats(
            io_service_bytes_recursive=[
                wire.BlkioEntry(op="read", value=now.read_bytes),
                wire.BlkioEntry(op="write", value=now.write_bytes),
            ]
        ),
        cpu_stats=_cpu(now),
        precpu_stats=_cpu(before) if before else wire.CpuStats(),
        memory_stats=wire.MemoryStats(
            usage=now.memory_usage, stats=dict(now.memory_stats), limit=now.memory_limit
        ),
        networks={name: _network(counters) for name, counters in now.networks.items()} or UNSET,
    )


def _cpu(stats: TaskStats) -> wire.CpuStats:
    return wire.CpuStats(
        cpu_usage=wire.CpuUsage(
            total_usage=stats.cpu_total_ns,
            usage_in_kernelmode=stats.cpu_kernel_ns,
            usage_in_usermode=stats.cpu_user_ns,
        ),
        system_cpu_usage=stats.system_cpu_ns,
        online_cpus=stats.online_cpus,
        throttling_data=wire.ThrottlingData(
            throttled_periods=stats.throttled_periods, throttled_time=stats.throttled_ns
        ),
    )


def _network(counters: NetworkCounters) -> wire.NetworkStats:
    return wire.NetworkStats(
        rx_bytes=counters.rx_bytes,
        rx_packets=counters.rx_packets,
        rx_errors=counters.rx_errors,
        rx_dropped=counters.rx_dropped,
        tx_bytes=counters.tx_bytes,
        tx_packets=counters.tx_packets,
        tx_errors=counters.tx_errors,
        tx_dropped=counters.tx_dropped,
    )

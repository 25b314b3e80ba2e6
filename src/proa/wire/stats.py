# SPDX-License-Identifier: Apache-2.0
"""What a container uses. Source: Engine API, ContainerStatsResponse. Times in ns, sizes in bytes."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from proa.wire.times import ZERO_TIME


class _Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Base: the keys are in snake_case here, unlike in the rest of the API."""


class CpuUsage(_Figures, frozen=True, kw_only=True):
    total_usage: int = 0
    usage_in_kernelmode: int = 0
    usage_in_usermode: int = 0


class ThrottlingData(_Figures, frozen=True, kw_only=True):
    periods: int = 0
    throttled_periods: int = 0
    throttled_time: int = 0


class CpuStats(_Figures, frozen=True, kw_only=True):
    cpu_usage: CpuUsage = CpuUsage()
    system_cpu_usage: int | UnsetType = UNSET  # of all CPUs
    online_cpus: int | UnsetType = UNSET
    throttling_data: ThrottlingData = ThrottlingData()


class MemoryStats(_Figures, frozen=True, kw_only=True):
    usage: int | UnsetType = UNSET
    stats: dict[str, int] | UnsetType = UNSET
    limit: int | UnsetType = UNSET


class PidsStats(_Figures, frozen=True, kw_only=True):
    current: int | UnsetType = UNSET
    limit: int | UnsetType = UNSET


class BlkioEntry(_Figures, frozen=True, kw_only=True):
    major: int = 0
    minor: int = 0
    op: str = ""
    value: int = 0


class BlkioStats(_Figures, frozen=True, kw_only=True):
    io_service_bytes_recursive: list[BlkioEntry] | None = None
    io_serviced_recursive: list[BlkioEntry] | None = None
    io_queue_recursive: list[BlkioEntry] | None = None
    io_service_time_recursive: list[BlkioEntry] | None = None
    io_wait_time_recursive: list[BlkioEntry] | None = None
    io_merged_recursive: list[BlkioEntry] | None = None
    io_time_recursive: list[BlkioEntry] | None = None
    sectors_recursive: list[BlkioEntry] | None = None


class NetworkStats(_Figures, frozen=True, kw_only=True):
    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0


class StorageStats(_Figures, frozen=True, kw_only=True):
    """Filled on Windows only."""


class ContainerStats(_Figures, frozen=True, kw_only=True):
    """``precpu_stats`` is the reading before this one: a share of CPU is the ratio of the two differences."""

    name: str = ""  # with a leading slash
    id: str = ""
    read: str = ZERO_TIME
    preread: str = ZERO_TIME
    pids_stats: PidsStats = PidsStats()
    blkio_stats: BlkioStats = BlkioStats()
    num_procs: int = 0
    storage_stats: StorageStats = StorageStats()
    cpu_stats: CpuStats = CpuStats()
    precpu_stats: CpuStats = CpuStats()
    memory_stats: MemoryStats = MemoryStats()
    networks: dict[str, NetworkStats] | UnsetType = UNSET

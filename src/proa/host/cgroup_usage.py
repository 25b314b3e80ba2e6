# SPDX-License-Identifier: Apache-2.0
"""Readings of a cgroup, the same in v1 and v2, in the units of Docker's stats.

Source: kernel Documentation/admin-guide/cgroup-v1/memory.rst, cpuacct.rst, blkio-controller.rst;
cgroup-v2.rst, Core Interface Files and Controllers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Read = Callable[[str, str], str | None]  # controller ("" is the unified tree) and file to content

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """One reading. Limits are 0 when there is none; ``memory_stats`` are the kernel's own keys."""

    cpu_total_ns: int = 0
    cpu_user_ns: int = 0
    cpu_kernel_ns: int = 0
    periods: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0
    memory_usage: int = 0
    memory_max_usage: int = 0
    memory_limit: int = 0
    memory_stats: Mapping[str, int] = field(default_factory=dict)
    pids: int = 0
    pids_limit: int = 0
    read_bytes: int = 0
    write_bytes: int = 0


def read(read_file: Read, *, is_v2: bool) -> Usage:
    """Read everything; a controller that is missing reads as 0."""
    return _read_v2(read_file) if is_v2 else _read_v1(read_file)


def read_oom_kills(read_file: Read, *, is_v2: bool) -> int:
    """How many processes the kernel killed in it for want of memory."""
    name = "memory.events" if is_v2 else "memory.oom_control"
    return parse_keyed(read_file("memory", name)).get("oom_kill", 0)


def parse_keyed(text: str | None) -> dict[str, int]:
    """Parse lines of ``key number``; others are left out."""
    found: dict[str, int] = {}
    for line in (text or "").splitlines():
        key, _, value = line.partition(" ")
        if value.isdecimal():
            found[key] = int(value)
    return found


def parse_limit(text: str | None) -> int:
    """Parse a limit: 0 for none ("max", or v1's number near 2^63)."""
    value = (text or "").strip()
    number = int(value) if value.isdecimal() else 0
    return 0 if number >= 1 << 62 else number


def _number(text: str | None) -> int:
    value = (text or "").strip()
    return int(value) if value.isdecimal() else 0


def _read_v1(read_file: Read) -> Usage:
    throttling = parse_keyed(read_file("cpu", "cpu.stat"))
    ticks = parse_keyed(read_file("cpuacct", "cpuacct.stat"))
    blocks = _sum_v1_blocks(
        read_file("blkio", "blkio.throttle.io_service_bytes_recursive")
        or read_file("blkio", "blkio.throttle.io_service_bytes")
    )
    return Usage(
        cpu_total_ns=_number(read_file("cpuacct", "cpuacct.usage")),
        cpu_user_ns=ticks.get("user", 0) * TICK_NS,
        cpu_kernel_ns=ticks.get("system", 0) * TICK_NS,
        periods=throttling.get("nr_periods", 0),
        throttled_periods=throttling.get("nr_throttled", 0),
        throttled_ns=throttling.get("throttled_time", 0),
        memory_usage=_number(read_file("memory", "memory.usage_in_bytes")),
        memory_max_usage=_number(read_file("memory", "memory.max_usage_in_bytes")),
        memory_limit=parse_limit(read_file("memory", "memory.limit_in_bytes")),
        memory_stats=parse_keyed(read_file("memory", "memory.stat")),
        pids=_number(read_file("pids", "pids.current")),
        pids_limit=parse_limit(read_file("pids", "pids.max")),
        read_bytes=blocks[0],
        write_bytes=blocks[1],
    )


def _read_v2(read_file: Read) -> Usage:
    cpu = parse_keyed(read_file("cpu", "cpu.stat"))
    blocks = _sum_v2_blocks(read_file("io", "io.stat"))
    return Usage(
        cpu_total_ns=cpu.get("usage_usec", 0) * 1000,
        cpu_user_ns=cpu.get("user_usec", 0) * 1000,
        cpu_kernel_ns=cpu.get("system_usec", 0) * 1000,
        periods=cpu.get("nr_periods", 0),
        throttled_periods=cpu.get("nr_throttled", 0),
        throttled_ns=cpu.get("throttled_usec", 0) * 1000,
        memory_usage=_number(read_file("memory", "memory.current")),
        memory_max_usage=_number(read_file("memory", "memory.peak")),
        memory_limit=parse_limit(read_file("memory", "memory.max")),
        memory_stats=parse_keyed(read_file("memory", "memory.stat")),
        pids=_number(read_file("pids", "pids.current")),
        pids_limit=parse_limit(read_file("pids", "pids.max")),
        read_bytes=blocks[0],
        write_bytes=blocks[1],
    )


def _sum_v1_blocks(text: str | None) -> tuple[int, int]:
    """Sum the lines ``8:0 Read 4096`` over all devices."""
    sums = {"Read": 0, "Write": 0}
    for line in (text or "").splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[1] in sums:
            sums[fields[1]] += int(fields[2])
    return sums["Read"], sums["Write"]


def _sum_v2_blocks(text: str | None) -> tuple[int, int]:
    """Sum the lines ``8:0 rbytes=4096 wbytes=0 …`` over all devices."""
    sums = {"rbytes": 0, "wbytes": 0}
    for line in (text or "").splitlines():
        for pair in line.split()[1:]:
            key, _, value = pair.partition("=")
            if key in sums:
                sums[key] += int(value)
    return sums["rbytes"], sums["wbytes"]

# SPDX-License-Identifier: Apache-2.0
"""Limits as the files of a cgroup want them: a pure translation from ``Resources``.

``plan`` gives the writes in an order the kernel accepts; ``proa.host.cgroup`` does them.

Source: kernel Documentation/admin-guide/cgroup-v1/memory.rst, cpusets.rst; scheduler/sched-bwc.rst;
cgroup-v2.rst; OCI runtime-spec, config-linux.md, Control groups (the conversion of shares to weight).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from proa.model.task import Resources

Write = tuple[str, str, str]  # controller, file, value
Read = Callable[[str, str], str | None]  # controller and file to content, None when there is none

DEFAULT_PERIOD_US = 100_000  # of the kernel
DEFAULT_SHARES = 1024
DEFAULT_SWAPPINESS = 60

# Files for which Docker warns and goes on where the kernel has none: they tune, they do not protect.
_DISCARDED = frozenset(
    {
        "blkio.weight", "blkio.bfq.weight", "io.weight", "io.bfq.weight",
        "memory.swappiness", "memory.oom_control", "memory.soft_limit_in_bytes", "memory.low",
        "memory.memsw.limit_in_bytes", "memory.swap.max",
    }
)  # fmt: skip


def may_be_discarded(name: str) -> bool:
    """Whether a limit is dropped, as Docker does, where the kernel has no such file."""
    return name in _DISCARDED


def plan(resources: Resources, *, is_v2: bool, reset: bool, read: Read) -> Iterator[Write]:
    """Yield the writes that set the limits, in order.

    :param reset: also lift the limits that are not given.
    :param read: looks at a present value, where the order of writes depends on it.
    """
    if is_v2:
        yield from _memory_v2(resources, reset)
        yield from _cpu_v2(resources, reset)
    else:
        yield from _memory_v1(resources, reset, read)
        yield from _cpu_v1(resources, reset)
    for name, value in (("cpuset.cpus", resources.cpuset_cpus), ("cpuset.mems", resources.cpuset_mems)):
        if value:
            yield "cpuset", name, value
        elif reset:
            # An empty set is the parent's on v2. On v1 it is refused: the sets of the root are written.
            whole = "" if is_v2 else (read("cpuset", f"../{name}") or "").strip()
            if is_v2 or whole:
                yield "cpuset", name, whole or "\n"
    if resources.pids > 0 or reset:
        yield "pids", "pids.max", str(resources.pids) if resources.pids > 0 else "max"
    yield from _weight(resources, is_v2=is_v2, read=read)


def weight_of_shares(shares: int) -> int:
    """Turn cpu.shares (2 to 262144, 1024 is the default) into cpu.weight (1 to 10000).

    Source: OCI runtime-spec, as crun and runc convert.
    """
    return 1 + (min(max(shares, 2), 262_144) - 2) * 9999 // 262_142


def swap_of(resources: Resources) -> int | None:
    """Bytes of swap beside the memory, as v2 counts; None for no limit."""
    if resources.memory_swap_bytes <= 0 or resources.memory_bytes <= 0:
        return None
    return max(0, resources.memory_swap_bytes - resources.memory_bytes)


def _memory_v1(resources: Resources, reset: bool, read: Read) -> Iterator[Write]:
    memory = resources.memory_bytes if resources.memory_bytes > 0 else -1
    both = resources.memory_swap_bytes if resources.memory_swap_bytes > 0 else -1
    writes: list[Write] = []
    if memory > 0 or reset:
        writes.append(("memory", "memory.limit_in_bytes", str(memory)))
    if both > 0 or reset or resources.memory_swap_bytes < 0:
        writes.append(("memory", "memory.memsw.limit_in_bytes", str(both)))
    # At every moment memory <= memory and swap: when the sum grows it goes first.
    present = int(read("memory", "memory.memsw.limit_in_bytes") or 0)
    if both == -1 or both > present:
        writes.reverse()
    yield from writes
    if resources.memory_reservation_bytes > 0 or reset:
        yield "memory", "memory.soft_limit_in_bytes", str(resources.memory_reservation_bytes or -1)
    if resources.memory_swappiness is not None and resources.memory_swappiness >= 0:
        yield "memory", "memory.swappiness", str(resources.memory_swappiness)
    if resources.oom_kill_disable or reset:
        yield "memory", "memory.oom_control", str(int(resources.oom_kill_disable))


def _memory_v2(resources: Resources, reset: bool) -> Iterator[Write]:
    if resources.memory_bytes > 0 or reset:
        yield "memory", "memory.max", str(resources.memory_bytes) if resources.memory_bytes > 0 else "max"
    swap = swap_of(resources)
    if swap is not None or reset:
        yield "memory", "memory.swap.max", "max" if swap is None else str(swap)
    if resources.memory_reservation_bytes > 0 or reset:
        yield "memory", "memory.low", str(resources.memory_reservation_bytes)


def _cpu_v1(resources: Resources, reset: bool) -> Iterator[Write]:
    if resources.cpu_shares > 0 or reset:
        yield "cpu", "cpu.shares", str(resources.cpu_shares or DEFAULT_SHARES)
    if resources.cpu_quota_us > 0 or resources.cpu_period_us > 0 or reset:
        # Lifted first, so that no pair of old quota and new period is refused or squeezes in between.
        yield "cpu", "cpu.cfs_quota_us", "-1"
        yield "cpu", "cpu.cfs_period_us", str(resources.cpu_period_us or DEFAULT_PERIOD_US)
        if resources.cpu_quota_us > 0:
            yield "cpu", "cpu.cfs_quota_us", str(resources.cpu_quota_us)


def _cpu_v2(resources: Resources, reset: bool) -> Iterator[Write]:
    if resources.cpu_shares > 0 or reset:
        yield "cpu", "cpu.weight", str(weight_of_shares(resources.cpu_shares or DEFAULT_SHARES))
    if resources.cpu_quota_us > 0 or resources.cpu_period_us > 0 or reset:
        quota = str(resources.cpu_quota_us) if resources.cpu_quota_us > 0 else "max"
        yield "cpu", "cpu.max", f"{quota} {resources.cpu_period_us or DEFAULT_PERIOD_US}"


def _weight(resources: Resources, *, is_v2: bool, read: Read) -> Iterator[Write]:
    weight = resources.blkio_weight
    if weight <= 0:
        return
    if not is_v2:
        has_bfq = read("blkio", "blkio.bfq.weight") is not None
        yield "blkio", "blkio.bfq.weight" if has_bfq else "blkio.weight", str(weight)
    elif read("io", "io.bfq.weight") is not None:
        yield "io", "io.bfq.weight", str(weight)
    else:
        yield "io", "io.weight", str(1 + (weight - 10) * 9999 // 990)

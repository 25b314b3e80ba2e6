# SPDX-License-Identifier: Apache-2.0
"""proa.host.cgroup and its parts on ordinary directories in place of the kernel's trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from proa.host.cgroup import Cgroup, Hierarchies, parse_mountinfo
from proa.host.cgroup_limits import Write, plan, weight_of_shares
from proa.host.cgroup_usage import parse_keyed, parse_limit
from proa.model.errors import InvalidParameter
from proa.model.task import Resources

V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
HYBRID = """31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
42 31 0:39 / /elsewhere rw - cgroup cgroup rw,memory
"""
FULL = Resources(
    memory_bytes=100,
    memory_swap_bytes=150,
    memory_reservation_bytes=50,
    cpu_shares=512,
    cpu_period_us=50_000,
    cpu_quota_us=25_000,
    cpuset_cpus="0-1",
    pids=7,
    blkio_weight=300,
)


def test_layouts_are_told_apart() -> None:
    v2, hybrid = parse_mountinfo(V2), parse_mountinfo(HYBRID)
    assert v2.is_v2
    assert v2.roots == (Path("/sys/fs/cgroup"),)
    assert v2.root_of("memory") == Path("/sys/fs/cgroup")
    assert not hybrid.is_v2
    assert len(hybrid.roots) == 4
    assert hybrid.root_of("cpuacct") == Path("/sys/fs/cgroup/cpu,cpuacct")
    assert hybrid.root_of("memory") == Path("/sys/fs/cgroup/memory")
    assert hybrid.root_of("pids") is None


def _plan(resources: Resources, *, is_v2: bool, reset: bool = False, both: str = "") -> list[Write]:
    present = {"memory.memsw.limit_in_bytes": both}
    return list(plan(resources, is_v2=is_v2, reset=reset, read=lambda _, name: present.get(name)))


def test_limits_of_v1() -> None:
    assert _plan(FULL, is_v2=False, both="9000") == [
        ("memory", "memory.limit_in_bytes", "100"),
        ("memory", "memory.memsw.limit_in_bytes", "150"),
        ("memory", "memory.soft_limit_in_bytes", "50"),
        ("cpu", "cpu.shares", "512"),
        ("cpu", "cpu.cfs_quota_us", "-1"),
        ("cpu", "cpu.cfs_period_us", "50000"),
        ("cpu", "cpu.cfs_quota_us", "25000"),
        ("cpuset", "cpuset.cpus", "0-1"),
        ("pids", "pids.max", "7"),
        ("blkio", "blkio.weight", "300"),
    ]


def test_growing_v1_memory_raises_the_sum_first() -> None:
    names = [name for _, name, _ in _plan(FULL, is_v2=False, both="120")]
    assert names[:2] == ["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"]


def test_limits_of_v2() -> None:
    assert _plan(FULL, is_v2=True) == [
        ("memory", "memory.max", "100"),
        ("memory", "memory.swap.max", "50"),
        ("memory", "memory.low", "50"),
        ("cpu", "cpu.weight", "20"),
        ("cpu", "cpu.max", "25000 50000"),
        ("cpuset", "cpuset.cpus", "0-1"),
        ("pids", "pids.max", "7"),
        ("io", "io.weight", "2930"),
    ]


@pytest.mark.parametrize("is_v2", [True, False])
def test_no_limits_write_nothing_and_reset_lifts_all(is_v2: bool) -> None:
    assert _plan(Resources(), is_v2=is_v2) == []
    lifted = {name: value for _, name, value in _plan(Resources(), is_v2=is_v2, reset=True)}
    assert lifted["pids.max"] == "max"
    assert lifted["memory.max" if is_v2 else "memory.limit_in_bytes"] == ("max" if is_v2 else "-1")
    assert lifted["cpu.max" if is_v2 else "cpu.cfs_quota_us"] == ("max 100000" if is_v2 else "-1")


def test_shares_become_weight_over_the_whole_range() -> None:
    assert [weight_of_shares(shares) for shares in (0, 2, 1024, 262_144, 1 << 30)] == [1, 1, 39, 10000, 10000]


def test_numbers_of_the_kernel() -> None:
    assert parse_keyed("a 1\nb x\n\nc 18\nd") == {"a": 1, "c": 18}
    assert [parse_limit(text) for text in ("max\n", "9223372036854771712", "42\n", None)] == [0, 0, 42, 0]


def test_limits_are_written_and_missing_ones_named(tmp_path: Path) -> None:
    trees = Hierarchies(v1={}, unified=tmp_path)
    group = Cgroup("/proa/x", trees)
    group.create()
    (tmp_path / "proa/x/pids.max").write_text("max")
    group.set_limits(Resources(pids=9, blkio_weight=10))  # the weight is discarded, as docker does
    assert (tmp_path / "proa/x/pids.max").read_text() == "9"
    with pytest.raises(InvalidParameter, match=r"this host cannot set memory.max"):
        group.set_limits(Resources(memory_bytes=1 << 20))


def test_controllers_are_enabled_from_the_root_down(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    (tmp_path / "cgroup.subtree_control").write_text("cpu")
    Cgroup("/x", Hierarchies(v1={}, unified=tmp_path)).create()
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+pids"  # the last of the two writes


def test_usage_of_both_versions(tmp_path: Path) -> None:
    two = tmp_path / "two" / "x"
    two.mkdir(parents=True)
    (two / "cpu.stat").write_text(
        "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_throttled 3\nthrottled_usec 4"
    )
    (two / "memory.current").write_text("4096\n")
    (two / "memory.max").write_text("max\n")
    (two / "memory.stat").write_text("anon 1\ninactive_file 2\n")
    (two / "memory.events").write_text("low 0\noom_kill 2\n")
    (two / "io.stat").write_text("8:0 rbytes=1 wbytes=2 rios=1\n8:16 rbytes=10 wbytes=20\n")
    group = Cgroup("/x", Hierarchies(v1={}, unified=tmp_path / "two"))
    usage = group.usage()
    assert (usage.cpu_total_ns, usage.cpu_user_ns, usage.throttled_ns) == (30_000, 20_000, 4_000)
    assert (usage.memory_usage, usage.memory_limit, usage.read_bytes, usage.write_bytes) == (4096, 0, 11, 22)
    assert usage.memory_stats == {"anon": 1, "inactive_file": 2}
    assert group.oom_kills() == 2

    one = tmp_path / "one" / "x"
    one.mkdir(parents=True)
    (one / "cpuacct.usage").write_text("5000\n")
    (one / "cpuacct.stat").write_text("user 1\nsystem 2\n")
    (one / "blkio.throttle.io_service_bytes").write_text("8:0 Read 7\n8:0 Write 8\nTotal 15\n")
    (one / "pids.max").write_text("12\n")
    (one / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    names = ("cpuacct", "cpu", "memory", "pids", "blkio")
    group = Cgroup("/x", Hierarchies(v1=dict.fromkeys(names, tmp_path / "one"), unified=None))
    usage = group.usage()
    assert (usage.cpu_total_ns, usage.cpu_kernel_ns, usage.pids_limit) == (5000, 20_000_000, 12)
    assert (usage.read_bytes, usage.write_bytes) == (7, 8)
    assert group.oom_kills() == 1


@pytest.mark.parametrize("path", ["", "/", "relative", "/a/../b"])
def test_paths_outside_are_refused(path: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid cgroup path"):
        Cgroup(path, Hierarchies(v1={}, unified=None))

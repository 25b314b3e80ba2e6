# SPDX-License-Identifier: Apache-2.0
"""What is read from the probe and from /proc."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from proa.compare import isolation
from proa.compare.figures import Fact, Measured, Missing, find_row
from proa.compare.footprint import allocated_bytes
from proa.compare.hulls import HULLS, Hull
from proa.compare.instances import RunFailed, interleave
from proa.compare.probing import Look, SyscallCensus, parse_look, parse_results
from proa.compare.processes import HostProcess, behind, proportional_bytes, read_processes, status_field

LOOK = Look(
    kernel_release="6.18",
    kernel_version="#1",
    machine="x86_64",
    boot_id="one",
    uptime_s=5.0,
    hypervisor=False,
    memory_bytes=2**30,
    cpus_online=2,
    processes=3,
    mounts=20,
    kernel_modules=0,
    cgroup="/",
    uid_map="0 0 4294967295",
    capabilities_effective="00000000a80425fb",
    seccomp_mode=2,
    no_new_privileges=False,
    devices=["null", "zero"],
    character_devices=2,
    block_devices=0,
    kcore_readable=False,
    dmesg_readable=True,
    sysrq_writable=False,
    sysctl_writable=False,
    sysfs_writable=False,
    raw_memory_readable=False,
    syscalls=SyscallCensus(tried=366, passed=300, denied=40, missing=26, killed=0),
)


def test_results_are_read_by_measure() -> None:
    output = (
        b'{"measure": "cpu", "value": 5, "unit": "x/s", "method": "m"}\n{"measure": "net", "error": "no"}\n'
    )
    results = parse_results(output)
    assert results["cpu"].value == 5
    assert results["net"].error == "no"


@pytest.mark.parametrize("output", [b"nonsense", b'{"value": 1}', b'{"measure": "cpu", "value": "many"}'])
def test_other_output_is_refused(output: bytes) -> None:
    with pytest.raises(RunFailed, match="cannot be read"):
        parse_results(output)
    with pytest.raises(RunFailed, match="cannot be read"):
        parse_look(output)


def test_docker_default_capabilities_have_their_names() -> None:
    names = isolation.capability_names("00000000a80425fb")
    assert len(names) == 14
    assert {"CHOWN", "NET_RAW", "SETFCAP", "MKNOD", "AUDIT_WRITE"} <= set(names)
    assert isolation.capability_names("000001ffffffffff") == list(isolation.CAPABILITIES)
    assert isolation.capability_names("0") == []


def test_the_kernel_is_told_by_its_boot() -> None:
    inside = msgspec.structs.replace(LOOK)
    own = msgspec.structs.replace(LOOK, boot_id="two", kernel_release="6.1")
    rows = isolation.rows({Hull.CONTAINER: inside, Hull.VM: own}, LOOK)
    kernel = find_row(rows, isolation.ISOLATION, isolation.KERNEL)
    assert kernel is not None
    assert isinstance(kernel.container, Fact) and kernel.container.text == "the host's, 6.18"
    assert isinstance(kernel.vm, Fact) and kernel.vm.text == "its own, 6.1"
    calls = find_row(rows, isolation.SECURITY, isolation.SYSCALLS)
    assert calls is not None and isinstance(calls.vm, Measured)
    assert calls.vm.spread.median == 300 and "40 EPERM" in calls.vm.method


def test_a_hull_that_could_not_be_looked_into_says_why() -> None:
    rows = isolation.rows({Hull.CONTAINER: LOOK, Hull.VM: "no QEMU"}, None)
    assert all(row.vm == Missing(reason="no QEMU") for row in rows)
    assert all(row.host is None for row in rows)


def test_the_processes_behind_a_container() -> None:
    def process(pid: int, parent: int, command: str) -> tuple[int, HostProcess]:
        return pid, HostProcess(pid=pid, parent=parent, name=f"p{pid}", traces=command)

    processes = dict(
        [
            process(1, 0, "init"),
            process(10, 1, "proa daemon"),
            process(20, 1, "conmon -c abc123"),
            process(21, 20, "sleep"),
            process(22, 21, "child"),
            process(30, 1, "conmon -c other"),
            process(31, 30, "sleep"),
        ]
    )
    assert [found.pid for found in behind("abc123", 21, processes)] == [20, 21, 22]
    assert [found.pid for found in behind("unnamed", 31, processes)] == [31]
    assert behind("unnamed", 99, processes) == []


def test_this_process_is_read() -> None:
    found = read_processes()[os.getpid()]
    assert found.parent == os.getppid()
    assert proportional_bytes(os.getpid()) > 2**20
    assert status_field(os.getpid(), "Pid") == str(os.getpid())
    assert status_field(os.getpid(), "Nonsense") == ""


def test_disk_use_counts_blocks_and_not_lengths(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/full").write_bytes(b"x" * 100_000)
    (tmp_path / "loop").symlink_to(tmp_path)
    assert 100_000 <= allocated_bytes(tmp_path) < 1 << 20
    assert allocated_bytes(tmp_path / "absent") == 0


def test_hulls_take_turns() -> None:
    assert [interleave(HULLS, number)[0] for number in range(4)] == [*HULLS, *HULLS]
    assert set(interleave(HULLS, 1)) == set(HULLS)

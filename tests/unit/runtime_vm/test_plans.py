# SPDX-License-Identifier: Apache-2.0
"""Sizes, layouts, keys and records: the pure decisions of the VM hull."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.model.errors import DataLoss, FeatureMissing, InvalidParameter
from proa.model.ids import ContainerId, NetworkId
from proa.model.task import (
    BlockRootfs,
    ExitStatus,
    Interface,
    Mount,
    MountKind,
    NetworkAttachment,
    ProcessSpec,
    Resources,
    Rlimit,
    Security,
    TaskSpec,
)
from proa.runtime.vm import features, home, limits, messages, privileges
from proa.runtime.vm.boot import kernel_arguments
from proa.runtime.vm.disks import SLOT_BYTES, plan_layers
from proa.runtime.vm.machine import MIB, OVERHEAD_BYTES, Shape, memory_for, usable_bytes, vcpus_for
from proa.runtime.vm.protocol import UNLIMITED, Fields, Key
from proa.runtime.vm.template import key_of


def rootfs(layers: tuple[Path, ...]) -> BlockRootfs:
    return BlockRootfs(layers=layers, writable=Path("/w"), blank=Path("/b"), is_new=True)


SPEC = TaskSpec(
    id=ContainerId("ab" * 32),
    hostname="name",
    process=ProcessSpec(args=("sh", "-c", "true"), env=("A=1",), user="1:2", tty=True, console_size=(24, 80)),
    rootfs=rootfs(()),
    log_path=Path("/log"),
)


@given(st.integers(1, 1 << 40))
def test_a_machine_has_room_for_the_limit_and_is_not_twice_as_large(limit: int) -> None:
    size = memory_for(limit, 256 * MIB)
    assert usable_bytes(size) >= limit
    assert size % (32 * MIB) == 0
    assert size <= max(96 * MIB, 1.5 * (limit + OVERHEAD_BYTES))


def test_sizes_are_few() -> None:
    assert memory_for(0, 256 * MIB) == 256 * MIB
    assert {memory_for(mib * MIB, 0) // MIB for mib in range(6, 700)} == {96, 128, 192, 256, 384, 512, 768}


def test_vcpus() -> None:
    assert [vcpus_for(cpus, 2, 8) for cpus in (0, 0.1, 1, 1.5, 7.2, 30)] == [2, 1, 1, 2, 8, 8]


def test_the_key_of_a_template_depends_on_all() -> None:
    shape = Shape(memory_bytes=256 * MIB, vcpus=1, nics=0)
    others = [
        key_of("b", shape),
        key_of("a", replace(shape, memory_bytes=512 * MIB)),
        key_of("a", replace(shape, vcpus=2)),
        key_of("a", replace(shape, nics=1)),
    ]
    assert key_of("a", shape) == key_of("a", shape)
    assert len({key_of("a", shape), *others}) == 5


def test_layers_lie_in_slots(tmp_path: Path) -> None:
    layers = tuple(tmp_path / f"{index},layer" for index in range(2))
    for path in layers:
        path.write_bytes(bytes(4096))
    planned = plan_layers(rootfs(layers), Path("/d.vmdk"))
    assert [(each.offset, each.length) for each in planned.extents] == [(0, 4096), (SLOT_BYTES, 4096)]
    assert f'RW {SLOT_BYTES // 512} FLAT "{layers[1]}" 0\n' in planned.descriptor


def test_what_does_not_fit_the_slots_lies_without_gaps(tmp_path: Path) -> None:
    sizes = (4096, 8192, 512)
    layers = tuple(tmp_path / f"{index},layer" for index in range(3))
    for path, size in zip(layers, sizes, strict=True):
        path.write_bytes(bytes(size))
    many = plan_layers(rootfs(layers * 11), Path("/d.vmdk"))
    assert [(each.offset, each.length) for each in many.extents[:3]] == [
        (0, 4096),
        (4096, 8192),
        (12288, 512),
    ]
    assert many.disk.is_vmdk
    assert f'RW 16 FLAT "{layers[1]}" 0\n' in many.descriptor
    one = plan_layers(rootfs(layers[:1]), Path("/d.vmdk"))
    assert (one.disk.path, one.disk.is_vmdk, one.descriptor) == (layers[0], False, "")
    none = plan_layers(SPEC.rootfs, Path("/d.vmdk"))  # type: ignore[arg-type]  # it is a BlockRootfs
    assert (none.disk.path, none.extents) == (None, ())


def test_layers_that_cannot_be(tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.write_bytes(b"x")
    for layers in ((odd,), (tmp_path / "missing",)):
        with pytest.raises(DataLoss):
            plan_layers(rootfs(layers), Path("/d"))
    odd.write_bytes(bytes(512))
    with pytest.raises(InvalidParameter):
        plan_layers(rootfs((odd,) * 128), Path("/d"))


def test_exit_records() -> None:
    assert home.parse_exit(b"3 0 17\n") == ExitStatus(code=3, finished_at_ns=17)
    assert home.parse_exit(b"junk\n137 1 9\n4 0 1\n") == ExitStatus(
        code=137, finished_at_ns=9, oom_killed=True
    )
    for content in (b"", b"3 0 17", b"256 0 1\n", b"-1 0 1\n", b"1 2 3\n", b"1 0 " + b"9" * 30 + b"\n"):
        assert home.parse_exit(content) is None


@given(st.binary(max_size=80))
def test_any_exit_record_is_a_status_or_nothing(content: bytes) -> None:
    status = home.parse_exit(content)
    assert status is None or 0 <= status.code <= 255


def test_configure_says_all() -> None:
    interface = Interface(
        name="eth0",
        device="tap0",
        network_id=NetworkId("n"),
        mac="02:42:ac:11:00:02",
        address=IPv4Interface("172.17.0.2/16"),
        gateway=IPv4Address("172.17.0.1"),
    )
    spec = replace(
        SPEC,
        network=NetworkAttachment(interfaces=(interface,)),
        mounts=(
            Mount(kind=MountKind.BIND, target="/a", source=Path("/x")),
            Mount(kind=MountKind.TMPFS, target="/t", options=("size=1m",)),
            Mount(kind=MountKind.BIND, target="/b", source=Path("/y"), read_only=True),
        ),
        files={"/etc/hosts": b"h"},
        sysctls={"net.ipv4.ip_forward": "1"},
        resources=Resources(memory_bytes=5, pids=-1),
    )
    payload = messages.configure(spec, layers=(), is_new=True, entropy=b"e" * 64, now_ns=7, machine_id=b"m")
    fields = Fields(payload)
    assert (fields.text(Key.LAYERS_DISK), fields.text(Key.WRITABLE_DISK)) == ("vda", "vdb")
    assert fields.data(Key.ENTROPY) == b"e" * 64
    assert (fields.number(Key.MEMORY_MAX), fields.number(Key.PIDS_MAX)) == (5, 0)
    (nic,) = fields.groups(Key.INTERFACE)
    assert nic.data(Key.IF_MAC) == bytes.fromhex("0242ac110002")
    assert (nic.text(Key.IF_ADDRESS), nic.text(Key.IF_GATEWAY)) == ("172.17.0.2/16", "172.17.0.1")
    assert [(each.number(Key.KIND), each.text(Key.SOURCE)) for each in fields.groups(Key.MOUNT)] == [
        (2, "0"),
        (1, ""),
        (2, "1"),
    ]
    assert [each.text(Key.PATH) for each in fields.groups(Key.FILE)] == ["/etc/hosts", "/etc/machine-id"]


def test_start_says_all() -> None:
    spec = replace(
        SPEC, rlimits=(Rlimit(name="nofile", soft=-1, hard=-1), Rlimit(name="core", soft=0, hard=-1))
    )
    fields = Fields(messages.start(spec, credit=99, is_prepared=False))
    assert fields.all_data(Key.ARG) == [b"sh", b"-c", b"true"]
    assert (fields.number(Key.ROWS), fields.number(Key.COLUMNS)) == (24, 80)
    assert (fields.number(Key.ATTACHED), fields.number(Key.CREDIT_STDERR)) == (1, 99)
    assert fields.number(Key.CAPABILITIES) == 0xA80425FB  # Docker's default set
    assert b"/proc/kcore" in fields.all_data(Key.MASKED_PATH)
    limits_sent = [
        (each.number(Key.RESOURCE), each.number(Key.SOFT), each.number(Key.HARD))
        for each in fields.groups(Key.RLIMIT)
    ]
    assert limits_sent == [(7, 1_048_576, 1_048_576), (4, 0, UNLIMITED)]
    free = Fields(
        messages.start(replace(spec, security=Security(privileged=True)), credit=None, is_prepared=False)
    )
    assert free.number(Key.CAPABILITIES) == privileges.ALL_CAPABILITIES == 0x1FFFFFFFFFF
    assert free.all_data(Key.MASKED_PATH) == []
    assert Key.ATTACHED not in free
    prepared = Fields(messages.start(spec, credit=None, is_prepared=True))
    assert prepared.all_data(Key.MASKED_PATH) == prepared.all_data(Key.READONLY_PATH) == []
    assert b"/proc/kcore" in Fields(messages.prepare((), now_ns=1)).all_data(Key.MASKED_PATH)


def test_capabilities_are_added_and_dropped() -> None:
    mask = privileges.capability_mask
    assert mask(Security(cap_drop=("ALL",), cap_add=("CAP_NET_ADMIN",))) == 1 << 12
    assert mask(Security(cap_add=("all",), cap_drop=("CHOWN",))) == privileges.ALL_CAPABILITIES - 1
    with pytest.raises(InvalidParameter):
        mask(Security(cap_add=("CAP_NONSENSE",)))


def test_what_is_refused() -> None:
    features.check(SPEC)
    bind = Mount(kind=MountKind.BIND, target="/a", source=Path("/x"), options=("rshared",))
    with pytest.raises(FeatureMissing):
        features.check(replace(SPEC, mounts=(bind,)))
    assert all(name.startswith("HostConfig.") for name in features.REFUSED)


def test_limits_around_qemu() -> None:
    assert limits.around_qemu(Resources(), 1) is None
    assert limits.around_qemu(Resources(cpu_quota_us=200_000, memory_bytes=9, pids=3), 2) is None
    half = limits.around_qemu(Resources(cpu_quota_us=50_000, cpu_shares=7), 1)
    assert half == Resources(cpu_quota_us=50_000, cpu_shares=7)
    assert limits.path_for(replace(SPEC, cgroup_parent="mine/")) == f"/mine/{SPEC.id}"
    with pytest.raises(FeatureMissing):
        limits.check_update(Resources(cpu_quota_us=110_000), memory_bytes=256 * MIB, vcpus=1)
    with pytest.raises(FeatureMissing):
        limits.check_update(Resources(memory_bytes=193 * MIB), memory_bytes=256 * MIB, vcpus=1)
    limits.check_update(Resources(memory_bytes=192 * MIB), memory_bytes=256 * MIB, vcpus=1)


def test_only_emulated_guests_are_told_the_counter() -> None:
    assert "tsc_early_khz=2000" in kernel_arguments("tcg", 2000)
    assert "tsc_early_khz" not in kernel_arguments("kvm", 2000)
    assert "mitigations" not in kernel_arguments("kvm", 2000)

# SPDX-License-Identifier: Apache-2.0
"""Which machines wait, and when there is memory for them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from proa.runtime.vm import pool, rehearsal
from proa.runtime.vm.clone import Tools
from proa.runtime.vm.image_template import ImageTemplate
from proa.runtime.vm.machine import Shape
from proa.runtime.vm.pool import Pool, has_memory_for, is_memory_short
from proa.runtime.vm.pooled import Kind
from proa.runtime.vm.protocol import Fields, Key

GIB = 1 << 30
SHAPE = Shape(memory_bytes=256 << 20, vcpus=1, nics=2)


def kind(name: str) -> Kind:
    directory = Path("/t") / name
    template = ImageTemplate(
        memory_file=directory / "mem", state_file=directory / "state", new_disk=directory / "new"
    )
    return Kind(template=template, shape=SHAPE, layers=(Path("/l") / name,), blank=Path("/blank"))


def pool_of(size: int) -> Pool:
    tools = Tools(qemu=Path("/q"), fs_server=Path("/f"), accelerator="kvm", qemu_version="7.2.0")
    return Pool(size, tools=tools, exec_root=Path("/x"), root=Path("/p"))


@pytest.mark.parametrize(
    ("size", "uses", "wanted"),
    [(2, "", ""), (2, "a", "aa"), (2, "ab", "ba"), (2, "abca", "ac"), (3, "ab", "bab"), (0, "ab", "")],
)
def test_those_used_last_share_the_places(
    size: int, uses: Sequence[str], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    subject = pool_of(size)
    for name in uses:
        subject.note_use(kind(name), "true")
    assert subject._wanted() == [kind(name) for name in wanted]


@pytest.mark.parametrize(
    ("available", "short", "room"),
    [(9 * GIB, False, True), (1.6 * GIB, False, False), (0.5 * GIB, True, False)],
)
def test_memory_decides(available: float, short: bool, room: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_read_memory", lambda: (int(available), 16 * GIB))
    monkeypatch.setattr(pool, "_read_pressure", lambda: 0.0)
    assert (is_memory_short(), has_memory_for(GIB // 16)) == (short, room)


def test_pressure_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_read_memory", lambda: (9 * GIB, 16 * GIB))
    monkeypatch.setattr(pool, "_read_pressure", lambda: 30.0)
    assert is_memory_short()
    assert not has_memory_for(1)


def test_a_rehearsal_has_an_interface_for_each_nic_and_leaves_shm_alone() -> None:
    rootfs = kind("a").rootfs_of(Path("/d"))
    fields = Fields(rehearsal.rehearse(SHAPE, "sh", rootfs, entropy=b"e" * 64, now_ns=1))
    assert [each.text(Key.IF_NAME) for each in fields.groups(Key.INTERFACE)] == ["eth0", "eth1"]
    assert fields.number(Key.SHM_SIZE) == 0
    assert fields.all_data(Key.ARG) == [b"/proc/self/exe", b"rehearse", b"sh"]

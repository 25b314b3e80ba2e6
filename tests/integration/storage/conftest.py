# SPDX-License-Identifier: Apache-2.0
"""Stores below temporary directories, with what they must not leave behind counted."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from proa.host.database import Database
from proa.host.mount import mount_table
from proa.model.ids import Digest
from proa.storage.layers import LayerLimits, Layers
from proa.storage.rootfs import Roots
from proa.storage.volumes import Volumes

LIMITS = LayerLimits(max_bytes=64 << 20, max_inodes=5000, memory_bytes=1 << 30, time_s=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """All of storage under ``base``."""

    base: Path
    layers: Layers
    roots: Roots
    volumes: Volumes

    async def add(self, tar: bytes) -> Digest:
        blob = self.base / "blob"
        blob.write_bytes(tar)
        return (await self.layers.add(blob)).diff_id

    def mounts(self) -> list[Path]:
        return [info.mount_point for info in mount_table() if info.mount_point.is_relative_to(self.base)]


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    open_files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # names only, without opening more
    yield tmp_path
    left = [info.mount_point for info in mount_table() if info.mount_point.is_relative_to(tmp_path)]
    assert left == []
    loops = [path for path in Path("/sys/block").glob("loop*/loop/backing_file") if _is_below(path, tmp_path)]
    assert loops == []
    assert len(os.listdir("/proc/self/fd")) == open_files  # noqa: PTH208


@pytest.fixture
async def store(base: Path) -> AsyncIterator[Store]:
    with Database(base / "engine.db") as db:
        layers = Layers(base / "layers", exec_root=base / "run", limits=LIMITS)
        async with anyio.create_task_group() as tasks:
            yield Store(
                base=base,
                layers=layers,
                roots=Roots(
                    containers=base / "containers", exec_root=base / "run", layers=layers, tasks=tasks
                ),
                volumes=Volumes(db, base / "volumes", layers=layers),
            )
        await layers.unmount_unused()


def _is_below(path: Path, base: Path) -> bool:
    try:
        return path.read_text().startswith(str(base))
    except OSError:
        return False

# SPDX-License-Identifier: Apache-2.0
"""A VM runtime below a temporary directory, with busybox as its image. The session shares its templates."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup

from proa.host.cgroup import get_hierarchies
from proa.model.ids import ContainerId, new_id
from proa.model.task import BlockRootfs, ExitStatus, ProcessSpec, TaskSpec
from proa.runtime.seam import Stdio, StreamId, Task
from proa.runtime.vm.accel import TCG, Accelerator, find_qemu, qemu_version
from proa.runtime.vm.runtime import VmRuntime
from proa.storage.disks import Disks
from proa.storage.layers import Layers
from tests.support.templates import shared_templates

LIB = Path(os.environ.get("PROA_TEST_LIB") or Path(sys.prefix) / "lib" / "proa")
MIB = 1024 * 1024
NEEDED = ("kernel/vmlinuz", "initramfs.cpio", "busybox.tar", "fs-server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where VMs are made."""

    base: Path
    runtime: VmRuntime
    layer: Path
    tasks: TaskGroup
    settings: dict[str, Any] = field(default_factory=dict)  # Any: keywords of VmRuntime

    async def spec(self, *args: str, process: dict[str, Any] | None = None, **more: Any) -> TaskSpec:
        """A container of the busybox image that runs ``args``. Any: fields of ProcessSpec and TaskSpec."""
        container_id = ContainerId(new_id())
        writable = self.base / f"{container_id[:12]}.ext4"
        disks = Disks(self.base, size_bytes=256 * MIB)
        await disks.make(writable)
        blank = await disks.ensure_blank()
        more.setdefault(
            "rootfs", BlockRootfs(layers=(self.layer,), writable=writable, blank=blank, is_new=True)
        )
        return TaskSpec(
            id=container_id,
            hostname=container_id[:12],
            process=ProcessSpec(args=args, **(process or {})),
            log_path=self.base / f"{container_id[:12]}.log",
            **more,
        )

    async def create(self, *args: str, process: dict[str, Any] | None = None, **more: Any) -> Task:
        return await self.runtime.create(await self.spec(*args, process=process, **more))

    async def run(self, *args: str, **more: Any) -> tuple[int, bytes, bytes]:
        """Run to the end; return exit code, stdout, stderr."""
        task = await self.create(*args, **more)
        try:
            stdio = await task.attach()
            await task.start()
            out, err = await read_all(stdio)
            status = await task.wait()
            await stdio.aclose()
        finally:
            await task.delete()
        return status.code, out, err

    def log(self, task: Task) -> str:
        return (self.base / f"{task.id[:12]}.log").read_text()


async def read_all(stdio: Stdio) -> tuple[bytes, bytes]:
    """Read to the end; return stdout and stderr."""
    parts = {StreamId.STDOUT: bytearray(), StreamId.STDERR: bytearray()}
    with anyio.fail_after(60):
        try:
            while True:
                stream, data = await stdio.receive()
                parts[stream] += data
        except anyio.EndOfStream:
            return bytes(parts[StreamId.STDOUT]), bytes(parts[StreamId.STDERR])


async def read_until(stdio: Stdio, wanted: bytes) -> bytes:
    """Read until ``wanted`` has come."""
    found = bytearray()
    with anyio.fail_after(30):
        while wanted not in found:
            found += (await stdio.receive())[1]
    return bytes(found)


async def end_of(task: Task) -> ExitStatus:
    with anyio.fail_after(60):
        return await task.wait()


@pytest.fixture(scope="session")
def templates() -> Path:
    """Templates that the whole session shares."""
    if os.geteuid() != 0 or shutil.which("qemu-system-x86_64") is None:
        pytest.skip("needs root and QEMU")
    missing = [name for name in NEEDED if not (LIB / name).exists()]
    if missing:
        pytest.skip(f"make setup has not been run: {', '.join(missing)} missing in {LIB}")
    return shared_templates()


@pytest.fixture
async def stage(templates: Path) -> AsyncIterator[Stage]:
    fds = open_files()
    accelerator = Accelerator(
        name=TCG, reason="tests", qemu=find_qemu(), qemu_version=await qemu_version(find_qemu())
    )
    # Not tmp_path: the paths of unix sockets may have 107 characters only.
    with tempfile.TemporaryDirectory(prefix="pvm-") as name:
        base = Path(name)
        layers = Layers(base / "layers", exec_root=base / "run")
        layer = layers.get_path((await layers.add(busybox_layer(base))).diff_id)
        async with anyio.create_task_group() as tasks:
            settings: dict[str, Any] = {  # Any: keywords of VmRuntime
                "lib": LIB,
                "templates": templates,
                "exec_root": base / "x",
                "tasks": tasks,
                "kernel": None,
                "default_memory_bytes": 128 * MIB,
                "default_vcpus": 1,
                "accelerator": accelerator,
                "pool_size": 0,
                "pool_root": base / "pool",
            }
            stage = Stage(
                base=base, runtime=VmRuntime(**settings), layer=layer, tasks=tasks, settings=settings
            )
            try:
                yield stage
            finally:
                left = list((base / "x").glob("*")) if (base / "x").exists() else []
                for each in left:
                    await stage.runtime.forget(ContainerId(each.name))
                tasks.cancel_scope.cancel()
        assert left == [], "directories of VMs were left behind"
        assert processes_with(name) == [], "processes were left behind"
        assert cgroups_of(left) == []
        assert open_files() == fds


def busybox_layer(base: Path) -> Path:
    """Take the one layer out of the built-in image."""
    with tarfile.open(LIB / "busybox.tar") as image:
        manifest = image.extractfile("manifest.json")
        assert manifest is not None
        (name,) = json.load(manifest)[0]["Layers"]
        layer = image.extractfile(name)
        assert layer is not None
        path = base / "busybox-layer"
        path.write_bytes(layer.read())
    return path


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # names only, without opening more


def processes_with(text: str) -> list[int]:
    """Pids of processes that have ``text`` in their command line, ourselves excepted."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def cgroups_of(homes: list[Path]) -> list[Path]:
    return [
        root / "proa" / home.name
        for root in get_hierarchies().roots
        for home in homes
        if (root / "proa" / home.name).exists()
    ]

# SPDX-License-Identifier: Apache-2.0
"""The runtimes under the contract: each on ground of its own, with the built-in image as root file system."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest
from anyio.abc import TaskGroup

from proa.host.cgroup import ensure_hierarchies
from proa.model.ids import ContainerId, new_id
from proa.model.task import BlockRootfs, DirectoryRootfs, ProcessSpec, Rootfs, TaskSpec
from proa.runtime.oci.runtime import OciRuntime
from proa.runtime.seam import Runtime
from proa.runtime.vm.accel import TCG, Accelerator, find_qemu, qemu_version
from proa.runtime.vm.runtime import VmRuntime
from proa.storage.disks import Disks
from proa.storage.layers import Layers
from tests.contract.programs import PROGRAMS, UNKNOWN, Program
from tests.support.fake_runtime import FakeRuntime, World
from tests.support.images import layers_of
from tests.support.templates import ENV_TEMPLATES, shared_templates

LIB = Path(sys.prefix) / "lib" / "proa"
ID_LENGTH = 64
MIB = 1024 * 1024
PATIENCE_S = 120.0  # a template is booted on a busy host
NAMES = ("fake", "crun", "runc", "vm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A task that a dead daemon started."""

    id: ContainerId
    pid: int
    log_path: Path


class Hull(ABC):
    """A runtime and the ground it stands on. ``restart`` is the daemon's death and its successor's start."""

    runtime: Runtime

    def __init__(self, name: str, base: Path, root: Path) -> None:
        self.name = name
        self.base = base
        self.root = root

    @abstractmethod
    def make_runtime(self, tasks: TaskGroup) -> Runtime:
        """Return the runtime of one daemon."""

    @abstractmethod
    async def rootfs(self, container_id: ContainerId) -> Rootfs: ...

    @abstractmethod
    def remains(self) -> list[str]:
        """Name what tasks have left behind, their ids first."""

    async def clean(self) -> list[str]:
        """Clean up what a failed test has left; return what that was."""
        left = self.remains()
        async with self.daemon() as runtime:
            for identifier in left:
                if len(identifier) == ID_LENGTH:
                    await runtime.forget(ContainerId(identifier))
        return left

    async def leave(self, program: Program) -> Left:
        """Let a daemon start a task and die of SIGKILL."""
        arguments = (self.name, self.base, self.root, PROGRAMS.index(program))
        command = [sys.executable, "-m", "tests.contract.doomed", *map(str, arguments)]
        env = {**os.environ, ENV_TEMPLATES: str(shared_templates())}
        async with await anyio.open_process(command, stdin=None, stderr=None, env=env) as child:
            assert child.stdout is not None
            line = b""
            with anyio.fail_after(PATIENCE_S):
                while not line.endswith(b"\n"):
                    line += await child.stdout.receive()
            child.kill()
            await child.wait()
        container_id, pid, log_path = line.decode().split()
        return Left(id=ContainerId(container_id), pid=int(pid), log_path=Path(log_path))

    @asynccontextmanager
    async def daemon(self) -> AsyncIterator[Runtime]:
        """The runtime of one daemon, for the span of the block; its tasks go on after it."""
        async with anyio.create_task_group() as tasks:
            self.runtime = self.make_runtime(tasks)
            try:
                yield self.runtime
            finally:
                tasks.cancel_scope.cancel()

    async def spec(self, program: Program, **process: object) -> TaskSpec:
        container_id = ContainerId(new_id())
        return TaskSpec(
            id=container_id,
            hostname="box",
            process=ProcessSpec(args=program.args, **process),  # type: ignore[arg-type]
            rootfs=await self.rootfs(container_id),
            log_path=self.base / f"{container_id[:12]}.log",
        )


class FakeHull(Hull):
    def __init__(self, base: Path, root: Path, tasks: TaskGroup) -> None:
        super().__init__("fake", base, root)
        self._world = World(tasks)
        self._world.programs.update({program.args: program.double for program in PROGRAMS})
        self._world.unknown.update(UNKNOWN)

    def make_runtime(self, tasks: TaskGroup) -> Runtime:
        return FakeRuntime(self._world)

    async def rootfs(self, container_id: ContainerId) -> Rootfs:
        return DirectoryRootfs(path=self.base)

    async def leave(self, program: Program) -> Left:
        async with self.daemon() as runtime:
            spec = await self.spec(program)
            task = await runtime.create(spec)
            await task.start()
            return Left(id=spec.id, pid=task.pid, log_path=spec.log_path)

    def remains(self) -> list[str]:
        return list(self._world.traces)


class OciHull(Hull):
    def make_runtime(self, tasks: TaskGroup) -> Runtime:
        return OciRuntime(
            name=self.name,
            binary=Path(shutil.which(self.name) or self.name),
            conmon=Path(shutil.which("conmon") or "conmon"),
            exec_root=self.base / "x",
            tasks=tasks,
            seccomp_profile=Path("/usr/share/containers/seccomp.json"),
            init=Path("/usr/bin/tini-static"),
        )

    async def rootfs(self, container_id: ContainerId) -> Rootfs:
        return DirectoryRootfs(path=self.root)

    def remains(self) -> list[str]:
        bundles = [path.name for path in (self.base / "x").iterdir() if not path.name.startswith(".")]
        states = [path.name for path in (self.base / "x").glob(".*/*")]
        return [*bundles, *states, *_processes(str(self.base))]


class VmHull(Hull):
    def __init__(self, base: Path, root: Path, accelerator: Accelerator) -> None:
        super().__init__("vm", base, root)
        self._accelerator = accelerator
        self._layers = Layers(base / "layers", exec_root=base / "run")

    def make_runtime(self, tasks: TaskGroup) -> Runtime:
        return VmRuntime(
            lib=LIB,
            templates=shared_templates(),
            exec_root=self.base / "x",
            tasks=tasks,
            kernel=None,
            default_memory_bytes=192 * MIB,
            default_vcpus=1,
            accelerator=self._accelerator,
            pool_size=0,
            pool_root=self.base / "pool",
        )

    async def rootfs(self, container_id: ContainerId) -> Rootfs:
        writable = self.base / f"{container_id[:12]}.ext4"
        disks = Disks(self.base, size_bytes=256 * MIB)
        await disks.make(writable)
        blank = await disks.ensure_blank()
        added = [await self._layers.add(blob) for blob in layers_of(LIB / "busybox.tar", self.base)]
        layers = tuple(self._layers.get_path(layer.diff_id) for layer in added)
        return BlockRootfs(layers=layers, writable=writable, blank=blank, is_new=True)

    def remains(self) -> list[str]:
        homes = [path.name for path in (self.base / "x").glob("*")]
        return [*homes, *_processes(str(self.base))]


@asynccontextmanager
async def open_hull(name: str, base: Path, root: Path) -> AsyncIterator[Hull]:
    """Open the ground of a runtime; after the block nothing may be left of any task."""
    async with anyio.create_task_group() as tasks:
        hull: Hull
        if name == "fake":
            hull = FakeHull(base, root, tasks)
        elif name == "vm":
            qemu = find_qemu()
            hull = VmHull(
                base,
                root,
                Accelerator(name=TCG, reason="tests", qemu=qemu, qemu_version=await qemu_version(qemu)),
            )
        else:
            await ensure_hierarchies()
            hull = OciHull(name, base, root)
        try:
            yield hull
        finally:
            tasks.cancel_scope.cancel()


def unpack_root(target: Path) -> Path:
    """Unpack the built-in image's layers: a root file system for the runtimes that take a directory."""
    target.chmod(0o755)  # it is "/" to users inside
    for blob in layers_of(LIB / "busybox.tar", target.parent):
        with tarfile.open(blob) as layer:
            layer.extractall(target, filter="fully_trusted")  # made by ourselves
    return target


def skip_without(name: str) -> None:
    """Skip when this machine lacks what the runtime needs."""
    tools = {"fake": [], "crun": ["crun", "conmon"], "runc": ["runc", "conmon"], "vm": ["qemu-system-x86_64"]}
    missing = [tool for tool in tools[name] if shutil.which(tool) is None]
    if name != "fake" and not (LIB / "busybox.tar").exists():
        missing.append("make setup")
    if missing or (name != "fake" and os.geteuid() != 0):
        pytest.skip(f"needs root and {', '.join(missing) or 'nothing else'}")


def _processes(text: str) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if text in line and not line.startswith("ps ")]

# SPDX-License-Identifier: Apache-2.0
"""Containers of a busybox directory with the real crun and runc. Needs root; leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import pytest
from anyio.abc import TaskGroup

from proa.host.cgroup import ensure_hierarchies
from proa.model.ids import ContainerId, new_id
from proa.model.task import DirectoryRootfs, ProcessSpec, TaskSpec
from proa.runtime.oci.runtime import OciRuntime
from proa.runtime.oci.task import OciTask
from proa.runtime.seam import Stdio, StreamId

BUSYBOX = Path("/bin/busybox")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in ("conmon", "crun", "runc") if shutil.which(name) is None]
    if os.geteuid() == 0 and BUSYBOX.exists() and not missing:
        return
    for item in items:
        if "integration/oci" in str(item.path):
            item.add_marker(pytest.mark.skip(reason="needs root, busybox-static, conmon, crun and runc"))


@pytest.fixture(scope="session")
def busybox_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("busybox")
    root.chmod(0o755)  # it is "/" to users inside
    for name in ("bin", "etc", "tmp", "root", "home/joe", "data"):
        (root / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for name in subprocess.check_output([BUSYBOX, "--list"], text=True).split():
        if name != "busybox":
            (root / "bin" / name).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\njoe:x:1000:100:Joe:/home/joe:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nusers:x:100:\nextra:x:55:joe\naudio:x:29:\n")
    (root / "bin/notexec").write_text("#!/bin/sh\n")
    (root / "bin/notexec").chmod(0o644)
    return root


@pytest.fixture
def exec_root() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="proa-oci-", dir="/run"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@dataclass
class Hull:
    """A runtime on a root file system, with what most tests do."""

    runtime: OciRuntime
    rootfs: Path
    logs: Path
    exec_root: Path
    tasks: TaskGroup
    made: list[OciTask] = field(default_factory=list)

    def spec(self, *args: str, process: ProcessSpec | None = None, **changes: object) -> TaskSpec:
        identifier = ContainerId(new_id())
        spec = TaskSpec(
            id=identifier,
            hostname="box",
            process=process or ProcessSpec(args=args),
            rootfs=DirectoryRootfs(path=self.rootfs),
            log_path=self.logs / f"{identifier}.log",
        )
        return replace(spec, **changes)  # type: ignore[arg-type]  # named by the tests

    async def create(self, spec: TaskSpec) -> OciTask:
        task = await self.runtime.create(spec)
        self.made.append(task)
        return task

    async def start(self, spec: TaskSpec) -> OciTask:
        task = await self.create(spec)
        await task.start()
        return task

    async def output_of(self, spec: TaskSpec) -> tuple[int, str]:
        """Run to the end; return the exit code and all output, as attached."""
        task = await self.create(spec)
        stdio = await task.attach()
        await task.start()
        text = await read_all(stdio)
        status = await task.wait()
        await stdio.aclose()
        await task.delete()
        return status.code, text

    async def run(self, *args: str, **changes: object) -> tuple[int, str]:
        return await self.output_of(replace(self.spec(*args), **changes))  # type: ignore[arg-type]

    def later_engine(self) -> OciRuntime:
        """The runtime as an engine started later makes it."""
        return make_runtime(self.runtime.name, self.exec_root, self.tasks)


def make_runtime(name: str, exec_root: Path, tasks: TaskGroup) -> OciRuntime:
    binary, conmon = shutil.which(name), shutil.which("conmon")
    assert binary
    assert conmon
    return OciRuntime(
        name=name,
        binary=Path(binary),
        conmon=Path(conmon),
        exec_root=exec_root,
        tasks=tasks,
        seccomp_profile=Path("/usr/share/containers/seccomp.json"),
        init=Path("/usr/bin/tini-static"),
    )


@pytest.fixture(params=["crun", "runc"])
async def hull(
    request: pytest.FixtureRequest, busybox_root: Path, exec_root: Path, tmp_path: Path
) -> AsyncIterator[Hull]:
    await ensure_hierarchies()
    async with anyio.create_task_group() as tasks:
        runtime = make_runtime(request.param, exec_root, tasks)
        hull = Hull(runtime, busybox_root, tmp_path, exec_root, tasks)
        yield hull
        for task in hull.made:
            await task.delete()
        assert sorted(path.name for path in exec_root.iterdir() if not path.name.startswith(".")) == []
        assert [path for state in exec_root.glob(".*") for path in state.iterdir()] == []
        tasks.cancel_scope.cancel()


async def read_all(stdio: Stdio, *, only: StreamId | None = None) -> str:
    """Read to the end."""
    found = b""
    with anyio.fail_after(20):
        try:
            while True:
                stream, data = await stdio.receive()
                if only in (None, stream):
                    found += data
        except anyio.EndOfStream:
            return found.decode()


async def read_until(stdio: Stdio, text: str) -> str:
    """Read until the text has come."""
    found = b""
    with anyio.fail_after(20):
        while text.encode() not in found:
            found += (await stdio.receive())[1]
    return found.decode()

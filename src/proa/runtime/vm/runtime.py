# SPDX-License-Identifier: Apache-2.0
"""The VM hull's ``Runtime``: makes clones, finds those of an earlier daemon, cleans up after the dead.

Source: proa.runtime.seam.Runtime.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskGroup

from proa.model.errors import EngineError, InvalidParameter, Unavailable
from proa.model.ids import ContainerId
from proa.model.task import BlockRootfs, TaskSpec
from proa.runtime.seam import Features, Task
from proa.runtime.vm import features, limits, nics, saving
from proa.runtime.vm.accel import Accelerator, guest_of
from proa.runtime.vm.clone import Clone, Tools, make_clone
from proa.runtime.vm.forking import Original, make_fork
from proa.runtime.vm.guest import Guest
from proa.runtime.vm.home import Home, Pid, Record
from proa.runtime.vm.image_template import ImageTemplate, ImageTemplates
from proa.runtime.vm.kernels import Choice, Kernels, parse_choice, with_modules
from proa.runtime.vm.machine import Shape, memory_for, vcpus_for
from proa.runtime.vm.pods.runtime import PodRuntime
from proa.runtime.vm.pool import Pool
from proa.runtime.vm.pooled import Kind
from proa.runtime.vm.qemu import Console, HostProcess
from proa.runtime.vm.task import FIND_TIMEOUT_S, VmTask
from proa.runtime.vm.template import Template, Templates

log = logging.getLogger(__name__)

TEMPLATE_ANNOTATION = "proa.vm.template"  # HostConfig.Annotations: "off" boots a kernel for this start alone
_FIND_TIMEOUT_S = 2 * FIND_TIMEOUT_S  # two questions to the guest


class VmRuntime:
    """Containers as QEMU machines.

    :param lib: where the guest kernel, the initramfs and fs-server are installed.
    :param templates: directory of the memory templates.
    :param exec_root: a directory for each VM is made here; keep it short (unix sockets).
    :param tasks: owns the supervision of every VM.
    :param pool_size: machines that may wait for containers; ``pool_root`` is for their disks, on the file
        system of the containers'.
    :param kernel: another guest kernel than the one in ``lib``; it must fit the modules in the initramfs.
    """

    def __init__(
        self,
        *,
        lib: Path,
        templates: Path,
        exec_root: Path,
        tasks: TaskGroup,
        kernel: Path | None,
        default_memory_bytes: int,
        default_vcpus: int,
        accelerator: Accelerator,
        pool_size: int,
        pool_root: Path,
    ) -> None:
        self._tools = Tools(
            qemu=accelerator.qemu,
            fs_server=lib / "fs-server",
            accelerator=accelerator.name,
            qemu_version=accelerator.qemu_version,
        )
        self._origin = saving.origin_of(accelerator.name, accelerator.qemu_version)
        guest = guest_of(lib, kernel, qemu=accelerator.qemu, accelerator=accelerator.name)
        self._templates = Templates(templates, guest, accelerator.qemu_version)
        self._kernels = Kernels(templates, guest, accelerator.qemu_version)
        self._modules_of = lib if kernel is None else None
        self._image_templates = ImageTemplates(
            templates,
            self._templates,
            qemu=accelerator.qemu,
            accelerator=accelerator.name,
            qemu_version=accelerator.qemu_version,
            tasks=tasks,
            made=lambda template, shape, rootfs: self._pool.note_use(_kind_of(template, shape, rootfs), ""),
        )
        self._pool = Pool(pool_size, tools=self._tools, exec_root=exec_root, root=pool_root)
        self._pool.keep_in(tasks)
        self._exec_root = exec_root
        self._tasks = tasks
        self._default_memory_bytes = default_memory_bytes
        self._default_vcpus = default_vcpus
        self._shared = PodRuntime(
            templates=self._templates, tools=self._tools, exec_root=exec_root, tasks=tasks
        )

    @property
    def shared(self) -> PodRuntime:
        """The runtime of containers that share a machine; made from the same templates."""
        return self._shared

    @property
    def name(self) -> str:
        return features.NAME

    @property
    def features(self) -> Features:
        return features.FEATURES

    async def create(self, spec: TaskSpec) -> Task:
        features.check(spec)
        rootfs = spec.rootfs
        if not isinstance(rootfs, BlockRootfs):
            raise InvalidParameter("a virtual machine needs its root file system as block devices")
        nics.check_number(len(spec.network.interfaces))
        self._check_taps(spec)
        choice = parse_choice(spec.annotations)
        if spec.security.privileged and self._modules_of is not None and choice.kernel is None:
            spec = with_modules(spec, self._modules_of)
        shape = self._shape(spec.resources.memory_bytes, spec.resources.cpus, len(spec.network.interfaces))
        home = Home(self._exec_root, spec.id)
        async with AsyncExitStack() as templates, AsyncExitStack() as undo:
            template = await templates.enter_async_context(self._open_template(spec, rootfs, shape, choice))
            home.create()
            undo.callback(home.remove)
            clone = await self._claim(spec, shape, template, home)
            if clone is None:
                clone = await make_clone(spec, shape, template, self._tools, home, undo)
            undo.pop_all()
        return self._supervised(VmTask(spec.id, clone, home, spec))

    async def fork(self, source: Task, spec: TaskSpec) -> Task:
        features.check(spec)
        if not isinstance(source, VmTask) or not isinstance(spec.rootfs, BlockRootfs):
            raise InvalidParameter("only a virtual machine can become another one")
        self._check_taps(spec)
        home = Home(self._exec_root, spec.id)
        async with AsyncExitStack() as undo:
            home.create()
            undo.callback(home.remove)
            original = Original(clone=source.clone, home=source.home)
            clone = await make_fork(original, spec, self._tools, home, undo)
            undo.pop_all()
        return self._supervised(VmTask(spec.id, clone, home, None))

    async def save(self, source: Task, directory: Path) -> Mapping[str, Any]:  # Any: as in the seam
        if not isinstance(source, VmTask):
            raise InvalidParameter("only a virtual machine can be saved")
        original = Original(clone=source.clone, home=source.home)
        return await saving.save(original, directory, self._origin)

    async def load(
        self, directory: Path, machine: Mapping[str, Any], spec: TaskSpec
    ) -> Task:  # Any: as above
        features.check(spec)
        if not isinstance(spec.rootfs, BlockRootfs):
            raise InvalidParameter("a virtual machine needs its root file system as block devices")
        self._check_taps(spec)
        home = Home(self._exec_root, spec.id)
        async with AsyncExitStack() as undo:
            home.create()
            undo.callback(home.remove)
            clone = await saving.load(directory, machine, self._origin, spec, self._tools, home, undo)
            undo.pop_all()
        return self._supervised(VmTask(spec.id, clone, home, None))

    async def find(self, container_id: ContainerId) -> Task | None:
        home = Home(self._exec_root, container_id)
        record = home.read()
        if record is None:
            return None
        if record.is_unfinished:
            await self.forget(container_id)
            return None
        process = _find_process(record.qemu)
        if process is None:
            ended = _clone_of(home, record, HostProcess.ended(record.qemu.pid))
            ended.guest.main.link_down()
            return self._supervised(VmTask(container_id, ended, home, None))
        clone = _clone_of(home, record, process)
        task = VmTask(container_id, clone, home, None)
        try:
            await clone.console.connect(home.path)
            with anyio.fail_after(_FIND_TIMEOUT_S):
                has_begun = await task.take_up()
        except (EngineError, TimeoutError):
            has_begun = True  # it runs but does not answer: it can still be waited for, and killed
        if not has_begun:
            await task.delete()
            return None
        return self._supervised(task)

    async def forget(self, container_id: ContainerId) -> None:
        home = Home(self._exec_root, container_id)
        record = home.read()
        with anyio.CancelScope(shield=True):
            if record is not None:
                for pid in (record.qemu, record.fs_server):
                    process = _find_process(pid)
                    if process is not None:
                        await process.end()
                        process.close()
                await limits.remove(record.cgroup)
            home.remove()

    # --- machinery ---

    @asynccontextmanager
    async def _open_template(
        self, spec: TaskSpec, rootfs: BlockRootfs, shape: Shape, choice: Choice
    ) -> AsyncIterator[Template]:
        """Give what a clone is made of, for the length of the block. Raises Unavailable."""
        is_usual = choice == Choice()
        async with AsyncExitStack() as stack:
            async with (
                nullcontext(self._templates) if is_usual else self._kernels.open_store(choice) as store
            ):
                if spec.annotations.get(TEMPLATE_ANNOTATION) == "off":
                    template = await stack.enter_async_context(store.single_use(shape, rootfs.blank))
                else:
                    template = await store.ensure(shape, rootfs.blank)
                    if is_usual:
                        template = self._find_image_template(spec, rootfs, shape, template)
            yield template

    def _find_image_template(
        self, spec: TaskSpec, rootfs: BlockRootfs, shape: Shape, template: Template
    ) -> Template:
        """Return the image's own template where the container fits it and there is one."""
        security = spec.security
        is_usual = security.masked_paths is None and security.readonly_paths is None
        if not rootfs.is_new or not rootfs.layers or security.privileged or not is_usual:
            return template
        return self._image_templates.find(template, shape, rootfs) or template

    async def _claim(self, spec: TaskSpec, shape: Shape, template: Template, home: Home) -> Clone | None:
        """Return a machine of the pool that has become the container's, if one fits."""
        if not isinstance(template, ImageTemplate) or not isinstance(spec.rootfs, BlockRootfs):
            return None
        kind = _kind_of(template, shape, spec.rootfs)
        self._pool.note_use(kind, next(iter(spec.process.args), ""))
        waiting = self._pool.take(kind, spec)
        if waiting is None:
            return None
        async with AsyncExitStack() as undo:
            undo.push_async_callback(waiting.end)
            try:
                clone = await waiting.claim(spec, home, undo)
            except (EngineError, OSError) as error:
                log.warning("a machine of the pool could not be used: %s", error)
            else:
                undo.pop_all()
                return clone
        home.remove()
        home.create()
        return None

    def _shape(self, memory_limit_bytes: int, cpus: float, nics: int) -> Shape:
        return Shape(
            memory_bytes=memory_for(memory_limit_bytes, self._default_memory_bytes),
            vcpus=vcpus_for(cpus, self._default_vcpus, os.cpu_count() or 1),
            nics=nics,
        )

    def _supervised(self, task: VmTask) -> VmTask:
        self._tasks.start_soon(task.supervise, name=f"vm {task.id[:12]}")
        return task

    def _check_taps(self, spec: TaskSpec) -> None:
        """QEMU would make a tap that is not there, without a network behind it."""
        for interface in spec.network.interfaces:
            try:
                socket.if_nametoindex(interface.device)
            except OSError as error:
                raise Unavailable(
                    f"the network device {interface.device} of the virtual machine is missing"
                ) from error


def _kind_of(template: ImageTemplate, shape: Shape, rootfs: BlockRootfs) -> Kind:
    return Kind(template=template, shape=shape, layers=rootfs.layers, blank=rootfs.blank)


def _find_process(recorded: Pid | None) -> HostProcess | None:
    return HostProcess.find(recorded.pid, recorded.start_time) if recorded is not None else None


def _clone_of(home: Home, record: Record, process: HostProcess) -> Clone:
    guest = Guest(home.control, tty=record.tty, open_stdin=record.open_stdin, stdin_once=record.stdin_once)
    return Clone(
        record=record,
        process=process,
        fs_server=_find_process(record.fs_server),
        guest=guest,
        console=Console(),
    )

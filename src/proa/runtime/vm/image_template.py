# SPDX-License-Identifier: Apache-2.0
"""The store of image templates: memory templates whose guest has an image's root file system mounted.

    templates/image-<key>/mem        as of a memory template
                          state
                          new        the writable disk as that guest has it; new containers get copies
                          meta.json  what it was made of; written last

Mounting layers, disk and overlay is two thirds of the kernel code that a clone runs before its program, and
under emulation a clone pays for each piece of code that it runs for the first time. So once an image has been
started twice in a shape, a clone of the shape's template mounts it and is saved in its turn, behind the
back of everyone; later containers of that image are clones of that. Containers that were written to before,
and privileged ones, whose /dev is another, go on from the shape's template.

``key`` is a digest of the shape's template and of the layers' files.

Source: docs/reference/agent-protocol.md, PREPARE.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup

from proa.host import sparse
from proa.model.errors import EngineError, Internal
from proa.model.task import BlockRootfs
from proa.runtime.vm import messages, qemu
from proa.runtime.vm.boot import TEMPLATE_TAP, Deaf
from proa.runtime.vm.channel import AgentError, Channel
from proa.runtime.vm.disks import LayersDisk, plan_layers
from proa.runtime.vm.machine import Disk, Incoming, Machine, Ports, Shape
from proa.runtime.vm.protocol import FrameType
from proa.runtime.vm.qemu import Console
from proa.runtime.vm.template import (
    IMAGE,
    SETTLE_S,
    Template,
    Templates,
    load_state,
    remove_least_used,
    remove_traces,
    save_state,
    synchronise,
)

STARTS = 2  # an image that is started once may not come again
_PREPARE_TIMEOUT_S = 60.0  # 0.2 s here

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTemplate(Template):
    """A complete one. ``new_disk``: what a container's new disk must be a copy of."""

    new_disk: Path


class _Meta(msgspec.Struct, frozen=True, kw_only=True):
    state_sha256: str
    memory_changed_ns: int = 0
    memory_bytes: int
    base: str
    layers: list[str]


class ImageTemplates:
    """The store, beside that of the memory templates.

    :param root: where ``templates`` keeps its own.
    :param tasks: owns the making, which nobody waits for.
    :param made: told of each one that is complete.
    """

    def __init__(
        self,
        root: Path,
        templates: Templates,
        *,
        qemu: Path,
        accelerator: str,
        qemu_version: str,
        tasks: TaskGroup,
        made: Callable[[ImageTemplate, Shape, BlockRootfs], None],
    ) -> None:
        self._root = root
        self._templates = templates
        self._qemu = qemu
        self._accelerator = accelerator
        self._qemu_version = qemu_version
        self._tasks = tasks
        self._made = made
        self._starts: Counter[str] = Counter()
        self._found: dict[str, ImageTemplate] = {}
        self._making = anyio.Lock()  # one at a time: it takes a processor from those who work

    def find(self, base: Template, shape: Shape, rootfs: BlockRootfs) -> ImageTemplate | None:
        """Return the template for a new container, if there is one; else have it made when it is worth it."""
        key = _key_of(base, rootfs)
        found = self._found.get(key)
        if found is not None and found.is_as_made():
            return found
        found = self._read(key, shape)
        if found is not None:
            self._found[key] = found
            os.utime(found.memory_file.parent)  # its last use, for ``_prune``
            return found
        self._starts[key] += 1
        if self._starts[key] == STARTS:
            self._tasks.start_soon(self._make_quietly, key, base, shape, rootfs)
        return None

    # --- machinery ---

    def _read(self, key: str, shape: Shape) -> ImageTemplate | None:
        directory = self._root / key
        try:
            meta = msgspec.json.decode((directory / "meta.json").read_bytes(), type=_Meta)
            found = ImageTemplate(
                memory_file=directory / "mem",
                state_file=directory / "state",
                memory_changed_ns=meta.memory_changed_ns,
                new_disk=directory / "new",
            )
            whole = (
                found.is_as_made()
                and found.new_disk.is_file()
                and found.memory_file.stat().st_size == meta.memory_bytes == shape.memory_bytes
                and hashlib.sha256(found.state_file.read_bytes()).hexdigest() == meta.state_sha256
            )
        except (OSError, msgspec.DecodeError):
            return None
        return found if whole else None

    async def _make_quietly(self, key: str, base: Template, shape: Shape, rootfs: BlockRootfs) -> None:
        try:
            async with self._making:
                await self._make(key, base, shape, rootfs)
            found = self._read(key, shape)
            if found is not None:
                self._made(found, shape, rootfs)
        except (EngineError, AgentError, OSError) as error:
            log.warning("no template of the image %s: %s", [layer.name for layer in rootfs.layers], error)

    async def _make(self, key: str, base: Template, shape: Shape, rootfs: BlockRootfs) -> None:
        directory = await self._templates.make_directory()
        try:
            await anyio.to_thread.run_sync(sparse.copy, base.memory_file, directory / "mem")
            await anyio.to_thread.run_sync(sparse.copy, rootfs.blank, directory / "new")
            await self._mount_and_save(directory, base, shape, rootfs)
            meta = _Meta(
                state_sha256=hashlib.sha256((directory / "state").read_bytes()).hexdigest(),
                memory_changed_ns=(directory / "mem").stat().st_mtime_ns,
                memory_bytes=shape.memory_bytes,
                base=base.memory_file.parent.name,
                layers=[str(layer) for layer in rootfs.layers],
            )
            (directory / "meta.json").write_bytes(msgspec.json.encode(meta))
            await anyio.to_thread.run_sync(synchronise, directory)
            shutil.rmtree(self._root / key, ignore_errors=True)  # damaged, or it would have been found
            directory.rename(self._root / key)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        self._prune()

    async def _mount_and_save(
        self, directory: Path, base: Template, shape: Shape, rootfs: BlockRootfs
    ) -> None:
        layers = plan_layers(rootfs, directory / "layers.vmdk")
        if layers.descriptor:
            (directory / "layers.vmdk").write_text(layers.descriptor)
        with contextlib.ExitStack() as opened:
            state_fd = os.open(base.state_file, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, state_fd)
            console = Console()
            opened.callback(console.close)
            child = qemu.launch(
                directory,
                lambda ports: self._plan(directory, shape, layers, ports, state_fd),
                pass_fds=(state_fd,),
            )
            try:
                (directory / "pid").write_text(f"{child.pid} {child.start_time}\n")
                await console.connect(directory)
                await load_state(directory / "monitor", state_fd)
                await _prepare(directory / "control", layers)
                await anyio.sleep(SETTLE_S)
                await save_state(directory / "monitor", directory / "state")
            except EngineError as error:
                said = "\n".join(filter(None, (qemu.log_tail(directory), console.text())))
                raise Internal(f"{error.message}\n{said}".strip()) from error
            finally:
                with anyio.CancelScope(shield=True):
                    await child.end()
        remove_traces(directory)

    def _plan(
        self, directory: Path, shape: Shape, layers: LayersDisk, ports: Ports, state_fd: int
    ) -> Machine:
        return Machine(
            qemu=self._qemu,
            name=f"proa-image-{shape.memory_bytes >> 20}m",
            accelerator=self._accelerator,
            shape=shape,
            memory_file=directory / "mem",
            begins=Incoming(state_fd=state_fd),
            ports=ports,
            is_template=True,
            layers=layers.disk,
            new=Disk(path=directory / "new"),
            taps=(TEMPLATE_TAP,) * shape.nics,
            run_as=qemu.rights_of(secrets.token_hex(4), directory, self._qemu_version),
        )

    def _prune(self) -> None:
        """Remove those whose layers or base are gone, and the least used beyond KEPT."""
        kept: list[Path] = []
        for directory in self._root.glob(f"{IMAGE}*"):
            try:
                meta = msgspec.json.decode((directory / "meta.json").read_bytes(), type=_Meta)
                fits = all(path.exists() for path in (self._root / meta.base, *map(Path, meta.layers)))
            except (OSError, msgspec.DecodeError):
                fits = False
            if fits:
                kept.append(directory)
            else:
                shutil.rmtree(directory, ignore_errors=True)
        remove_least_used(kept)


async def _prepare(control: Path, layers: LayersDisk) -> None:
    channel = await Channel.connect(control, Deaf())
    try:
        await channel.request(
            FrameType.PREPARE,
            messages.prepare(layers.extents, now_ns=time.time_ns()),
            timeout_s=_PREPARE_TIMEOUT_S,
        )
    finally:
        channel.close()


def _key_of(base: Template, rootfs: BlockRootfs) -> str:
    parts = [base.memory_file.parent.name]
    for layer in rootfs.layers:
        status = layer.stat()
        parts.append(f"{layer} {status.st_ino} {status.st_size} {status.st_mtime_ns}")
    return IMAGE + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

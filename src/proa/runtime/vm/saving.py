# SPDX-License-Identifier: Apache-2.0
"""Saves a running machine in a directory, and brings up another that goes on from there.

    state   of its devices, as QEMU saves them
    pages   of its memory that differ from ``mem``
    mem     the memory file that it began with: a link to the template's, which may be removed then
    disk    what its container has written

What can go on where is QEMU's matter: the same version, the same devices, and a processor with the same
features, for a guest looks at its processor once. These are compared before anything is made.

Source: docs/decisions/0042-fork-and-snapshots.md; QEMU docs/devel/migration.rst (compatibility).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec

from proa.host import sparse
from proa.host.process_memory import MappedFile, load_changed, save_changed
from proa.model.errors import Internal, InvalidParameter
from proa.model.task import TaskSpec
from proa.runtime.vm import cmdline
from proa.runtime.vm.clone import Clone, Tools
from proa.runtime.vm.forking import MEMORY_NAME, Original, Saved, make_copy, map_memory, saved_of, take_out
from proa.runtime.vm.home import Home
from proa.runtime.vm.machine import Machine, Ports, Shape, Standing
from proa.runtime.vm.template import processor

_STATE, _PAGES, _DISK = "state", "pages", "disk"


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine was saved by, and can be gone on with by."""

    qemu: str
    accelerator: str
    processor: str
    devices: str


class _Description(msgspec.Struct, frozen=True, kw_only=True):
    machine: Saved
    origin: Origin


def origin_of(accelerator: str, qemu_version: str) -> Origin:
    """Return what this host is."""
    shape = Shape(memory_bytes=0, vcpus=1, nics=1)
    plan = Machine(
        qemu=Path("qemu"),
        name="",
        accelerator=accelerator,
        shape=shape,
        memory_file=Path("mem"),
        begins=Standing(),
        ports=Ports(monitor_fd=0, control_fd=0, console_fd=0),
        taps=("",),
    )
    words = "\0".join(cmdline.render(plan))
    return Origin(
        qemu=qemu_version,
        accelerator=accelerator,
        processor=hashlib.sha256(processor().encode()).hexdigest(),
        devices=hashlib.sha256(words.encode()).hexdigest(),
    )


async def save(original: Original, directory: Path, origin: Origin) -> Mapping[str, Any]:  # Any: JSON
    """Save a machine, which goes on. Raises WrongState, Internal."""
    record = original.clone.record
    saved = saved_of(record)
    with contextlib.closing(map_memory(record.qemu.pid)) as theirs:

        def copy_rest() -> None:
            with (directory / _PAGES).open("xb") as pages:
                save_changed(theirs, pages)
            sparse.copy(Path(record.writable), directory / _DISK)

        await take_out(original, directory / _STATE, copy_rest)
        await anyio.to_thread.run_sync(_keep_memory, theirs, directory / MEMORY_NAME)
    description: dict[str, Any] = msgspec.to_builtins(_Description(machine=saved, origin=origin))
    return description


async def load(
    directory: Path,
    machine: Mapping[str, Any],  # Any: JSON
    origin: Origin,
    spec: TaskSpec,
    tools: Tools,
    home: Home,
    undo: AsyncExitStack,
) -> Clone:
    """Bring up a machine that goes on from what was saved. Raises as ``make_copy``."""
    try:
        description = msgspec.convert(machine, _Description)
    except msgspec.ValidationError as error:
        raise InvalidParameter(f"the snapshot's description makes no sense: {error}") from error
    _check(description.origin, origin)

    async def fill(ours: MappedFile, disk_fd: int, state: Path) -> None:
        def copy_all() -> None:
            shutil.copyfile(directory / _STATE, state)
            with (directory / _PAGES).open("rb") as pages:
                load_changed(pages, ours)
            sparse.fill(directory / _DISK, disk_fd)

        try:
            await anyio.to_thread.run_sync(copy_all)
        except OSError as error:
            raise Internal(f"the snapshot could not be read: {error}") from error

    try:
        memory = (directory / MEMORY_NAME).open("r+b")
    except OSError as error:
        raise Internal(f"the snapshot could not be read: {error}") from error
    with memory:
        return await make_copy(description.machine, spec, memory.fileno(), fill, tools, home, undo)


def _check(saved: Origin, here: Origin) -> None:
    if saved.qemu != here.qemu:
        raise InvalidParameter(f"the snapshot was made with QEMU {saved.qemu}, this host has {here.qemu}")
    if saved.accelerator != here.accelerator:
        raise InvalidParameter(
            f"the snapshot is of a machine under {saved.accelerator}, here they run under {here.accelerator}"
        )
    if saved.processor != here.processor:
        raise InvalidParameter("the snapshot was made on a host with another processor")
    if saved.devices != here.devices:
        raise InvalidParameter("the snapshot was made by a proa whose machines have other devices")


def _keep_memory(mapped: MappedFile, path: Path) -> None:
    """Link the memory file, or copy it where that cannot be."""
    name = Path(f"/proc/self/fd/{mapped.fd}").readlink()
    try:
        os.link(name, path)
        if os.path.samestat(path.stat(), os.fstat(mapped.fd)):
            return
        path.unlink()  # another template has the name by now
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise Internal(f"the memory of the template cannot be kept: {error}") from error
    sparse.copy(Path(f"/proc/self/fd/{mapped.fd}"), path)

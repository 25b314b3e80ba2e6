# SPDX-License-Identifier: Apache-2.0
"""Makes a running copy of a running machine: its memory, its processes and its disk, as another container.

    launch     a QEMU with the same devices, which stands still, on the memory file that the original has
    copy       the original is stopped; the state of its devices, the pages that differ from the memory file
               and its disk are copied; it goes on
    load       the copy gets the state, and goes on with its network cables pulled
    identify   the agent makes another machine of it: entropy, clock, MAC, addresses, names
    plug       it is on the network

So the two share with each other, and with all others, what is the template's. Between stop and cont the
original's users wait: milliseconds, and for as long as its disk takes to be copied (no time on a file system
that can share blocks).

A marker in the original's directory says that it was stopped for this, so that the next daemon lets it go on.
The copy's record says until the end that it is unfinished: the next daemon ends it.

Source: docs/decisions/0042-fork-and-snapshots.md; QEMU migration/savevm.c (qmp_xen_save_devices_state).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from proa.host import sparse
from proa.host.process_memory import MappedFile, copy_changed
from proa.model.errors import Internal, InvalidParameter, StartFailed, Unavailable, WrongState
from proa.model.task import BlockRootfs, TaskSpec
from proa.runtime.vm import messages, qemu
from proa.runtime.vm.clone import (
    CONFIGURE_TIMEOUT_S,
    ENTROPY_BYTES,
    Clone,
    Tools,
    enclose,
    end,
    explained,
    guest_of,
    machine_id_of,
    record_of,
)
from proa.runtime.vm.disks import LayersDisk, plan_layers
from proa.runtime.vm.guest import Guest
from proa.runtime.vm.home import Home, Record
from proa.runtime.vm.machine import Disk, Machine, Ports, Shape, Standing
from proa.runtime.vm.monitor import Monitor, greeted_monitor
from proa.runtime.vm.protocol import FrameType
from proa.runtime.vm.qemu import Console, HostProcess

MEMORY_NAME = "mem"  # of a template's file
_FD_SET = 1
LOAD_TIMEOUT_S = 30.0  # some 30 KB are read
_TAKE_UP_TIMEOUT_S = 30.0  # 0.05 s here


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """The machine that is copied, and its directory."""

    clone: Clone
    home: Home


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine that is to go on from another's state must have in common with it."""

    memory_bytes: int
    vcpus: int
    nics: int
    is_new: bool  # as of ``BlockRootfs``: behind which disk of the guest's the writable one is
    disk_bytes: int


# Gives a machine memory and disk (an open file, still a hole), and leaves the devices' state at the path.
Fill = Callable[[MappedFile, int, Path], Awaitable[None]]


async def make_fork(
    original: Original, spec: TaskSpec, tools: Tools, home: Home, undo: AsyncExitStack
) -> Clone:
    """Do all of the above; the original runs again in any case.

    :param spec: of the copy: the original's but for what tells them apart.
    :param home: made by the caller, who also removes it.
    :raises WrongState: the original does not run.
    :raises StartFailed, Internal: QEMU or the agent could not do it.
    """
    record = original.clone.record
    with contextlib.closing(map_memory(record.qemu.pid)) as theirs:

        async def fill(ours: MappedFile, disk_fd: int, state: Path) -> None:
            def copy_rest() -> None:
                copy_changed(theirs, ours)
                sparse.fill(Path(record.writable), disk_fd)

            await take_out(original, state, copy_rest)

        return await make_copy(saved_of(record), spec, theirs.fd, fill, tools, home, undo)


async def make_copy(
    saved: Saved, spec: TaskSpec, memory_fd: int, fill: Fill, tools: Tools, home: Home, undo: AsyncExitStack
) -> Clone:
    """Bring up a machine that goes on from what ``fill`` gives it, as another.

    :param memory_fd: the file that its memory begins with.
    :raises StartFailed, Internal, InvalidParameter: it could not be done.
    """
    shape = _shape_of(saved, spec)
    assert isinstance(spec.rootfs, BlockRootfs)  # checked by the runtime
    rootfs = replace(spec.rootfs, is_new=saved.is_new)
    spec = replace(spec, rootfs=rootfs)
    layers = plan_layers(rootfs, home.path / "layers.vmdk")
    if layers.descriptor:
        (home.path / "layers.vmdk").write_text(layers.descriptor)
    with contextlib.ExitStack() as opened:
        disk_fd = _make_disk(rootfs.writable, saved.disk_bytes)
        opened.callback(os.close, disk_fd)
        child = _launch(spec, shape, layers, tools, home, memory_fd)
        undo.push_async_callback(end, child)
        record = record_of(spec, shape, child, None)
        home.write(msgspec.structs.replace(record, is_unfinished=True))
        console = Console()
        undo.callback(console.close)
        guest = guest_of(spec, home)
        undo.callback(guest.close)
        with explained(home, console):
            await console.connect(home.path)
            await enclose(spec, shape, record, undo)
            async with greeted_monitor(home.monitor) as monitor:
                ours = opened.enter_context(contextlib.closing(map_memory(child.pid)))
                await fill(ours, disk_fd, home.path / "state")
                await _load(monitor, home.path / "state", shape.nics)
                await _identify(guest, spec)
                await _plug(monitor, shape.nics, is_in=True)
    home.write(record)
    return Clone(record=record, process=child, fs_server=None, guest=guest, console=console)


def saved_of(record: Record) -> Saved:
    """Return what a copy of a machine must be like. Raises WrongState, Internal."""
    if "" in record.cards or any(record.spares):
        raise InvalidParameter("the container's networks have been changed while it runs: restart it first")
    if not record.writable:
        raise WrongState("the virtual machine was started by an older version of proa: restart it first")
    try:
        disk_bytes = Path(record.writable).stat().st_size
    except OSError as error:
        raise Internal(f"the disk of the virtual machine cannot be found: {error}") from error
    return Saved(
        memory_bytes=record.memory_bytes,
        vcpus=record.vcpus,
        nics=record.nics,
        is_new=record.is_new,
        disk_bytes=disk_bytes,
    )


def _shape_of(saved: Saved, spec: TaskSpec) -> Shape:
    if saved.nics != len(spec.network.interfaces):
        raise InvalidParameter("the container's networks have been changed since it was started")
    return Shape(memory_bytes=saved.memory_bytes, vcpus=saved.vcpus, nics=saved.nics)


def map_memory(pid: int) -> MappedFile:
    """Find the memory of a QEMU. Raises Internal."""
    try:
        return MappedFile(pid, MEMORY_NAME)
    except OSError as error:
        raise Internal(f"the memory of the virtual machine cannot be found: {error}") from error


def _make_disk(path: Path, size_bytes: int) -> int:
    """Make what the copy's disk will be: a hole of the size, so that QEMU can open it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.truncate(fd, size_bytes)
    except OSError as error:
        raise Internal(f"the disk of the virtual machine cannot be made: {error}") from error
    return fd


def _launch(
    spec: TaskSpec, shape: Shape, layers: LayersDisk, tools: Tools, home: Home, memory_fd: int
) -> HostProcess:
    assert isinstance(spec.rootfs, BlockRootfs)
    writable = Disk(path=spec.rootfs.writable)
    is_new = spec.rootfs.is_new

    def plan(ports: Ports) -> Machine:
        return Machine(
            qemu=tools.qemu,
            name=f"proa-{spec.id[:12]}",
            accelerator=tools.accelerator,
            shape=shape,
            # Not by its name: the template may have been replaced since.
            memory_file=Path(f"/proc/self/fd/{memory_fd}"),
            begins=Standing(),
            ports=ports,
            layers=layers.disk,
            new=writable if is_new else Disk(),
            kept=Disk() if is_new else writable,
            taps=[interface.device for interface in spec.network.interfaces],
            run_as=qemu.rights_of(spec.id, home.path, tools.qemu_version),
        )

    return qemu.launch(
        home.path, plan, pass_fds=(memory_fd,), log=spec.log_path, exit_record=home.exit_record
    )


async def take_out(original: Original, state: Path, copy_rest: Callable[[], None]) -> None:
    """Save the state of a machine's devices while it stands still.

    :param copy_rest: takes memory and disk meanwhile, in a thread; may raise OSError.
    :raises WrongState: it does not run.
    :raises Internal: something could not be saved.
    """
    async with original.clone.standing, greeted_monitor(original.home.monitor) as monitor:
        status = await monitor.execute("query-status")
        if status["status"] != "running":
            raise WrongState(f"the virtual machine is {status['status']}, not running")
        original.home.copying.touch()
        with anyio.CancelScope(shield=True):
            try:
                await monitor.execute("stop")
                await save_devices(monitor, state)
                await anyio.to_thread.run_sync(copy_rest)
            except OSError as error:
                raise Internal(f"the virtual machine could not be copied: {error}") from error
            finally:
                await monitor.execute("cont")
                original.home.copying.unlink(missing_ok=True)
    original.clone.guest.channel.post(FrameType.CLOCK, messages.clock(time.time_ns()))


async def save_devices(monitor: Monitor, path: Path) -> None:
    """Write the state of the devices of a machine that stands still: neither memory nor disks.

    QEMU calls the command after Xen, and has it in every build. ``live``: the disks stay the machine's.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        await monitor.execute("add-fd", {"fdset-id": _FD_SET}, fd=fd)
        named = {"filename": f"/dev/fdset/{_FD_SET}", "live": False}
        await monitor.execute("xen-save-devices-state", named)
        await monitor.execute("remove-fd", {"fdset-id": _FD_SET})
    finally:
        os.close(fd)


async def _load(monitor: Monitor, state: Path, nics: int) -> None:
    """Give the copy its state, and let it go on without a network.

    Not by ``xen-load-devices-state``: QEMU 7.2 fails an assertion in it (yank_unregister_instance).
    """
    fd = os.open(state, os.O_RDONLY | os.O_CLOEXEC)
    try:
        await monitor.execute("getfd", {"fdname": "state"}, fd=fd)
        await monitor.execute("migrate-incoming", {"uri": "fd:state"})
    finally:
        os.close(fd)
    state.unlink()
    await _wait_for_state(monitor)
    await _plug(monitor, nics, is_in=False)  # the original's address must not be heard from two places
    await monitor.execute("cont")


async def _wait_for_state(monitor: Monitor) -> None:
    """Until QEMU has read it; when it cannot, it ends."""
    with anyio.move_on_after(LOAD_TIMEOUT_S):
        while True:
            status = await monitor.execute("query-status")
            if status["status"] != "inmigrate":
                return
            await anyio.sleep(0.001)
    raise Unavailable(f"QEMU did not take the state of the machine within {LOAD_TIMEOUT_S:g} s")


async def _plug(monitor: Monitor, nics: int, *, is_in: bool) -> None:
    for index in range(nics):
        await monitor.execute("set_link", {"name": f"net{index}", "up": is_in})


async def _identify(guest: Guest, spec: TaskSpec) -> None:
    await guest.take_up(timeout_s=_TAKE_UP_TIMEOUT_S)
    if not guest.main.is_started:
        raise StartFailed("the container's program has not begun")
    payload = messages.identify(
        spec, entropy=os.urandom(ENTROPY_BYTES), now_ns=time.time_ns(), machine_id=machine_id_of(spec)
    )
    await guest.channel.request(FrameType.IDENTIFY, payload, timeout_s=CONFIGURE_TIMEOUT_S)

# SPDX-License-Identifier: Apache-2.0
"""Brings a clone of a template up to the point where the container's program can begin.

    prepare   directory, descriptor of the layers, fs-server when there are binds
    spawn     QEMU with everything inherited or named; its sockets can be used at once
    resume    one round trip on the monitor: the state is loaded and the guest goes on by itself
    configure the agent makes the clone an individual (entropy, clock, MAC, names) and mounts its root

Each acquired thing goes on the caller's exit stack, so that a failure or a cancellation at any step leaves
nothing behind. Source: DESIGN.md, section 4.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread

from proa.host import process, sparse
from proa.model.errors import (
    EngineError,
    OutcomeUnknown,
    StartFailed,
    ToolFailed,
    Unavailable,
)
from proa.model.task import BlockRootfs, Mount, MountKind, Resources, TaskSpec
from proa.runtime.vm import limits, messages, privileges, qemu
from proa.runtime.vm.channel import AgentError, Channel
from proa.runtime.vm.disks import LayersDisk, plan_layers
from proa.runtime.vm.guest import Guest
from proa.runtime.vm.home import Home, Pid, Record
from proa.runtime.vm.image_template import ImageTemplate
from proa.runtime.vm.machine import Disk, Incoming, Machine, Ports, Shape
from proa.runtime.vm.nics import spares_for
from proa.runtime.vm.protocol import FrameType
from proa.runtime.vm.qemu import Console, HostProcess
from proa.runtime.vm.template import Template, load_state

ENTROPY_BYTES = 64
CONFIGURE_TIMEOUT_S = 60.0  # 0.1 s here; recovering a large ext4 journal under emulation may take long


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The programs that make up a VM, and how QEMU is to run."""

    qemu: Path
    fs_server: Path
    accelerator: str
    qemu_version: str


@dataclass(slots=True, kw_only=True)
class Clone:
    """A configured machine.

    :ivar fs_server: None without binds.
    :ivar is_prepared: as in ``messages.start``.
    :ivar standing: held by who stops it, or lets it go on.
    """

    record: Record
    process: HostProcess
    fs_server: HostProcess | None
    guest: Guest
    console: Console
    is_prepared: bool = False
    standing: anyio.Lock = field(default_factory=anyio.Lock)


async def make_clone(
    spec: TaskSpec, shape: Shape, template: Template, tools: Tools, home: Home, undo: AsyncExitStack
) -> Clone:
    """Do all of the above.

    :param home: made by the caller, who also removes it.
    :raises StartFailed: QEMU or the agent could not do it; the message has their words.
    """
    assert isinstance(spec.rootfs, BlockRootfs)  # checked by the runtime
    if isinstance(template, ImageTemplate):  # its guest has that disk mounted, which differs from a blank one
        await anyio.to_thread.run_sync(sparse.copy, template.new_disk, spec.rootfs.writable)
    layers = plan_layers(spec.rootfs, home.path / "layers.vmdk")
    if layers.descriptor:
        (home.path / "layers.vmdk").write_text(layers.descriptor)
    with contextlib.ExitStack() as inherited:
        fs_server, fs_fd = start_fs_server(tools, spec.mounts, home, inherited)
        if fs_server is not None:
            undo.push_async_callback(end, fs_server)
        state_fd = os.open(template.state_file, os.O_RDONLY | os.O_CLOEXEC)
        inherited.callback(os.close, state_fd)

        def plan(ports: Ports) -> Machine:
            return _machine(spec, shape, template, tools, home, layers, ports, state_fd)

        child = qemu.launch(
            home.path,
            plan,
            fs_fd=fs_fd,
            pass_fds=(state_fd,),
            log=spec.log_path,
            exit_record=home.exit_record,
        )
    undo.push_async_callback(end, child)
    record = record_of(spec, shape, child, fs_server)
    home.write(record)
    console = Console()
    undo.callback(console.close)
    guest = guest_of(spec, home)
    undo.callback(guest.close)
    with explained(home, console):
        await console.connect(home.path)
        await enclose(spec, shape, record, undo)
        await load_state(home.monitor, state_fd)
        await configure(spec, layers, await guest.connect())
    return Clone(
        record=record,
        process=child,
        fs_server=fs_server,
        guest=guest,
        console=console,
        is_prepared=isinstance(template, ImageTemplate),
    )


def guest_of(spec: TaskSpec, home: Home) -> Guest:
    """Return the guest that the container's program will run in; not linked yet."""
    return Guest(
        home.control,
        tty=spec.process.tty,
        open_stdin=spec.process.open_stdin,
        stdin_once=spec.process.stdin_once,
    )


@contextlib.contextmanager
def explained(home: Home, console: Console) -> Iterator[None]:
    """Turn what a machine fails with into StartFailed, with the last words of QEMU and the guest."""
    try:
        yield
    except (OutcomeUnknown, Unavailable, AgentError) as error:  # Unavailable: QEMU ended before it listened
        said = "\n".join(filter(None, (error.args[0], qemu.log_tail(home.path), console.text())))
        raise StartFailed(f"the virtual machine could not be started: {said}") from error


async def end(child: HostProcess) -> None:
    """End a process, whatever comes."""
    with anyio.CancelScope(shield=True):
        await child.end()


def _machine(
    spec: TaskSpec,
    shape: Shape,
    template: Template,
    tools: Tools,
    home: Home,
    layers: LayersDisk,
    ports: Ports,
    state_fd: int,
) -> Machine:
    assert isinstance(spec.rootfs, BlockRootfs)
    writable = Disk(path=spec.rootfs.writable)
    return Machine(
        qemu=tools.qemu,
        name=f"proa-{spec.id[:12]}",
        accelerator=tools.accelerator,
        shape=shape,
        memory_file=template.memory_file,
        begins=Incoming(state_fd=state_fd),
        ports=ports,
        layers=layers.disk,
        new=writable if spec.rootfs.is_new else Disk(),
        kept=Disk() if spec.rootfs.is_new else writable,
        taps=[interface.device for interface in spec.network.interfaces],
        run_as=qemu.rights_of(spec.id, home.path, tools.qemu_version),
    )


def record_of(spec: TaskSpec, shape: Shape, child: HostProcess, fs_server: HostProcess | None) -> Record:
    """Return what a later daemon must know of the container's machine."""
    assert isinstance(spec.rootfs, BlockRootfs)
    return Record(
        qemu=pid_of(child),
        fs_server=pid_of(fs_server) if fs_server is not None else None,
        memory_bytes=shape.memory_bytes,
        vcpus=shape.vcpus,
        capabilities=privileges.capability_mask(spec.security),
        no_new_privileges=spec.security.no_new_privileges,
        tty=spec.process.tty,
        open_stdin=spec.process.open_stdin,
        stdin_once=spec.process.stdin_once,
        cgroup=limits.path_for(spec),
        log_path=str(spec.log_path),
        log_max_bytes=spec.log_max_bytes,
        writable=str(spec.rootfs.writable),
        is_new=spec.rootfs.is_new,
        nics=shape.nics,
        cards=() if shape.seats else tuple(interface.device for interface in spec.network.interfaces),
        spares=("",) * spares_for(shape),
    )


def pid_of(child: HostProcess) -> Pid:
    return Pid(pid=child.pid, start_time=child.start_time)


def start_fs_server(
    tools: Tools, mounts: Sequence[Mount], home: Home, inherited: contextlib.ExitStack
) -> tuple[HostProcess | None, int | None]:
    """Start the server of the binds, if there are any; return it, and QEMU's end of its socket."""
    binds = [mount for mount in mounts if mount.kind is MountKind.BIND]
    if not binds:
        return None, None
    exports: list[str] = []
    for mount in binds:
        exports += ["--export-ro" if mount.read_only else "--export-rw", str(mount.source)]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    inherited.enter_context(ours)
    inherited.enter_context(theirs)
    log = os.open(home.path / "fs-server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    inherited.callback(os.close, log)
    try:
        child = process.spawn_now(
            [tools.fs_server, "--fd", str(theirs.fileno()), *exports],
            cwd=Path("/"),
            stdout=log,
            stderr=log,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    except ToolFailed as error:
        raise StartFailed(f"the server of bind mounts could not be started: {error.message}") from error
    return HostProcess.of_child(child), ours.fileno()


async def enclose(spec: TaskSpec, shape: Shape, record: Record, undo: AsyncExitStack) -> None:
    """Put QEMU into the cgroup of its limits, if it has any."""
    outside = limits.around_qemu(spec.resources, shape.vcpus)
    if outside is None and spec.cgroup_parent:
        outside = Resources()  # a place of its own, without a limit
    if outside is not None:
        undo.push_async_callback(_remove_cgroup, record.cgroup)
        await limits.enclose(record.cgroup, record.qemu.pid, outside)


async def _remove_cgroup(path: str) -> None:
    with anyio.CancelScope(shield=True), contextlib.suppress(EngineError):
        await limits.remove(path)


async def configure(spec: TaskSpec, layers: LayersDisk, channel: Channel) -> None:
    """Have the agent make the clone an individual. Raises as ``Channel.request``."""
    assert isinstance(spec.rootfs, BlockRootfs)
    payload = messages.configure(
        spec,
        layers=layers.extents,
        is_new=spec.rootfs.is_new,
        entropy=os.urandom(ENTROPY_BYTES),
        now_ns=time.time_ns(),
        machine_id=machine_id_of(spec),
    )
    await channel.request(FrameType.CONFIGURE, payload, timeout_s=CONFIGURE_TIMEOUT_S)


def machine_id_of(spec: TaskSpec) -> bytes:
    """Return what /etc/machine-id says, if the image does not say it."""
    return spec.id[:32].encode() + b"\n"

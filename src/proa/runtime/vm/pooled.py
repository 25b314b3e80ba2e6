# SPDX-License-Identifier: Apache-2.0
"""One machine of the pool: a clone of an image's template that has gone on from its state and stands still,
until a container comes that it fits.

    <exec root>/.pool-<name>/   its directory, as of any machine (``home``), with ``pid`` in place of a record
    <pool root>/<name>.ext4     its disk, a copy of the template's; becomes the container's
                <name>.log      becomes the container's log

What is a container's own is given at the claim, none of it by a new file or device in QEMU:

    name of the directory   renamed, sockets and all: this is the claim
    disk, log               renamed; QEMU has them open
    taps                    the loose ends that QEMU holds are attached to the taps of the network
    limits on the host      a cgroup around QEMU, as for every clone
    identity and the rest   CONFIGURE, as for every clone: entropy, clock, MAC, names, machine-id, limits

The record is in the directory before it gets its new name, so a daemon that dies leaves either a machine of
the pool, which the next one ends, or one of the container whose program never began, which it ends as well.
A machine is handed out once: it leaves the pool's list before the first step, and is ended if a step fails.

Source: docs/decisions/0035-pool.md.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from proa.host import sparse
from proa.host.loose_tap import LooseTap
from proa.model.ids import ContainerId
from proa.model.task import BlockRootfs, TaskSpec
from proa.runtime.vm import messages, protocol, qemu
from proa.runtime.vm.boot import Deaf
from proa.runtime.vm.channel import Channel
from proa.runtime.vm.clone import (
    ENTROPY_BYTES,
    Clone,
    Tools,
    configure,
    enclose,
    end,
    explained,
    guest_of,
    record_of,
)
from proa.runtime.vm.disks import LayersDisk, plan_layers
from proa.runtime.vm.home import Home
from proa.runtime.vm.image_template import ImageTemplate
from proa.runtime.vm.machine import Disk, Incoming, Machine, Ports, Shape
from proa.runtime.vm.monitor import IGNORE_SHARED, Monitor, open_monitor
from proa.runtime.vm.protocol import FrameType
from proa.runtime.vm.qemu import Console, HostProcess
from proa.runtime.vm.rehearsal import rehearse

PREFIX = ".pool-"  # of directories in the exec root; no container's id begins with a dot
_NICE = 15  # while it is being made: whoever works goes first
_RESUMED_TIMEOUT_S = 30.0  # 0.1 s here


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What machines of the pool can be told apart by: those of one kind serve the same containers."""

    template: ImageTemplate
    shape: Shape
    layers: tuple[Path, ...]
    blank: Path

    def rootfs_of(self, disk: Path) -> BlockRootfs:
        return BlockRootfs(layers=self.layers, writable=disk, blank=self.blank, is_new=True)


@dataclass(slots=True, kw_only=True)
class Pooled:
    """A machine that waits. ``claim`` or ``end`` it, once."""

    name: str
    kind: Kind
    home: Path
    disk: Path
    log: Path
    layers: LayersDisk
    process: HostProcess
    taps: list[LooseTap]
    monitor: Monitor
    channel: Channel
    console: Console
    held: AsyncExitStack

    def fits(self, spec: TaskSpec) -> bool:
        """Tell whether it can become this container (of its kind): nothing is there that it would replace."""
        try:
            return spec.log_path.stat().st_size == 0
        except FileNotFoundError:
            return True

    async def claim(self, spec: TaskSpec, home: Home, undo: AsyncExitStack) -> Clone:
        """Make it the container's machine, configured. On failure it is of no further use: ``end`` it.

        :param home: made by the caller, and empty.
        :raises StartFailed: QEMU or the agent could not do it.
        :raises OSError: a file or a tap could not be given to it.
        """
        assert isinstance(spec.rootfs, BlockRootfs)
        record = record_of(spec, self.kind.shape, self.process, None)
        for tap, interface in zip(self.taps, spec.network.interfaces, strict=True):
            tap.attach(interface.device)
        self.disk.replace(spec.rootfs.writable)
        self.log.replace(spec.log_path)
        Home(self.home.parent, ContainerId(self.home.name)).write(record)
        self.home.replace(home.path)
        guest = guest_of(spec, home)
        undo.callback(guest.close)
        with explained(home, self.console):
            await enclose(spec, self.kind.shape, record, undo)
            _set_priority(self.process.pid, 0)
            await self.monitor.execute("cont")
            await configure(spec, self.layers, guest.adopt(self.channel))
        await self.held.aclose()
        return Clone(
            record=record,
            process=self.process,
            fs_server=None,
            guest=guest,
            console=self.console,
            is_prepared=True,
        )

    async def end(self) -> None:
        """End it and remove what it had. Idempotent."""
        await end(self.process)
        self.channel.close()
        self.console.close()
        await self.held.aclose()
        for path in (self.disk, self.log):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.home, ignore_errors=True)


async def make(kind: Kind, program: str, tools: Tools, *, exec_root: Path, pool_root: Path) -> Pooled:
    """Bring a machine to the point where it waits for what is its own.

    :param program: what it is likely to run, "" when that is not known.

    :raises EngineError, AgentError, OSError: it could not be made, and nothing of it is left.
    """
    name = secrets.token_hex(4)
    home, disk, log = exec_root / f"{PREFIX}{name}", pool_root / f"{name}.ext4", pool_root / f"{name}.log"
    async with AsyncExitStack() as undo:
        undo.callback(shutil.rmtree, home, ignore_errors=True)
        home.mkdir(mode=0o700, parents=True)
        for path in (disk, log):
            undo.callback(path.unlink, missing_ok=True)
        await anyio.to_thread.run_sync(sparse.copy, kind.template.new_disk, disk)
        log.touch(mode=0o600)
        layers = plan_layers(kind.rootfs_of(disk), home / "layers.vmdk")
        if layers.descriptor:
            (home / "layers.vmdk").write_text(layers.descriptor)
        held = AsyncExitStack()
        undo.push_async_callback(held.aclose)
        taps = [LooseTap(f"proapl{name}{index}") for index in range(kind.shape.nics)]
        for tap in taps:
            held.callback(tap.close)
        with kind.template.state_file.open("rb") as state:
            child = _launch(kind, tools, name, home, disk, log, layers, taps, state.fileno())
            undo.push_async_callback(end, child)
            _set_priority(child.pid, _NICE)
            (home / "pid").write_text(f"{child.pid} {child.start_time}\n")
            console = Console()
            undo.callback(console.close)
            await console.connect(home)
            monitor = await held.enter_async_context(open_monitor(home / "monitor"))
            incoming = ("migrate-incoming", {"uri": f"fd:{state.fileno()}"})
            await monitor.greet_and_execute(IGNORE_SHARED, incoming)
        channel = await Channel.connect(home / "control", Deaf())
        undo.callback(channel.close)
        hello = messages.hello(protocol.VERSION)
        await channel.request(FrameType.HELLO, hello, timeout_s=_RESUMED_TIMEOUT_S)
        rehearsal = rehearse(
            kind.shape,
            program,
            kind.rootfs_of(disk),
            entropy=os.urandom(ENTROPY_BYTES),
            now_ns=time.time_ns(),
        )
        await channel.request(FrameType.REHEARSE, rehearsal, timeout_s=_RESUMED_TIMEOUT_S)
        await monitor.execute("stop")
        for tap in taps:
            await anyio.to_thread.run_sync(tap.loosen)
        undo.pop_all()
    return Pooled(
        name=name,
        kind=kind,
        home=home,
        disk=disk,
        log=log,
        layers=layers,
        process=child,
        taps=taps,
        monitor=monitor,
        channel=channel,
        console=console,
        held=held,
    )


def _launch(
    kind: Kind,
    tools: Tools,
    name: str,
    home: Path,
    disk: Path,
    log: Path,
    layers: LayersDisk,
    taps: list[LooseTap],
    state_fd: int,
) -> HostProcess:
    fds = [tap.fd for tap in taps]

    def plan(ports: Ports) -> Machine:
        return Machine(
            qemu=tools.qemu,
            name=f"proa-pool-{name}",
            accelerator=tools.accelerator,
            shape=kind.shape,
            memory_file=kind.template.memory_file,
            begins=Incoming(state_fd=state_fd),
            ports=ports,
            layers=layers.disk,
            new=Disk(path=disk),
            taps=fds,
            run_as=qemu.rights_of(name, home, tools.qemu_version),
        )

    return qemu.launch(home, plan, pass_fds=(state_fd, *fds), log=log, exit_record=home / "exit")


def _set_priority(pid: int, nice: int) -> None:
    """Of every thread: the vCPUs are threads, and nice(2) is about one. Gone ones do not matter."""
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), nice)

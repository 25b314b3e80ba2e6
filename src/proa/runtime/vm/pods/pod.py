# SPDX-License-Identifier: Apache-2.0
"""One machine that several containers share: its QEMU, its seats, and what stands behind them.

    <exec root>/.pod-<id>/
        state.json              State
        monitor, console        sockets of QEMU
        control-N               socket of the agent of seat N
        qemu.log

A seat is what one container has of the machine: ports, two disks, a network card, an agent of its own. All
are there since the template; ``plug`` puts the container's files, volumes and tap behind them, ``unplug``
takes them away. A file gets into QEMU, which may open none, as a descriptor (``add-fd``); a disk is a node of
format raw whose child is replaced (``blockdev-reopen``), a port's end changes (``chardev-change``), and the
end of a tap, which QEMU holds, is moved to another device (``LooseTap``).

Source: docs/decisions/0044-pods.md; QAPI: add-fd, blockdev-add, blockdev-reopen, chardev-change.
"""

from __future__ import annotations

import contextlib
import enum
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from proa.host.foreign_fd import take_fd
from proa.host.loose_tap import LooseTap
from proa.model.errors import InvalidParameter
from proa.model.ids import ContainerId
from proa.model.task import BlockRootfs, TaskSpec
from proa.runtime.vm.disks import SLOT_BYTES, plan_layers, vmdk_descriptor
from proa.runtime.vm.home import Home, Pid
from proa.runtime.vm.machine import MIB, PLACEHOLDER_BYTES, usable_bytes
from proa.runtime.vm.messages import LayerExtent
from proa.runtime.vm.monitor import Monitor, MonitorError, greeted_monitor
from proa.runtime.vm.qemu import HostProcess

PREFIX = ".pod-"  # of directories in the exec root; no container's id begins with a dot


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Content of state.json. ``taps`` are descriptors in QEMU, one for each seat."""

    name: str
    qemu: Pid
    memory_bytes: int
    vcpus: int
    taps: list[int]


class Use(enum.Enum):
    """What a seat is doing."""

    FREE = "free"
    TAKEN = "taken"
    LEAVING = "leaving"  # the container is over, the agent is being replaced
    BROKEN = "broken"  # its agent does not answer


@dataclass(slots=True, kw_only=True)
class Seat:
    """One of the machine's places.

    :ivar joins: the seat whose network it shares.
    """

    number: int
    use: Use = Use.FREE
    container: ContainerId | None = None
    memory_bytes: int = 0
    joins: int | None = None

    @property
    def disks(self) -> tuple[str, str]:
        """The guest's names of the layers' disk and the writable one: in the order of -device."""
        first = ord("a") + 2 * self.number
        return f"vd{chr(first)}", f"vd{chr(first + 1)}"


class Pod:
    """The machine. Made, found and ended by ``PodRuntime``."""

    def __init__(self, home: Path, state: State, process: HostProcess) -> None:
        self.home = home
        self.state = state
        self.process = process
        self.seats = [Seat(number=n) for n in range(len(state.taps))]
        self._using_monitor = anyio.Lock()

    @property
    def name(self) -> str:
        return self.state.name

    def spare_tap(self, seat: int) -> str:
        """The device of a card that is on no network: never up."""
        return spare_tap(self.home.name.removeprefix(PREFIX), seat)

    def control(self, seat: Seat) -> Path:
        return self.home / f"control-{seat.number}"

    def find_seat(self, container: ContainerId) -> Seat | None:
        """Return the seat of a container that is here."""
        return next((seat for seat in self.seats if seat.container == container), None)

    def find_free(self) -> Seat | None:
        """Return a seat to take: not one whose network others still share."""
        shared = {seat.joins for seat in self.seats if seat.use is Use.TAKEN}
        return next((seat for seat in self.seats if seat.use is Use.FREE and seat.number not in shared), None)

    def is_used(self) -> bool:
        return any(seat.use is Use.TAKEN for seat in self.seats)

    def check_fits(self, memory_limit_bytes: int, cpus: float, *, seat: Seat | None = None) -> None:
        """Raise InvalidParameter for limits that cannot be held beside those of the others.

        :param seat: whose limits are to be replaced.
        """
        usable = usable_bytes(self.state.memory_bytes)
        given = sum(each.memory_bytes for each in self.seats if each is not seat)
        if memory_limit_bytes > usable - given:
            raise InvalidParameter(
                f"the virtual machine {self.name} has {usable // MIB}MB for its containers, of which "
                f"{given // MIB}MB are promised: a memory limit of {memory_limit_bytes // MIB}MB does not fit"
            )
        if cpus > self.state.vcpus:
            raise InvalidParameter(
                f"Range of CPUs is from 0.01 to {self.state.vcpus}.00, as there are only "
                f"{self.state.vcpus} CPUs available in the virtual machine {self.name}"
            )

    def write(self) -> None:
        (self.home / "state.json").write_bytes(msgspec.json.encode(self.state))

    async def end(self) -> None:
        """End QEMU and remove the directory. Idempotent."""
        with anyio.CancelScope(shield=True):
            await self.process.end()
            self.process.close()
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(self.home, ignore_errors=True))

    # --- plugging ---

    async def plug(
        self, seat: Seat, spec: TaskSpec, home: Home, fs_fd: int | None
    ) -> tuple[LayerExtent, ...]:
        """Put what is the container's behind the seat's ports, disks and card; return where its layers lie.

        :raises MonitorError, OutcomeUnknown, Unavailable: QEMU could not, or is gone.
        :raises OSError: a file or a tap cannot be opened.
        """
        assert isinstance(spec.rootfs, BlockRootfs)
        layers = plan_layers(spec.rootfs, home.path / "layers.vmdk")
        async with self._using_monitor, greeted_monitor(self.home / "monitor") as monitor:
            plug = _Plug(monitor, seat.number)
            await plug.end_port("log", spec.log_path)
            await plug.end_port("exit", home.exit_record)
            if fs_fd is not None:
                await plug.connect_port("fs", fs_fd)
            if spec.rootfs.layers:
                await plug.put_layers(spec.rootfs.layers, home.path / "layers.vmdk")
            await plug.put_disk("written", spec.rootfs.writable)
        if spec.network.interfaces:
            await self._move_tap(seat, spec.network.interfaces[0].device)
        return layers.extents

    async def unplug(self, seat: Seat) -> None:
        """Take away what was put there; what is not there does not matter. Raises as ``plug``."""
        await self._move_tap(seat, self.spare_tap(seat.number))
        async with self._using_monitor, greeted_monitor(self.home / "monitor") as monitor:
            plug = _Plug(monitor, seat.number)
            for port in ("log", "exit", "fs"):
                await plug.free_port(port)
            await plug.take_disk("layers", read_only=True)
            await plug.take_disk("written", read_only=False)
            await plug.close_files()

    async def _move_tap(self, seat: Seat, device: str) -> None:
        tap = LooseTap.held(take_fd(self.process.pid, self.state.taps[seat.number]))
        try:
            if tap.device != device:
                await anyio.to_thread.run_sync(tap.move, device)
        finally:
            tap.close()


def spare_tap(pod: str, seat: int) -> str:
    return f"proapd{pod}{seat}"


class _Plug:
    """What is said to QEMU's monitor about one seat, whose mark all descriptors bear that it was given."""

    def __init__(self, monitor: Monitor, seat: int) -> None:
        self._monitor = monitor
        self._seat = seat

    async def end_port(self, port: str, file: Path) -> None:
        """Have what the guest writes to a port appended to a file."""
        name = await self._pass(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        await self._change(port, {"type": "file", "data": {"out": name, "append": True}})

    async def connect_port(self, port: str, fd: int) -> None:
        """Connect a port to a socket."""
        name = f"{port}-{self._seat}"
        await self._monitor.execute("getfd", {"fdname": name}, fd=fd)
        address = {"type": "fd", "data": {"str": name}}
        await self._change(port, {"type": "socket", "data": {"addr": address, "server": False}})

    async def free_port(self, port: str) -> None:
        await self._change(port, {"type": "null", "data": {}})

    async def put_layers(self, layers: tuple[Path, ...], descriptor: Path) -> None:
        """All of them as one VMDK, which always has the size that the guest has seen in the template."""
        names = [await self._pass(layer, os.O_RDONLY) for layer in layers]
        spans = [SLOT_BYTES] * (len(names) - 1)
        spans.append(PLACEHOLDER_BYTES - sum(spans))
        descriptor.write_text(vmdk_descriptor([Path(name) for name in names], spans))
        name = await self._pass(descriptor, os.O_RDONLY)
        await self._put("layers", {"driver": "vmdk", "read-only": True}, name)

    async def put_disk(self, disk: str, file: Path) -> None:
        name = await self._pass(file, os.O_RDWR)
        await self._put(disk, {"driver": "raw", "read-only": False, "discard": "unmap"}, name)

    async def take_disk(self, disk: str, *, read_only: bool) -> None:
        await self._reopen(disk, f"{disk}-{self._seat}-nothing", read_only=read_only)
        with contextlib.suppress(MonitorError):  # nothing was there
            await self._monitor.execute("blockdev-del", {"node-name": f"{disk}-{self._seat}-file"})

    async def close_files(self) -> None:
        for entry in await self._monitor.execute("query-fdsets"):
            marks = (f"seat-{self._seat}", f"log-{self._seat}")  # the other one: of ``log_bound``
            if any(fd.get("opaque") in marks for fd in entry["fds"]):
                with contextlib.suppress(MonitorError):
                    await self._monitor.execute("remove-fd", {"fdset-id": entry["fdset-id"]})

    # --- machinery ---

    async def _put(self, disk: str, format_options: dict[str, Any], name: str) -> None:
        """Any: JSON of QEMU's options."""
        is_read_only = bool(format_options["read-only"])
        node = f"{disk}-{self._seat}-file"
        file = {"driver": "file", "filename": name, "read-only": is_read_only}
        if not is_read_only:
            file["discard"] = "unmap"
        await self._monitor.execute("blockdev-add", {"node-name": node, **format_options, "file": file})
        await self._reopen(disk, node, read_only=is_read_only)

    async def _reopen(self, disk: str, child: str, *, read_only: bool) -> None:
        node: dict[str, str | bool] = {
            "driver": "raw",
            "node-name": f"{disk}-{self._seat}-node",
            "read-only": read_only,
            "file": child,
        }
        if not read_only:
            node["discard"] = "unmap"
        await self._monitor.execute("blockdev-reopen", {"options": [node]})

    async def _change(self, port: str, backend: dict[str, Any]) -> None:
        """Any: JSON of QEMU's options."""
        await self._monitor.execute("chardev-change", {"id": f"{port}-{self._seat}", "backend": backend})

    async def _pass(self, path: Path, flags: int) -> str:
        """Open a file and give it to QEMU; return the name that QEMU opens it by."""
        fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            added = await self._monitor.execute("add-fd", {"opaque": f"seat-{self._seat}"}, fd=fd)
        finally:
            os.close(fd)
        return f"/dev/fdset/{added['fdset-id']}"

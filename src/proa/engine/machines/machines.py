# SPDX-License-Identifier: Apache-2.0
"""Full machines: made, listed, changed, removed. What makes them run and end is in ``lives``.

Source: docs/reference/vms.yaml.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom

import anyio
import anyio.to_thread
import msgspec

from proa.engine.filters import Filters, check_filters, match_labels, match_text
from proa.engine.machines import request as requests
from proa.engine.machines.copies import Copies
from proa.engine.machines.from_image import FromImage
from proa.engine.machines.guests import GuestFiles
from proa.engine.machines.lives import Lives
from proa.engine.machines.to_image import ToImage
from proa.engine.names import random_name
from proa.host.cgroup_usage import Usage
from proa.machines import hotplug, snapshots
from proa.machines.agent import GuestResult
from proa.machines.console import BoundedLog, ConsoleStdio
from proa.machines.driver import Driver
from proa.machines.running import VncAccess
from proa.machines.snapshots import Snapshot
from proa.machines.store import MachineStore
from proa.model.errors import EngineError, InvalidParameter, NameInUse, NotFound, WrongState
from proa.model.ids import new_id
from proa.model.machine import Machine, MachineConfig, MachineDisk, MachineId, MachineNic, MachineState
from proa.network.attach import Attached
from proa.network.networks import Networks


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineView:
    """A machine with what is not in its record.

    :ivar disk_sizes: what the guest sees and what the host holds, in bytes, by name.
    """

    machine: Machine
    pid: int
    attached: Attached | None
    disk_sizes: dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineUsage:
    """What a machine takes of the host's disk, and how many snapshots are in that."""

    machine: Machine
    held_bytes: int
    snapshots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineChange:
    """What a user wants changed; None leaves it."""

    cpus: int | None = None
    memory: int | None = None
    autostart: bool | None = None


class Machines:
    """The use cases of the API."""

    def __init__(
        self,
        *,
        store: MachineStore,
        driver: Driver,
        lives: Lives,
        networks: Networks,
        from_image: FromImage,
        to_image: ToImage,
    ) -> None:
        self._store = store
        self._driver = driver
        self._lives = lives
        self._networks = networks
        self.copies = Copies(store=store, driver=driver, lives=lives, networks=networks)
        self.files = GuestFiles(store, lives)
        self._from_image = from_image
        self._to_image = to_image

    @property
    def lives(self) -> Lives:
        """What starts and ends them."""
        return self._lives

    @property
    def to_image(self) -> ToImage:
        """What makes images of them."""
        return self._to_image

    # --- looking ---

    def get(self, ref: str) -> MachineView:
        """Return a machine. Raises NoSuchMachine, InvalidParameter."""
        return self._view(self._store.get(ref))

    def list(self, filters: Filters) -> Sequence[MachineView]:
        """Return the machines that fit, oldest first."""
        check_filters(filters, ("id", "label", "label!", "name", "status"))
        return [
            self._view(one)
            for one in self._store
            if match_text(one.name, filters.get("name", ()))
            and match_labels(one.config.labels or {}, filters)
            and (not filters.get("status") or one.state.value in filters["status"])
            and (not filters.get("id") or any(one.id.startswith(part) for part in filters["id"]))
        ]

    def logs(self, ref: str) -> bytes:
        """Return what is kept of the serial console."""
        home = self._driver.home(self._store.get(ref).id)
        return BoundedLog(home.data / "console.log").read()

    def open_console(self, ref: str) -> ConsoleStdio:
        """Look at the serial console and type. Raises WrongState."""
        return self._lives.running(self._store.get(ref)).open_console()

    async def screenshot(self, ref: str) -> bytes:
        """Return the screen as PNG. Raises WrongState, InvalidParameter (headless)."""
        return await self._lives.running(self._store.get(ref)).screenshot()

    async def open_vnc(self, ref: str) -> VncAccess:
        """Let a VNC client in. Raises WrongState, InvalidParameter (headless)."""
        return await self._lives.running(self._store.get(ref)).open_vnc()

    def usage(self, ref: str) -> Usage:
        """Return what QEMU takes of the host. Raises WrongState."""
        return self._lives.running(self._store.get(ref)).usage()

    async def disk_usage(self) -> Sequence[MachineUsage]:
        """Measure what each machine takes on disk, oldest machine first."""
        return await anyio.to_thread.run_sync(
            lambda: [
                MachineUsage(machine=one, held_bytes=held, snapshots=count)
                for one in self._store
                for held, count in (self._driver.disk_usage(one),)
            ]
        )

    async def prune_downloads(self) -> int:
        """Remove the images that were fetched by address; return the bytes."""
        return await self._driver.prune_downloads()

    # --- making and changing ---

    async def create(self, name: str, wanted: MachineConfig) -> Machine:
        """Make a machine, which takes as long as copying its disks does.

        :raises InvalidParameter, NameInUse, NoSuchNetwork, NoSuchImage, Unavailable, ToolFailed: nothing is
            left.
        """
        name = name or random_name([one.name for one in self._store], SystemRandom())
        requests.check_name(name)
        config = requests.complete(self._from_image.complete(wanted))
        for endpoint in requests.endpoint_requests(config):
            self._networks.get(endpoint.network)
        self._driver.check(config)
        machine = Machine(
            id=MachineId(new_id()),
            name=name,
            created_at_ns=time.time_ns(),
            config=config,
            state=MachineState.CREATING,
        )

        async def make_files() -> Machine | None:
            await self._driver.prepare(machine)
            return await self._fill(machine) if config.image else None

        return await self._lives.make(machine, make_files)

    async def rename(self, ref: str, name: str) -> None:
        """Give another name, on its networks as well. Raises NameInUse, InvalidParameter."""
        requests.check_name(name)
        async with self._lives.changing(self._store.get(ref)) as machine:
            self._store.put(msgspec.structs.replace(machine, name=name))
            self._networks.rename(machine.id, name)
            self._lives.publish("rename", self._store.get(machine.id), {"oldName": machine.name})

    async def remove(self, ref: str, *, force: bool) -> None:
        """Remove a machine and its disks. Raises WrongState when it runs, unless ``force``."""
        machine = self._store.get(ref)
        if machine.state.is_alive:
            if not force:
                raise WrongState(
                    f"cannot remove virtual machine {machine.name}: it is {machine.state.value}: "
                    "stop it first, or force the removal"
                )
            await self._lives.kill(machine.id)
        async with self._lives.changing(machine) as machine:
            _require_stopped(machine, "removed")
            self._store.put(msgspec.structs.replace(machine, state=MachineState.REMOVING))
            await self._lives.forget(machine)
        self._lives.publish("destroy", machine)

    async def update(self, ref: str, change: MachineChange) -> None:
        """Change processors, memory (both of a stopped machine) or autostart. Raises WrongState,
        InvalidParameter."""
        async with self._lives.changing(self._store.get(ref)) as machine:
            config = machine.config
            if change.cpus is not None or change.memory is not None:
                _require_stopped(machine, "given other processors or memory")
                config = msgspec.structs.replace(
                    config,
                    cpus=config.cpus if change.cpus is None else change.cpus,
                    memory=config.memory if change.memory is None else change.memory,
                )
                requests.check_size(config)
            if change.autostart is not None:
                config = msgspec.structs.replace(config, autostart=change.autostart)
            self._put_config(machine, config)

    async def exec(
        self, ref: str, command: Sequence[str], *, env: Sequence[str], stdin: bytes, timeout_s: float
    ) -> GuestResult:
        """Run a command by the guest's agent. Raises WrongState, Conflict (no agent), InvalidParameter."""
        running = self._lives.running(self._store.get(ref))
        return await running.exec(command, env=env, stdin=stdin, timeout_s=timeout_s)

    # --- snapshots ---

    async def snapshots(self, ref: str) -> Sequence[Snapshot]:
        """Return a machine's snapshots, oldest first."""
        paths = self._disk_paths(self._store.get(ref))
        return await snapshots.list_of(paths[0]) if paths else []

    async def save_snapshot(self, ref: str, name: str) -> None:
        """Keep the disks, and of a running machine the memory. Raises NameInUse, InvalidParameter."""
        requests.check_name(name)
        async with self._lives.changing(self._store.get(ref)) as machine:
            names = [disk.name for disk in machine.config.disks or ()]
            snapshots.check_disks(names)
            paths = self._disk_paths(machine)
            if any(one.name == name for one in await snapshots.list_of(paths[0])):
                raise NameInUse(f"virtual machine {machine.name} has a snapshot {name} already")
            if machine.state.is_alive:
                if await hotplug.has_plugged(self._driver.home(machine.id).monitor):
                    raise WrongState(
                        f"virtual machine {machine.name} has a disk that came while it runs: a snapshot of "
                        "its memory would fit no later start. Reboot it, or stop it, first"
                    )
                await snapshots.save(self._driver.home(machine.id).monitor, name, names)
            else:
                await snapshots.save_disks(paths, name)
            self._lives.publish("snapshot", machine, {"snapshot": name})

    async def load_snapshot(self, ref: str, name: str) -> None:
        """Go back: while it runs with its memory, else the disks alone. Raises NotFound, WrongState."""
        async with self._lives.changing(self._store.get(ref)) as machine:
            found = await self._find_snapshot(machine, name)
            if not machine.state.is_alive:
                await snapshots.load_disks(self._disk_paths(machine), name)
            elif not found.memory_bytes:
                raise WrongState(f"snapshot {name} has no memory in it: stop {machine.name} first")
            else:
                names = [disk.name for disk in machine.config.disks or ()]
                await snapshots.load(self._driver.home(machine.id).monitor, name, names)
                self._store.put(msgspec.structs.replace(machine, state=MachineState.RUNNING))
            self._lives.publish("restore", machine, {"snapshot": name})

    async def delete_snapshot(self, ref: str, name: str) -> None:
        """Forget one. Raises NotFound."""
        async with self._lives.changing(self._store.get(ref)) as machine:
            await self._find_snapshot(machine, name)
            if machine.state.is_alive:
                names = [disk.name for disk in machine.config.disks or ()]
                await snapshots.delete(self._driver.home(machine.id).monitor, name, names)
            else:
                await snapshots.delete_disks(self._disk_paths(machine), name)

    # --- disks and networks ---

    async def add_disk(self, ref: str, disk: MachineDisk) -> str:
        """Give a machine one more disk, while it runs too; return its name.

        :raises InvalidParameter, WrongState, Internal: then it is as before.
        """
        async with self._lives.changing(self._store.get(ref)) as machine:
            if not machine.state.is_alive:
                _require_stopped(machine, "given a disk")
            disks = list(machine.config.disks or ())
            taken = {one.name for one in disks}
            if not disk.name:
                free = next(name for n in range(len(disks) + 1) if (name := f"disk{n}") not in taken)
                disk = msgspec.structs.replace(disk, name=free)
            requests.check_disks([*disks, disk])
            await self._driver.add_disk(machine.id, disk)
            # Before QEMU has it: a daemon that is killed here leaves a disk that is there at the next start.
            self._put_config(machine, msgspec.structs.replace(machine.config, disks=[*disks, disk]))
            if machine.state.is_alive:
                await self._plug(machine, disk)
        return disk.name

    async def _plug(self, before: Machine, disk: MachineDisk) -> None:
        """Give a disk of a machine to its QEMU; on failure the machine is as ``before``."""
        home = self._driver.home(before.id)
        with anyio.CancelScope(shield=True):
            try:
                await hotplug.plug(home.monitor, disk.name, home.disk(disk.name))
            except EngineError:
                self._store.put(before)
                self._driver.remove_disk(before.id, disk.name)
                raise

    async def resize_disk(self, ref: str, name: str, size: int) -> None:
        """Let a disk grow, while the machine runs too. Raises InvalidParameter when it would shrink."""
        async with self._lives.changing(self._store.get(ref)) as machine:
            disk = _disk_of(machine, name)
            requests.check_disks([msgspec.structs.replace(disk, size=size)])
            present, _ = self._driver.disk_sizes(machine)[name]
            if size < present:
                raise InvalidParameter(f"disk {name} has {present} bytes: it can only grow")
            if machine.state.is_alive:
                await self._lives.running(machine).resize_disk(name, size)
            else:
                await self._driver.resize_disk(machine.id, name, size)
            changed = msgspec.structs.replace(disk, size=size)
            disks = [changed if one.name == name else one for one in machine.config.disks or ()]
            self._put_config(machine, msgspec.structs.replace(machine.config, disks=disks))

    async def remove_disk(self, ref: str, name: str) -> None:
        """Take a disk from a machine, with all that is on it; while it runs, only one that came meanwhile.

        :raises NotFound, WrongState: nothing is changed.
        :raises Unavailable: the guest does not let go of it.
        """
        async with self._lives.changing(self._store.get(ref)) as machine:
            gone = _disk_of(machine, name)
            if machine.state is MachineState.RUNNING:
                await hotplug.unplug(self._driver.home(machine.id).monitor, name)
            else:
                _require_stopped(machine, "deprived of a disk")
            disks = [one for one in machine.config.disks or () if one is not gone]
            self._put_config(machine, msgspec.structs.replace(machine.config, disks=disks))
            self._driver.remove_disk(machine.id, name)

    async def connect(self, ref: str, nic: MachineNic) -> None:
        """Put a stopped machine on one more network. Raises WrongState, NoSuchNetwork, InvalidParameter."""
        async with self._lives.changing(self._store.get(ref)) as machine:
            _require_stopped(machine, "connected to another network")
            nic = requests.complete_nic(nic)
            network = self._networks.get(nic.network)
            if any(self._networks.get(one.network).id == network.id for one in machine.config.nics or ()):
                raise WrongState(f"virtual machine {machine.name} is already on network {network.name}")
            config = msgspec.structs.replace(machine.config, nics=[*(machine.config.nics or ()), nic])
            requests.check(config)
            self._put_config(machine, config)

    async def disconnect(self, ref: str, network: str) -> None:
        """Take a stopped machine off a network. Raises WrongState, NoSuchNetwork."""
        async with self._lives.changing(self._store.get(ref)) as machine:
            _require_stopped(machine, "taken off a network")
            found = self._networks.get(network)
            left = [
                one for one in machine.config.nics or () if self._networks.get(one.network).id != found.id
            ]
            if len(left) == len(machine.config.nics or ()):
                raise WrongState(f"virtual machine {machine.name} is not on network {found.name}")
            self._put_config(machine, msgspec.structs.replace(machine.config, nics=left))

    # --- machinery ---

    async def _fill(self, machine: Machine) -> Machine:
        """Make the root disk of a machine's image. On failure its files are gone."""
        home = self._driver.home(machine.id)
        try:
            config = await self._from_image.fill(machine, home)
        except BaseException:
            home.remove()
            raise
        return msgspec.structs.replace(machine, config=config)

    def _disk_paths(self, machine: Machine) -> Sequence[Path]:
        return self._driver.checked_disks(machine)

    async def _find_snapshot(self, machine: Machine, name: str) -> Snapshot:
        paths = self._disk_paths(machine)
        for one in await snapshots.list_of(paths[0]) if paths else []:
            if one.name == name:
                return one
        raise NotFound(f"virtual machine {machine.name} has no snapshot {name}")

    def _put_config(self, machine: Machine, config: MachineConfig) -> None:
        changed = msgspec.structs.replace(machine, config=config)
        self._store.put(changed)
        self._lives.publish("update", changed)

    def _view(self, machine: Machine) -> MachineView:
        running = self._lives.find_running(machine.id)
        return MachineView(
            machine=machine,
            pid=0 if running is None else running.pid,
            attached=self._networks.find(machine.id),
            disk_sizes=self._driver.disk_sizes(machine),
        )


def _require_stopped(machine: Machine, what: str) -> None:
    if not machine.state.is_off:
        raise WrongState(
            f"virtual machine {machine.name} is {machine.state.value}: it can be {what} only when stopped"
        )


def _disk_of(machine: Machine, name: str) -> MachineDisk:
    for disk in machine.config.disks or ():
        if disk.name == name:
            return disk
    raise NotFound(f"virtual machine {machine.name} has no disk {name}")

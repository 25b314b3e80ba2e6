# SPDX-License-Identifier: Apache-2.0
"""How machines live: started, stopped, supervised to their end, found again by a later daemon.

    created ──start──► starting ──► running ◄──► paused
       stopped, crashed ◄──────────────┘ (QEMU's end, whoever brought it about)

The record says what is meant to be before it is done: a daemon killed between any two steps leaves a state
(creating, starting, removing) that the next one finishes or undoes. Each machine has one lock; a wait for a
guest's shutdown does not hold it, so that it can be killed meanwhile.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup

from proa.engine.events import EventBus
from proa.engine.machines import request as requests
from proa.machines.dhcp import Dhcp, Lease
from proa.machines.driver import Driver
from proa.machines.plan import Nic
from proa.machines.running import End, RunningMachine
from proa.machines.store import MachineStore, NoSuchMachine
from proa.machines.watch import Event
from proa.model.errors import EngineError, NotModified, WrongState
from proa.model.machine import Machine, MachineId, MachineState
from proa.model.task import NetworkKind
from proa.network.attach import Attached
from proa.network.networks import Networks

STOP_TIMEOUT_S = 60.0  # for a guest to shut down; systemd gives its services up to 90 s, few need ten

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Unit:
    """The live side of one machine. ``lock`` guards every change of its record."""

    lock: anyio.Lock = field(default_factory=anyio.Lock)
    running: RunningMachine | None = None


class Lives:
    """Starts and ends machines. ``tasks`` owns the supervision of each."""

    def __init__(
        self,
        *,
        store: MachineStore,
        driver: Driver,
        networks: Networks,
        dhcp: Dhcp,
        events: EventBus,
        tasks: TaskGroup,
    ) -> None:
        self._store = store
        self._driver = driver
        self._networks = networks
        self._dhcp = dhcp
        self._events = events
        self._tasks = tasks
        self._units: dict[MachineId, _Unit] = {}
        self._boot_id = _BOOT_ID.read_text().strip()

    # --- what a user does ---

    async def start(self, ref: str) -> None:
        """Start a machine. Raises NotModified when it runs, StartFailed and what networks raise; then it is
        as before."""
        async with self.changing(self._store.get(ref)) as machine:
            if machine.state is MachineState.RUNNING:
                raise NotModified(f"virtual machine {machine.name} is running already")
            if machine.state is MachineState.PAUSED:
                raise WrongState(f"virtual machine {machine.name} is paused: resume it")
            await self._start(machine)

    async def stop(self, ref: str, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Press the power button; after ``timeout_s`` end it by force. Raises NotModified when it is off."""
        async with self.changing(self._store.get(ref)) as machine:
            if not machine.state.is_alive:
                raise NotModified(f"virtual machine {machine.name} is not running")
            running = self.running(machine)
            if timeout_s > 0:
                await running.power_down()
                self._set(machine, MachineState.RUNNING)
        with anyio.move_on_after(timeout_s):
            await running.ended.wait()
            return
        await running.quit()
        await running.ended.wait()

    async def kill(self, ref: str) -> None:
        """Pull the plug. Raises WrongState when it is off."""
        running = self.running(self._store.get(ref))
        running.kill()
        await running.ended.wait()

    async def reboot(self, ref: str, *, hard: bool, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Shut down and start again; ``hard`` presses the reset button instead. Raises WrongState."""
        machine = self._store.get(ref)
        running = self.running(machine)
        if not hard:
            await self.stop(machine.id, timeout_s=timeout_s)
            await self.start(machine.id)
            return
        async with self.changing(machine):
            await running.reset()

    async def pause(self, ref: str) -> None:
        """Halt its processors. Raises WrongState."""
        async with self.changing(self._store.get(ref)) as machine:
            if machine.state is not MachineState.RUNNING:
                raise WrongState(f"virtual machine {machine.name} is not running")
            await self.running(machine).pause()
            self._set(machine, MachineState.PAUSED)
            self.publish("pause", machine)

    async def resume(self, ref: str) -> None:
        """Let it go on. Raises WrongState."""
        async with self.changing(self._store.get(ref)) as machine:
            if machine.state is not MachineState.PAUSED:
                raise WrongState(f"virtual machine {machine.name} is not paused")
            await self.running(machine).resume()
            self._set(machine, MachineState.RUNNING)
            self.publish("unpause", machine)

    # --- for the other use cases ---

    def running(self, machine: Machine) -> RunningMachine:
        """Return the machine's QEMU. Raises WrongState when there is none."""
        found = self.find_running(machine.id)
        if found is None:
            raise WrongState(f"virtual machine {machine.name} is not running")
        return found

    def find_running(self, machine_id: MachineId) -> RunningMachine | None:
        unit = self._units.get(machine_id)
        return None if unit is None else unit.running

    @asynccontextmanager
    async def changing(self, machine: Machine) -> AsyncIterator[Machine]:
        """Hold the machine's lock; yields its record as it is then. Raises NoSuchMachine when it has gone."""
        unit = self._units.setdefault(machine.id, _Unit())
        async with unit.lock:
            present = self._store.find(machine.id)
            if present is None:
                raise NoSuchMachine(machine.id)
            yield present

    async def make(self, machine: Machine, make_files: Callable[[], Awaitable[Machine | None]]) -> Machine:
        """Keep a new machine's record while its files are made, and tell of it.

        :param make_files: returns the record as it is then, None when it has not changed.
        :raises NameInUse, and what ``make_files`` raises: nothing is left of the record.
        """
        self._store.add(machine)
        async with self.changing(machine):
            try:
                machine = await make_files() or machine
                machine = msgspec.structs.replace(machine, state=MachineState.CREATED)
                self._store.put(machine)
            except BaseException:
                self._store.drop(machine.id)
                raise
        self.publish("create", machine)
        return machine

    async def forget(self, machine: Machine) -> None:
        """Remove the machine's files, then its record. The caller holds its lock."""
        await self._leave(machine.id)
        await anyio.to_thread.run_sync(self._driver.home(machine.id).remove)
        self._store.drop(machine.id)
        self._units.pop(machine.id, None)

    def publish(self, action: str, machine: Machine, more: Mapping[str, str] | None = None) -> None:
        """Tell what happened to a machine."""
        labels = machine.config.labels or {}
        self._events.publish("vm", action, machine.id, {**labels, "name": machine.name, **(more or {})})

    def alive_ids(self) -> list[str]:
        """Return the machines that hold networks."""
        return [one.id for one in self._store if one.state.is_alive]

    # --- the daemon's beginning and end ---

    async def find_all(self) -> None:
        """Bring records and reality together. Once, before anything else."""
        for machine in self._store:
            try:
                await self._find(machine)
            except (EngineError, OSError):
                log.exception("restoring virtual machine %s", machine.name)
        known = [machine.id for machine in self._store]
        for stranger in self._driver.strangers(known):
            await self._driver.end_leftover(stranger)
        self._driver.remove_all_but(known)
        await self._dhcp.end_strangers()

    async def start_wanted(self) -> None:
        """Start what is meant to run after a reboot of the host and has not been touched since."""
        for machine in self._store:
            is_new_boot = machine.boot_id != self._boot_id
            if machine.config.autostart and is_new_boot and not machine.state.is_alive:
                try:
                    await self.start(machine.id)
                except (EngineError, OSError) as error:
                    log.warning("starting virtual machine %s: %s", machine.name, error)

    async def end_all(self) -> None:
        """Pull every plug. For uninstalling."""
        for machine in self._store:
            if machine.state.is_alive:
                await self.kill(machine.id)

    # --- machinery ---

    async def _start(self, machine: Machine) -> None:
        before = machine
        machine = self._set(machine, MachineState.STARTING)
        try:
            async with AsyncExitStack() as undo:
                undo.push_async_callback(self._leave, machine.id)
                attached = await self._networks.attach(
                    machine.id,
                    kind=NetworkKind.TAP,
                    endpoints=requests.endpoint_requests(machine.config),
                    ports=requests.published_ports(machine.config),
                    container_name=machine.name,
                    hostname=requests.hostname_of(machine),
                )
                await self._dhcp.add(machine.id, self._leases(machine, attached))
                nics = [Nic(tap=one.device, mac=one.mac) for one in attached.attachment.interfaces]
                running = await self._driver.launch(machine, nics)
                undo.pop_all()
        except BaseException:
            self._store.put(before)
            raise
        machine = msgspec.structs.replace(machine, started_at_ns=time.time_ns(), finished_at_ns=0, reason="")
        self._adopt(self._set(machine, MachineState.RUNNING), running)
        self.publish("start", machine)

    def _adopt(self, machine: Machine, running: RunningMachine) -> None:
        self._units.setdefault(machine.id, _Unit()).running = running
        running.on_event = lambda name, data: self._on_event(machine.id, name, data)
        self._tasks.start_soon(self._supervise, machine.id, running, name=f"machine {machine.name}")

    async def _supervise(self, machine_id: MachineId, running: RunningMachine) -> None:
        end = await running.supervise()
        with anyio.CancelScope(shield=True):
            unit = self._units[machine_id]
            async with unit.lock:
                await running.release()
                await self._leave(machine_id)
                unit.running = None
                self._ended(self._store.get(machine_id), end)
            running.ended.set()

    def _ended(self, machine: Machine, end: End) -> None:
        state = MachineState.CRASHED if end.crashed else MachineState.STOPPED
        machine = msgspec.structs.replace(machine, finished_at_ns=time.time_ns(), reason=end.reason)
        machine = self._set(machine, state)
        self.publish("crash" if end.crashed else "die", machine, {"reason": end.reason})
        if end.crashed:
            log.warning("virtual machine %s: %s", machine.name, end.reason)

    async def _find(self, machine: Machine) -> None:
        if machine.state in (MachineState.CREATING, MachineState.REMOVING):
            await self.forget(machine)
            return
        if machine.state is MachineState.STARTING:
            await self._driver.end_leftover(machine.id)
            await self._leave(machine.id)
            end = End(crashed=False, reason="its start was cut short: the daemon ended")
            self._ended(machine, end)
            return
        if not machine.state.is_alive:
            return
        running = self._driver.find(machine.id)
        if running is None:
            await self._driver.end_leftover(machine.id)
            await self._leave(machine.id)
            is_same_boot = machine.boot_id == self._boot_id
            reason = "it ended while no daemon watched it" if is_same_boot else "the host was restarted"
            # Its boot stays the old one: autostart is due.
            ended = msgspec.structs.replace(machine, finished_at_ns=time.time_ns(), reason=reason)
            self._store.put(msgspec.structs.replace(ended, state=MachineState.STOPPED))
            self.publish("die", machine, {"reason": reason})
            return
        attached = self._networks.find(machine.id)
        if attached is not None:
            await self._dhcp.add(machine.id, self._leases(machine, attached))
        self._adopt(machine, running)
        paused = await running.is_paused()
        self._set(machine, MachineState.PAUSED if paused else MachineState.RUNNING)

    def _on_event(self, machine_id: MachineId, name: str, data: Event) -> None:
        """Tell what QEMU told, as far as it means something to a user."""
        machine = self._store.find(machine_id)
        if machine is None:
            return
        if name == "RESET" and data.get("guest"):
            self.publish("reset", machine)
        elif name == "BLOCK_IO_ERROR":
            reason = str(data.get("reason", ""))
            self.publish("io-error", machine, {"disk": str(data.get("node-name", "")), "reason": reason})

    async def _leave(self, machine_id: MachineId) -> None:
        await self._dhcp.remove(machine_id)
        await self._networks.detach(machine_id)

    def _leases(self, machine: Machine, attached: Attached) -> dict[str, list[Lease]]:
        """Return what the guest is told, by bridge."""
        servers = tuple(
            line.split()[1]
            for line in self._networks.resolv_conf(attached.endpoints).decode().splitlines()
            if line.startswith("nameserver ") and ":" not in line
        )
        leases: dict[str, list[Lease]] = {}
        for interface in attached.attachment.interfaces:
            assert interface.address is not None, "taps are on networks with IPv4 only"
            bridge = self._networks.get(interface.network_id).bridge
            lease = Lease(
                mac=interface.mac,
                address=interface.address,
                hostname=requests.hostname_of(machine),
                router=interface.gateway,
                servers=servers,
                mtu=interface.mtu,
            )
            leases.setdefault(bridge, []).append(lease)
        return leases

    def _set(self, machine: Machine, state: MachineState) -> Machine:
        changed = msgspec.structs.replace(machine, state=state, boot_id=self._boot_id)
        self._store.put(changed)
        return changed

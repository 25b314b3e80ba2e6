# SPDX-License-Identifier: Apache-2.0
"""Machines made from machines: a fork beside the original, an archive to be carried to another host.

A fork is a machine of its own: it has other MAC addresses, and to cloud-init it is new. Its memory is never
copied, for a guest that goes on would keep the addresses and keys of the original. A machine that is imported
is the same one in another place: it keeps MAC addresses that nobody has here, and cloud-init does not begin
anew.

Source: docs/reference/vms.yaml, VmFork, VmExport, VmImport.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from proa.engine.machines import request as requests
from proa.engine.machines.lives import Lives
from proa.image.archive_writer import write_archive
from proa.machines.archive import plan_archive, read_archive
from proa.machines.driver import Driver
from proa.machines.store import MachineStore
from proa.model.errors import WrongState
from proa.model.ids import new_id
from proa.model.machine import Machine, MachineConfig, MachineId, MachineNic, MachineState
from proa.network.networks import Networks

_SETTLED = (MachineState.CREATED, MachineState.STOPPED, MachineState.CRASHED)


class Copies:
    """The use cases of copying."""

    def __init__(self, *, store: MachineStore, driver: Driver, lives: Lives, networks: Networks) -> None:
        self._store = store
        self._driver = driver
        self._lives = lives
        self._networks = networks

    async def fork(self, ref: str, name: str) -> Machine:
        """Make another machine of a machine's disks, as they are now; it is not started.

        :raises InvalidParameter, NameInUse, WrongState, Internal, Unavailable: nothing is left.
        """
        requests.check_name(name)
        async with self._lives.changing(self._store.get(ref)) as source:
            _check_settled(source, "forked")
            config = requests.complete(forked_config(source.config))
            machine = _new_machine(name, config)
            return await self._lives.make(machine, lambda: self._driver.fork(source, machine))

    @asynccontextmanager
    async def open_export(self, ref: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give the archive of a machine, as it is now. Raises WrongState, Internal, Unavailable."""
        with self._driver.work() as folder:
            async with self._lives.changing(self._store.get(ref)) as machine:
                _check_settled(machine, "exported")
                disks = await self._driver.copy_disks(machine, folder)
                others = await self._driver.copy_others(machine, folder)
                others += self._driver.copy_tpm(machine, folder)
            pieces = write_archive(await plan_archive(machine, [*disks, *others]))
            self._lives.publish("export", machine)
            yield pieces

    async def import_archive(self, name: str, stream: AsyncIterator[bytes]) -> Machine:
        """Make a machine of an archive. ``name`` empty: the one in the archive.

        :raises InvalidParameter: it is none, is cut or changed, or asks for what cannot be; nothing is left.
        :raises NameInUse, NoSuchNetwork, Unavailable, Internal: nothing is left.
        """
        if name:
            requests.check_name(name)
        with self._driver.work() as folder:
            manifest, files = await read_archive(stream, folder)
            name = name or manifest.name
            requests.check_name(name)
            config = requests.complete(self._imported_config(manifest.config))
            for endpoint in requests.endpoint_requests(config):
                self._networks.get(endpoint.network)
            self._driver.check(config)
            instance = requests.check_instance(manifest.instance_id)
            machine = msgspec.structs.replace(_new_machine(name, config), instance_id=instance)
            return await self._lives.make(machine, lambda: self._driver.adopt(machine, files))

    # --- machinery ---

    def _imported_config(self, config: MachineConfig) -> MachineConfig:
        """Take away what an archive shall not decide here: files of this host, what starts by itself, MAC
        addresses that are in use."""
        taken = {nic.mac for one in self._store for nic in one.config.nics or ()}
        nics = [
            msgspec.structs.replace(nic, mac="") if nic.mac.lower() in taken else nic
            for nic in config.nics or ()
        ]
        disks = [msgspec.structs.replace(disk, source="") for disk in config.disks or ()]
        return msgspec.structs.replace(config, cdrom="", autostart=False, nics=nics, disks=disks)


def forked_config(config: MachineConfig) -> MachineConfig:
    """Return the configuration of a fork: what can be there only once stays with the original."""
    nics = [MachineNic(network=nic.network) for nic in config.nics or ()]
    return msgspec.structs.replace(config, nics=nics, port_bindings=None, hostname="", autostart=False)


def _new_machine(name: str, config: MachineConfig) -> Machine:
    return Machine(
        id=MachineId(new_id()),
        name=name,
        created_at_ns=time.time_ns(),
        config=config,
        state=MachineState.CREATING,
    )


def _check_settled(machine: Machine, what: str) -> None:
    if machine.state not in _SETTLED and not machine.state.is_alive:
        raise WrongState(
            f"virtual machine {machine.name} is {machine.state.value}: it cannot be {what} in this state"
        )

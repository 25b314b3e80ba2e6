# SPDX-License-Identifier: Apache-2.0
"""POST /containers/{id}/fork: a running copy of a running container, under a name and an identity of its own.

The copy's record is the source's but for what only one of the two can have: id, name, log, the default
hostname, addresses that were asked for, and published ports whose number was. It is stored, as one that is
being made, before anything else is; what is left of it after a death of the daemon is removed.

Source: docs/reference/containers-proa.yaml; docs/decisions/0042-fork-and-snapshots.md.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import anyio
from msgspec.structs import replace as replace_struct

from proa.engine import names
from proa.engine.container import Container, State
from proa.engine.creation import Created, check_name, event_attributes
from proa.engine.events import EventBus
from proa.engine.launcher import Launched, Launcher
from proa.engine.lifecycle import Lifecycle
from proa.engine.registry import Registry
from proa.engine.removal import Removal
from proa.engine.unit import Unit, Units
from proa.model.config import EndpointIpamConfig, HostConfig, PortBinding
from proa.model.errors import WrongState
from proa.model.ids import ContainerId, new_id
from proa.model.task import TaskSpec
from proa.runtime.seam import Runtime, Task


class Forking:
    """Makes the copies."""

    def __init__(
        self,
        *,
        registry: Registry,
        units: Units,
        launcher: Launcher,
        lifecycle: Lifecycle,
        removal: Removal,
        events: EventBus,
        containers_dir: Path,
    ) -> None:
        self._registry = registry
        self._units = units
        self._launcher = launcher
        self._lifecycle = lifecycle
        self._removal = removal
        self._events = events
        self._containers_dir = containers_dir

    async def fork(self, ref: str, name: str) -> Created:
        """Copy a running container; "" lets proa choose the name.

        Raises NoSuchContainer, WrongState, NameInUse, InvalidParameter, FeatureMissing; then nothing is left.
        """
        source = self._registry.get(ref)
        runtime = self._launcher.get_forking(source)
        task = self.get_running(source)
        return await self.bring_up(source, name, lambda _, spec: runtime.fork(task, spec))

    def get_running(self, container: Container) -> Task:
        """Return the task of one that runs. Raises WrongState."""
        task = self._units[container.id].task
        if container.state is not State.RUNNING or task is None:
            raise WrongState(f"container {container.id} is {container.state.value}, it must be running")
        return task

    async def bring_up(
        self, source: Container, name: str, begin: Callable[[Runtime, TaskSpec], Awaitable[Task]]
    ) -> Created:
        """Make a container whose program goes on from where another's was.

        :param source: the other's record; ``begin`` makes the task. What only one of the two can have is left
            to the other, if it is still there.

        Raises NameInUse, InvalidParameter and what ``begin`` raises; then nothing is left.
        """
        has_source = self._registry.find(source.id) is not None
        copy = self._add(source, name, has_source=has_source)

        async def launch(_: Unit, container: Container) -> Launched:
            return await self._launcher.go_on(container, begin)

        unit = self._units[copy.id]
        try:
            async with unit.lock:
                await self._lifecycle.begin(unit, copy, launch)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._removal.remove(copy.id, force=True)
            raise
        return Created(id=copy.id, warnings=tuple(_warnings(source, copy)) if has_source else ())

    def _add(self, source: Container, wanted: str, *, has_source: bool) -> Container:
        if wanted:
            check_name(wanted)
            self._registry.check_name(wanted.removeprefix("/"))
        taken = {container.name for container in self._registry}
        copy_id = ContainerId(new_id())
        config = source.config
        if config.hostname == source.id[:12]:
            config = replace_struct(config, hostname=copy_id[:12])
        if has_source:
            source = _without_fixed(source)
            config = replace_struct(config, mac_address="")
        copy = replace(
            source,
            id=copy_id,
            name=wanted.removeprefix("/") or names.random_name(taken, random.Random()),
            created_at_ns=time.time_ns(),
            config=config,
            state=State.CREATED,
            forking=True,
            ending=False,
            passing_pause=False,
            pid=0,
            oom_killed=False,
            restart_count=0,
            short_runs=0,
            health=None,
            stopped_by_user=False,
            endpoints=(),
            ports=(),
            log_path=str(self._containers_dir / copy_id / "log"),
        )
        self._registry.add(copy)
        self._events.publish("container", "create", copy.id, event_attributes(copy))
        return copy


def _without_fixed(source: Container) -> Container:
    return replace(
        source,
        host_config=_without_fixed_ports(source.host_config),
        networking={
            name: replace_struct(
                settings, ipam_config=_without_addresses(settings.ipam_config), mac_address=""
            )
            for name, settings in source.networking.items()
        },
    )


def _without_fixed_ports(host: HostConfig) -> HostConfig:
    """Return it with those published ports alone whose number on the host can be another one."""
    bindings = {
        port: [binding for binding in given or [PortBinding()] if not _is_fixed(binding)]
        for port, given in (host.port_bindings or {}).items()
    }
    return replace_struct(host, port_bindings={port: kept for port, kept in bindings.items() if kept} or None)


def _is_fixed(binding: PortBinding) -> bool:
    return binding.host_port not in ("", "0") and "-" not in binding.host_port


def _without_addresses(ipam: EndpointIpamConfig | None) -> EndpointIpamConfig | None:
    return replace_struct(ipam, i_pv4_address="", i_pv6_address="") if ipam is not None else None


def _warnings(source: Container, copy: Container) -> Iterator[str]:
    for port, given in (source.host_config.port_bindings or {}).items():
        for binding in given or ():
            if _is_fixed(binding):
                yield f"Published port {binding.host_port}->{port} stays with the source: the copy has none"
    for name, settings in source.networking.items():
        if settings != copy.networking[name]:
            yield f"The address that was asked for on network {name} stays with the source"
    if source.config.hostname == copy.config.hostname:
        yield f"The copy has the hostname that was chosen for the source: {copy.config.hostname}"

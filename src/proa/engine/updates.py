# SPDX-License-Identifier: Apache-2.0
"""Changes of an existing container: its name, its limits, its restart policy.

Source: Engine API, ContainerRename, ContainerUpdate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from msgspec.structs import replace as replace_struct

from proa.engine.creation import check_name, check_restart_policy, event_attributes
from proa.engine.events import EventBus
from proa.engine.isolation import Hulls
from proa.engine.limits import parse_resources
from proa.engine.registry import Registry
from proa.engine.unit import Units
from proa.model.config import HostConfig, RestartPolicy
from proa.model.errors import Conflict, InvalidParameter
from proa.network.networks import Networks


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRequest:
    """What POST /containers/{id}/update asks. 0, "" and None leave a value as it is."""

    memory: int = 0
    memory_swap: int = 0
    memory_reservation: int = 0
    cpu_shares: int = 0
    cpu_period: int = 0
    cpu_quota: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    nano_cpus: int = 0
    blkio_weight: int = 0
    pids_limit: int | None = None
    restart_policy: RestartPolicy | None = None


class Updates:
    """Changes records, and running tasks with them."""

    def __init__(
        self, *, registry: Registry, units: Units, hulls: Hulls, networks: Networks, events: EventBus
    ) -> None:
        self._registry = registry
        self._networks = networks
        self._units = units
        self._hulls = hulls
        self._events = events

    async def rename(self, ref: str, name: str) -> None:
        """Give another name. Raises NameInUse, InvalidParameter."""
        if not name:
            raise InvalidParameter("Neither old nor new names may be empty")
        check_name(name)
        name = name.removeprefix("/")
        unit = self._units[self._registry.get(ref).id]
        async with unit.lock:
            container = self._registry.get(unit.id)
            if container.name == name:
                raise InvalidParameter("Renaming a container with the same name as its current name")
            renamed = replace(container, name=name)
            self._registry.put(renamed)
            endpoints = self._networks.rename(container.id, name)
            if endpoints:
                self._registry.put(replace(renamed, endpoints=endpoints))
        self._events.publish(
            "container",
            "rename",
            container.id,
            {**event_attributes(renamed), "oldName": f"/{container.name}"},
        )

    async def update(self, ref: str, request: UpdateRequest) -> list[str]:
        """Change limits and restart policy, of the running task too; return warnings.

        Raises InvalidParameter, FeatureMissing; then nothing has changed.
        """
        unit = self._units[self._registry.get(ref).id]
        async with unit.lock:
            container = self._registry.get(unit.id)
            host = merge_update(container.host_config, request)
            if host.auto_remove and host.restart_policy.name not in ("", "no"):
                raise Conflict(
                    "Restart policy cannot be updated because AutoRemove is enabled for the container"
                )
            check_restart_policy(host)
            resources = parse_resources(host)
            self._hulls.check(container.runtime, host)
            if unit.task is not None and resources != parse_resources(container.host_config):
                await unit.task.update(resources)
            updated = replace(container, host_config=host)
            self._registry.put(updated)
        self._events.publish("container", "update", container.id, event_attributes(updated))
        return []


def merge_update(host: HostConfig, request: UpdateRequest) -> HostConfig:
    """Return the configuration with the request's values in place of its own."""
    if request.nano_cpus and (host.cpu_period or host.cpu_quota):
        raise Conflict(
            "Conflicting options: Nano CPUs cannot be updated as CPU Period or Quota has already been set"
        )
    if (request.cpu_period or request.cpu_quota) and host.nano_cpus:
        raise Conflict(
            "Conflicting options: CPU Period or Quota cannot be updated as NanoCPUs has already been set"
        )
    if request.memory and not request.memory_swap and 0 < host.memory_swap < request.memory:
        raise Conflict(
            "Memory limit should be smaller than already set memoryswap limit, "
            "update the memoryswap at the same time"
        )
    numbers = (
        "memory memory_swap memory_reservation cpu_shares cpu_period cpu_quota cpuset_cpus cpuset_mems "
        "nano_cpus blkio_weight"
    ).split()
    changes = {name: getattr(request, name) for name in numbers if getattr(request, name)}
    if request.pids_limit is not None:
        changes["pids_limit"] = request.pids_limit
    if request.restart_policy is not None and request.restart_policy.name:
        changes["restart_policy"] = request.restart_policy
    return replace_struct(host, **changes)

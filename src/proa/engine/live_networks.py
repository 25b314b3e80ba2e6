# SPDX-License-Identifier: Apache-2.0
"""Changes the networks of a container that runs: the host's side, and the task's where it has one of its own.

    connect      host (device, names, ports), then the task takes the device; undone when it cannot
    disconnect   host (the device is cut off), then the task lets go of it, then it is deleted
    settle       what a daemon that died between two of these steps has left

The container in a network namespace is a matter of the host's side alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import anyio

from proa.engine.container import Container
from proa.engine.isolation import Hulls
from proa.engine.unit import Unit
from proa.model.errors import EngineError, FeatureMissing
from proa.model.ids import NetworkId
from proa.model.network import EndpointRequest, Network, PublishedPort
from proa.model.task import NetworkKind
from proa.network.attach import Attached
from proa.network.networks import Networks
from proa.runtime.seam import NetworkTask, Task

log = logging.getLogger(__name__)


class LiveNetworks:
    """Callers hold the unit's lock and keep the record."""

    def __init__(self, store: Networks, hulls: Hulls) -> None:
        self._store = store
        self._hulls = hulls

    def check(self, runtime: str, network: Network) -> None:
        """Raise FeatureMissing for a network that containers of this runtime cannot be on."""
        self._hulls.check_network(runtime, network)

    async def connect(
        self, unit: Unit, container: Container, wanted: EndpointRequest, ports: Sequence[PublishedPort]
    ) -> Attached:
        """Put it on one more network, or do nothing.

        Raises FeatureMissing, WrongState and what ``Networks.connect`` and ``NetworkTask`` raise.
        """
        task = self._task_of(unit, container)
        if task is not None:
            task.check_change(joins=True)
        attached = await self._store.connect(container.id, wanted, ports)
        if task is not None:
            try:
                await task.set_networks(attached.attachment.interfaces)
            except BaseException:
                new = attached.endpoints[-1].network_id
                with anyio.CancelScope(shield=True):
                    await self._leave(container, new, None)
                raise
        return attached

    async def disconnect(self, unit: Unit, container: Container, network_id: NetworkId) -> Attached:
        """Take it off a network that it is on. Raises FeatureMissing, Conflict, Internal."""
        task = self._task_of(unit, container)
        if task is not None:
            task.check_change(joins=False)
        return await self._leave(container, network_id, task)

    async def settle(self, container: Container, task: Task) -> Container:
        """Make host, task and record of a container agree; return the record as it should be."""
        found = self._store.find(container.id)
        if found is None:
            return container
        known = {settings.network_id for settings in container.networking.values()}
        machine = task if isinstance(task, NetworkTask) and _is_changeable(task) else None
        for endpoint in found.endpoints:
            if endpoint.network_id not in known:  # a connection that was not finished
                found = await self._leave(container, endpoint.network_id, machine)
        if machine is not None:
            await machine.set_networks(found.attachment.interfaces)
        present = {endpoint.network_id for endpoint in found.endpoints}
        networking = {
            name: settings
            for name, settings in container.networking.items()
            if settings.network_id in present
        }
        return replace(container, networking=networking, endpoints=found.endpoints, ports=found.ports)

    # --- machinery ---

    def _task_of(self, unit: Unit, container: Container) -> NetworkTask | None:
        """Return the task if it must be told of changes; None if not. Raises FeatureMissing: it cannot."""
        if self._hulls[container.runtime].features.network is NetworkKind.NAMESPACE:
            return None
        if isinstance(unit.task, NetworkTask):
            return unit.task
        raise FeatureMissing(
            container.runtime,
            "connecting or disconnecting a running container",
            "its network cards are fixed when it starts: stop it, change them, and start it again",
        )

    async def _leave(self, container: Container, network_id: NetworkId, task: NetworkTask | None) -> Attached:
        before = self._store.find(container.id)
        attached = await self._store.disconnect(container.id, network_id)
        try:
            if task is not None:
                await task.set_networks(attached.attachment.interfaces)
        except EngineError as error:  # the host's side has done what counts
            log.warning("container %s was taken off a network, but not told: %s", container.id, error)
        finally:
            interfaces = before.attachment.interfaces if before else ()
            gone = [interface for interface in interfaces if interface.network_id == network_id]
            if self._hulls[container.runtime].features.network is NetworkKind.TAP:
                with anyio.CancelScope(shield=True):
                    for interface in gone:
                        await self._store.discard(interface)
        return attached


def _is_changeable(task: NetworkTask) -> bool:
    try:
        task.check_change(joins=False)
    except EngineError:
        return False
    return True

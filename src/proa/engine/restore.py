# SPDX-License-Identifier: Apache-2.0
"""Brings records and reality together when the daemon starts.

The database is the truth about what was wanted, the kernel about what runs. An earlier daemon may have been
killed between any two steps, so every container is looked at: a task that runs is adopted, one that ended
gets its exit recorded, a start or a removal cut in the middle is undone or finished.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import anyio

from proa.engine.container import Container, State
from proa.engine.isolation import Hulls
from proa.engine.lifecycle import Lifecycle
from proa.engine.live_networks import LiveNetworks
from proa.engine.log_shipping import LogShipping
from proa.engine.registry import Registry
from proa.engine.removal import Removal
from proa.engine.restarts import wants_start_at_boot
from proa.engine.unit import Units
from proa.image.images import Images
from proa.model.errors import EngineError
from proa.model.task import RootfsKind
from proa.network.networks import Networks
from proa.runtime.seam import Task
from proa.storage.rootfs import Roots

log = logging.getLogger(__name__)

CONCURRENT_RESTORES = 8  # finding a VM opens sockets and waits for answers


class Restore:
    """Runs once, before the API listens."""

    def __init__(
        self,
        *,
        registry: Registry,
        units: Units,
        hulls: Hulls,
        lifecycle: Lifecycle,
        removal: Removal,
        networks: Networks,
        images: Images,
        roots: Roots,
        shipping: LogShipping,
    ) -> None:
        self._registry = registry
        self._units = units
        self._hulls = hulls
        self._lifecycle = lifecycle
        self._removal = removal
        self._networks = networks
        self._live = LiveNetworks(networks, hulls)
        self._images = images
        self._roots = roots
        self._lost: set[str] = set()  # that ran until the host went down
        self.attached_elsewhere: Callable[[], Sequence[str]] = tuple  # ids of machines that hold networks
        self._shipping = shipping

    async def find_all(self) -> None:
        """Adopt what runs and clean up after what does not."""
        # First, before anything is started: what an earlier daemon had mounted to read a container's files.
        await self._roots.release_all_but(
            [one.id for one in self._registry if one.is_alive or one.launching or one.ending]
        )
        limiter = anyio.CapacityLimiter(CONCURRENT_RESTORES)

        async def one(container: Container) -> None:
            async with limiter:
                try:
                    await self._find(container)
                except (EngineError, OSError):
                    log.exception("restoring container %s", container.id)

        async with anyio.create_task_group() as group:
            for container in self._registry:
                group.start_soon(one, container)
        self._shipping.resume()
        attached = [container.id for container in self._registry if container.is_alive]
        await self._networks.cleanup([*attached, *self.attached_elsewhere()])
        await self._images.release_all_but([container.id for container in self._registry])

    async def _settle_networks(self, container: Container, task: Task) -> None:
        """Finish, or undo, a connection or disconnection that the death of the daemon has cut in two."""
        try:
            settled = await self._live.settle(container, task)
        except (EngineError, OSError) as error:
            log.warning("networks of container %s: %s", container.id, error)
            return
        if settled != container:
            self._registry.put(settled)

    async def start_wanted(self) -> None:
        """Start what restart policies ask for after a reboot."""
        for container in self._registry:
            was_lost = container.id in self._lost
            if container.is_alive or not wants_start_at_boot(container, was_lost=was_lost):
                continue
            if container.state is State.EXITED:
                try:
                    await self._lifecycle.start(container.id)
                except (EngineError, OSError) as error:
                    log.warning("starting container %s at boot: %s", container.id, error)

    async def _find(self, container: Container) -> None:
        if container.state is State.REMOVING:
            await self._removal.remove(container.id, force=True, volumes=container.host_config.auto_remove)
            return
        if container.is_alive or container.launching or container.ending:
            runtime = self._hulls.runtimes.get(container.runtime)
            task = None if runtime is None else await runtime.find(container.id)
            if container.is_alive and task is not None and not container.for_build:
                self._lifecycle.adopt(self._units[container.id], task)
                await self._settle_networks(container, task)
                if container.state is State.PAUSED and container.passing_pause:
                    await self._lifecycle.unpause(container.id)
                return
            # A task found now was made by a start that was cut short, or its end by a death of the daemon.
            await self._lifecycle.lose(container, task)
            if container.is_alive:
                self._lost.add(container.id)
        elif (runtime := self._hulls.runtimes.get(container.runtime)) is not None and (
            runtime.features.rootfs is RootfsKind.BLOCK
        ):
            await runtime.forget(container.id)  # a machine that served its files only
        if container.for_build or container.forking:
            await self._removal.remove(container.id, force=True)
            return
        if container.state is State.RESTARTING:
            self._lifecycle.resume_restart(container)
        elif container.host_config.auto_remove and (container.started_at_ns or container.error):
            await self._removal.remove_automatically(container)

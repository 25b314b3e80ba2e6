# SPDX-License-Identifier: Apache-2.0
"""Removes containers, one or all that ended. Source: Engine API, ContainerDelete, ContainerPrune."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anyio

from proa.engine.container import Container, State
from proa.engine.creation import event_attributes
from proa.engine.events import EventBus
from proa.engine.filters import Filters, check_filters, match_labels, parse_until_ns
from proa.engine.lifecycle import Lifecycle
from proa.engine.links import find_link
from proa.engine.log_files import remove_all
from proa.engine.registry import Registry
from proa.engine.unit import Unit, Units, WaitResult
from proa.image.images import Images
from proa.model.errors import Conflict, EngineError, NotFound, WrongState
from proa.model.ids import ContainerId
from proa.storage.rootfs import Roots
from proa.storage.volumes import Volumes

log = logging.getLogger(__name__)


class Removal:
    """Takes containers away, with their writable layers, logs and anonymous volumes."""

    def __init__(
        self,
        *,
        registry: Registry,
        units: Units,
        lifecycle: Lifecycle,
        roots: Roots,
        volumes: Volumes,
        images: Images,
        events: EventBus,
    ) -> None:
        self._registry = registry
        self._units = units
        self._lifecycle = lifecycle
        self._roots = roots
        self._volumes = volumes
        self._images = images
        self._events = events
        self.on_removed: Callable[[ContainerId], None] | None = None

    async def remove(self, ref: str, *, force: bool = False, volumes: bool = False) -> None:
        """Remove a container. Raises WrongState when it is alive and not ``force``."""
        unit = self._units[self._registry.get(ref).id]
        with unit.held():  # whoever ends it now must not remove it as well
            while True:
                container = self._registry.get(unit.id)
                if container.is_alive or container.state is State.RESTARTING:
                    if not force:
                        raise WrongState(
                            f'cannot remove container "/{container.name}": container is '
                            f"{container.state.value}: stop the container before removing or force remove"
                        )
                    await self._lifecycle.end_for_removal(unit)
                with anyio.CancelScope(shield=True):
                    async with unit.lock:
                        if not self._registry.get(unit.id).is_alive:
                            await self._take_away(unit, volumes=volumes)
                            return
                # It was started while the lock was waited for: the same again.

    async def remove_link(self, name: str) -> None:
        """Forget a link, ``/container/alias``; what runs keeps what it was told.

        Raises NotFound, Conflict.
        """
        parent, gone = find_link(self._registry, name)
        async with self._units[parent.id].lock:
            container = self._registry.get(parent.id)
            links = tuple(link for link in container.links if link != gone)
            self._registry.put(replace(container, links=links))

    async def remove_automatically(self, container: Container) -> None:
        """Remove a ``--rm`` container that has ended, with its anonymous volumes."""
        try:
            await self.remove(container.id, volumes=True)
        except (NotFound, Conflict):
            return  # somebody else removed or restarted it

    async def prune(self, filters: Filters) -> tuple[list[str], int]:
        """Remove every container that does not run; return their ids and the bytes freed."""
        check_filters(filters, ("label", "label!", "until"))
        until = parse_until_ns(filters, time.time_ns())
        removed: list[str] = []
        freed = 0
        for container in self._registry:
            if container.is_alive or container.for_build or container.state is State.RESTARTING:
                continue
            if not match_labels(container.config.labels or {}, filters):
                continue
            if until is not None and container.created_at_ns > until:
                continue
            size = await self._roots.writable_bytes(container.id)
            try:
                await self.remove(container.id)
            except (Conflict, NotFound):
                continue
            removed.append(container.id)
            freed += size
        self._events.publish("container", "prune", "", {"reclaimed": str(freed)})
        return removed, freed

    async def _take_away(self, unit: Unit, *, volumes: bool) -> None:
        container = self._registry.get(unit.id)
        self._registry.put(replace(container, state=State.REMOVING))
        unit.removed = True
        unit.drop_pending()
        try:
            await self._roots.remove(container.id)
            remove_all(Path(container.log_path))
        except (EngineError, OSError):
            self._registry.put(replace(container, state=State.DEAD))
            unit.removed = False  # it may be tried again
            raise
        if volumes:
            await self._remove_anonymous_volumes(container)
        self._registry.drop(container.id)
        await self._images.release(container.id)
        self._units.drop(container.id)
        if self.on_removed is not None:
            self.on_removed(container.id)
        self._events.publish("container", "destroy", container.id, event_attributes(container))
        unit.announce_removal(WaitResult(code=container.exit_code))

    async def _remove_anonymous_volumes(self, container: Container) -> None:
        others = (other for other in self._registry if other.id != container.id)
        used = {point.name for other in others for point in other.mounts if point.type == "volume"}
        for point in container.mounts:
            if point.type != "volume" or point.name in used:
                continue
            try:
                if self._volumes.get(point.name).anonymous:
                    await self._volumes.remove(point.name)
                    self._events.publish("volume", "destroy", point.name, {"driver": "local"})
            except (EngineError, OSError):
                log.exception("removing anonymous volume %s", point.name)

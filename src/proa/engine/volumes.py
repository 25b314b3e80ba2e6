# SPDX-License-Identifier: Apache-2.0
"""The volume use cases: what storage keeps, seen together with the containers that use it.

Source: Engine API, Volume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from proa.engine.events import EventBus
from proa.engine.filters import Filters, check_filters, match_labels, match_text, parse_bool
from proa.engine.registry import Registry
from proa.model.errors import NoSuchVolume, ResourceInUse
from proa.model.volume import Volume
from proa.storage.volumes import Volumes as VolumeStore


class Volumes:
    """Creates, lists and removes volumes; a volume that a container mounts is never removed."""

    def __init__(self, *, store: VolumeStore, registry: Registry, events: EventBus) -> None:
        self._store = store
        self._registry = registry
        self._events = events

    async def create(
        self,
        name: str | None,
        *,
        driver: str = "local",
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Volume:
        """Make a volume, or return the one of this name. Raises InvalidParameter, NotFound (driver)."""
        known = {volume.name for volume in self._store.list()}
        volume = self._store.create(
            name or None, driver=driver or "local", labels=labels or {}, options=options or {}
        )
        if volume.name not in known:
            self._events.publish("volume", "create", volume.name, {"driver": volume.driver})
        return volume

    def get(self, name: str) -> Volume:
        """Return a volume. Raises NoSuchVolume."""
        return self._store.get(name)

    async def list(self, filters: Filters) -> Sequence[Volume]:
        """Return the volumes that fit, by name."""
        check_filters(filters, ("dangling", "driver", "label", "label!", "name"))
        dangling = parse_bool(filters, "dangling")
        used = self._used()
        return [
            volume
            for volume in sorted(self._store.list(), key=lambda volume: volume.name)
            if match_text(volume.name, filters.get("name", ()))
            and match_labels(volume.labels, filters)
            and (not filters.get("driver") or volume.driver in filters["driver"])
            and (dangling is None or (volume.name not in used) == dangling)
        ]

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Remove a volume and its content. Raises ResourceInUse; NoSuchVolume unless ``force``."""
        try:
            volume = self._store.get(name)
        except NoSuchVolume:
            if force:
                return
            raise
        users = self._used().get(volume.name)
        if users:
            raise ResourceInUse(f"remove {volume.name}: volume is in use - [{', '.join(users)}]")
        await self._store.remove(volume.name)
        self._events.publish("volume", "destroy", volume.name, {"driver": volume.driver})

    async def prune(self, filters: Filters) -> tuple[Sequence[str], int]:
        """Remove unused volumes: the anonymous ones, or with ``all`` every one. Return names and bytes."""
        check_filters(filters, ("all", "label", "label!"))
        every = bool(parse_bool(filters, "all", default=False))
        used = self._used()
        removed, freed = [], 0
        for volume in self._store.list():
            if volume.name in used or not (every or volume.anonymous):
                continue
            if not match_labels(volume.labels, filters):
                continue
            freed += await self._store.usage_bytes(volume.name)
            await self.remove(volume.name)
            removed.append(volume.name)
        self._events.publish("volume", "prune", "", {"reclaimed": str(freed)})
        return removed, freed

    async def usage(self) -> Sequence[tuple[Volume, int, int]]:
        """Return every volume with its bytes on disk and the number of containers that mount it."""
        used = self._used()
        return [
            (volume, await self._store.usage_bytes(volume.name), len(used.get(volume.name, ())))
            for volume in self._store.list()
        ]

    def _used(self) -> Mapping[str, Sequence[str]]:
        used: dict[str, list[str]] = {}
        for container in self._registry:
            for name in {point.name for point in container.mounts if point.type == "volume"}:
                used.setdefault(name, []).append(container.id)
        return used

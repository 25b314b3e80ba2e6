# SPDX-License-Identifier: Apache-2.0
"""Questions about containers that change nothing: lists, sizes, processes, use of resources.

Source: Engine API, ContainerList, ContainerTop, ContainerStats.
"""

from __future__ import annotations

from collections.abc import Callable

from proa.engine.container import Container
from proa.engine.filters import Filters, check_filters, match_labels, match_text
from proa.engine.ports import parse_port
from proa.engine.registry import Registry
from proa.engine.unit import Units
from proa.image.images import Images
from proa.model.errors import EngineError, InvalidParameter, WrongState
from proa.model.task import ProcessTable, TaskStats
from proa.storage.rootfs import Roots

_FILTERS = frozenset(
    (
        "ancestor before exited expose health id is-task isolation label label! name network publish since "
        "status volume"
    ).split()
)


class Queries:
    """Answers from the registry, the units and the drivers."""

    def __init__(self, *, registry: Registry, units: Units, images: Images, roots: Roots) -> None:
        self._registry = registry
        self._units = units
        self._images = images
        self._roots = roots

    def list(self, *, all_: bool, limit: int, filters: Filters) -> list[Container]:
        """Return containers, newest first. ``limit`` 0 means all; a status filter implies ``all_``."""
        check_filters(filters, _FILTERS)
        for status in filters.get("status", ()):
            if status not in ("created", "running", "paused", "restarting", "removing", "exited", "dead"):
                raise InvalidParameter(f"invalid filter 'status={status}'")
        for health in filters.get("health", ()):
            if health not in ("none", "starting", "healthy", "unhealthy"):
                raise InvalidParameter(f"invalid filter 'health={health}'")
        newest_first = sorted(self._registry, key=lambda container: container.created_at_ns, reverse=True)
        wide = all_ or limit > 0 or bool(filters.get("status"))
        matches = self._matcher(filters)
        found = [
            container for container in newest_first if (wide or container.is_alive) and matches(container)
        ]
        return found[:limit] if limit > 0 else found

    async def sizes(self, container: Container) -> tuple[int, int]:
        """Return bytes written by the container, and those plus its image's."""
        written = await self._roots.writable_bytes(container.id)
        try:
            image_size = self._images.get(container.image_id).size
        except EngineError:
            image_size = 0
        return written, written + image_size

    async def top(self, ref: str, ps_args: str) -> ProcessTable:
        """List the processes. Raises WrongState, InvalidParameter."""
        container = self._registry.get(ref)
        task = self._units[container.id].task
        if task is None or not container.is_alive:
            raise WrongState(f"container {container.id} is not running")
        return await task.processes(ps_args)

    async def stats(self, ref: str) -> TaskStats | None:
        """Read the present use; None when the container does not run."""
        container = self._registry.get(ref)
        task = self._units[container.id].task
        if task is None:
            return None
        try:
            return await task.stats()
        except WrongState:
            return None

    def _matcher(self, filters: Filters) -> Callable[[Container], bool]:
        before = [self._registry.get(ref).created_at_ns for ref in filters.get("before", ())]
        since = [self._registry.get(ref).created_at_ns for ref in filters.get("since", ())]
        images = self._ancestors(filters)
        codes = {_parse_code(text) for text in filters.get("exited", ())}
        ports = {name: {parse_port(text) for text in filters.get(name, ())} for name in ("publish", "expose")}

        def matches(container: Container) -> bool:
            exposed = {parse_port(key) for key in container.config.exposed_ports or ()}
            published = {(port.container_port, port.protocol) for port in container.ports}
            return (
                match_labels(container.config.labels or {}, filters)
                and _match_names(container, filters)
                and _any_prefix(container.id, filters, "id")
                and _any_of(container.state.value, filters, "status")
                and _any_of(container.host_config.isolation or "default", filters, "isolation")
                and (not codes or (container.finished_at_ns > 0 and container.exit_code in codes))
                and all(container.created_at_ns < moment for moment in before)
                and all(container.created_at_ns > moment for moment in since)
                and (images is None or container.image_id in images or container.image_ref in images)
                and (not ports["publish"] or bool(ports["publish"] & published))
                and (not ports["expose"] or bool(ports["expose"] & (exposed | published)))
                and _match_volumes(container, filters)
                and _match_networks(container, filters)
                and not any(value in ("true", "1") for value in filters.get("is-task", ()))
                and _any_of(container.health.status if container.health else "none", filters, "health")
            )

        return matches

    def _ancestors(self, filters: Filters) -> set[str] | None:
        if "ancestor" not in filters:
            return None
        wanted: set[str] = set()
        for ref in filters["ancestor"]:
            try:
                wanted.add(self._images.get(ref).id)
            except EngineError:
                wanted.add(ref)
        return wanted


def _match_names(container: Container, filters: Filters) -> bool:
    patterns = filters.get("name", ())
    return match_text(container.name, patterns) or match_text(f"/{container.name}", patterns)


def _match_volumes(container: Container, filters: Filters) -> bool:
    wanted = filters.get("volume", ())
    return not wanted or any(
        point.name in wanted or point.destination in wanted for point in container.mounts
    )


def _match_networks(container: Container, filters: Filters) -> bool:
    wanted = filters.get("network", ())
    return not wanted or any(
        name in wanted or any(settings.network_id.startswith(text) for text in wanted)
        for name, settings in container.networking.items()
    )


def _any_of(value: str, filters: Filters, name: str) -> bool:
    values = filters.get(name, ())
    return not values or value in values


def _any_prefix(value: str, filters: Filters, name: str) -> bool:
    values = filters.get(name, ())
    return not values or any(value.startswith(prefix) for prefix in values)


def _parse_code(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise InvalidParameter(f"invalid filter 'exited={text}'") from error

# SPDX-License-Identifier: Apache-2.0
"""The network use cases. Source: Engine API, Network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from proa.engine.events import EventBus
from proa.engine.filters import Filters, check_filters, match_labels, match_text, parse_bool, parse_until_ns
from proa.engine.networking import endpoint_requests
from proa.engine.registry import Registry
from proa.engine.unit import Units
from proa.model.config import EndpointSettings
from proa.model.errors import Forbidden, NotFound, NotImplementedHere
from proa.model.network import Endpoint, Network, NetworkRequest
from proa.network.networks import Networks as NetworkStore

PREDEFINED = frozenset({"bridge", "host", "none"})


class Networks:
    """Creates, lists and removes networks, and changes which of them a container joins."""

    def __init__(self, *, store: NetworkStore, registry: Registry, units: Units, events: EventBus) -> None:
        self._store = store
        self._registry = registry
        self._units = units
        self._events = events

    async def create(self, request: NetworkRequest) -> Network:
        """Make a network. Raises NameInUse, InvalidParameter, Forbidden, NotFound (driver)."""
        network = await self._store.create(request)
        self._publish("create", network)
        return network

    def get(self, ref: str) -> Network:
        """Return a network by name, id or unique id prefix. Raises NoSuchNetwork."""
        return self._store.get(ref)

    async def list(self, filters: Filters) -> Sequence[Network]:
        """Return the networks that fit, newest first."""
        check_filters(filters, ("dangling", "driver", "id", "label", "label!", "name", "scope", "type"))
        dangling = parse_bool(filters, "dangling")
        return [
            network
            for network in sorted(self._store.list(), key=lambda one: one.created_at_ns, reverse=True)
            if match_text(network.name, filters.get("name", ()))
            and match_labels(network.labels, filters)
            and (not filters.get("id") or any(network.id.startswith(text) for text in filters["id"]))
            and (not filters.get("driver") or network.driver in filters["driver"])
            and (not filters.get("scope") or network.scope in filters["scope"])
            and (not filters.get("type") or _type(network) in filters["type"])
            and (dangling is None or self._is_dangling(network) == dangling)
        ]

    def endpoints(self, network: Network) -> Sequence[Endpoint]:
        """Return the attached containers' endpoints."""
        return self._store.endpoints(network.id)

    async def remove(self, ref: str) -> None:
        """Remove a network that nothing is attached to. Raises Forbidden, NoSuchNetwork."""
        network = self._store.get(ref)
        await self._store.remove(network.id)
        self._publish("destroy", network)

    async def prune(self, filters: Filters) -> Sequence[str]:
        """Remove the networks that no container uses; return their names."""
        check_filters(filters, ("label", "label!", "until"))
        until = parse_until_ns(filters, time.time_ns())
        removed = []
        for network in self._store.list():
            if not self._is_dangling(network) or not match_labels(network.labels, filters):
                continue
            if until is not None and network.created_at_ns > until:
                continue
            await self.remove(network.id)
            removed.append(network.name)
        return removed

    async def connect(self, ref: str, container_ref: str, settings: EndpointSettings) -> None:
        """Let a container that does not run join a network at its next start.

        Raises NotImplementedHere for a running one, Forbidden when it is connected already.
        """
        network = self._store.get(ref)
        unit = self._units[self._registry.get(container_ref).id]
        async with unit.lock:
            container = self._registry.get(unit.id)
            if network.name in container.networking:
                raise Forbidden(
                    f"endpoint with name {container.name} already exists in network {network.name}"
                )
            if container.is_alive:
                raise NotImplementedHere(
                    "proa cannot yet connect a running container: stop it, connect, and start it again"
                )
            mode = container.host_config.network_mode
            if network.driver != "bridge" or mode == "host" or mode.startswith("container:"):
                raise Forbidden(
                    "container cannot be connected to multiple networks with one of the networks "
                    "in private (none) mode"
                )
            networking = {**container.networking, network.name: settings}
            endpoint_requests(networking)
            self._registry.put(replace(container, networking=networking))
        self._publish("connect", network, container=container.id)

    async def disconnect(self, ref: str, container_ref: str, *, force: bool = False) -> None:
        """Take a container that does not run off a network. Raises NotImplementedHere, NotFound."""
        del force
        network = self._store.get(ref)
        unit = self._units[self._registry.get(container_ref).id]
        async with unit.lock:
            container = self._registry.get(unit.id)
            if network.name not in container.networking:
                raise NotFound(f"container {container.id} is not connected to network {network.name}")
            if container.is_alive:
                raise NotImplementedHere(
                    "proa cannot yet disconnect a running container: stop it, disconnect, and start it again"
                )
            networking = {name: value for name, value in container.networking.items() if name != network.name}
            self._registry.put(replace(container, networking=networking))
        self._publish("disconnect", network, container=container.id)

    def _is_dangling(self, network: Network) -> bool:
        if network.name in PREDEFINED:
            return False
        return not any(network.name in container.networking for container in self._registry)

    def _publish(self, action: str, network: Network, **extra: str) -> None:
        attributes = {"name": network.name, "type": network.driver, **extra}
        self._events.publish("network", action, network.id, attributes)


def _type(network: Network) -> str:
    return "builtin" if network.name in PREDEFINED else "custom"

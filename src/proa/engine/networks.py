# SPDX-License-Identifier: Apache-2.0
"""The network use cases. Source: Engine API, Network."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from msgspec.structs import replace as replace_struct

from proa.engine.container import Container
from proa.engine.events import EventBus
from proa.engine.filters import Filters, check_filters, match_labels, match_text, parse_bool, parse_until_ns
from proa.engine.launcher import Launcher
from proa.engine.networking import check_live_options, endpoint_requests
from proa.engine.ports import parse_ports
from proa.engine.registry import Registry
from proa.engine.unit import Unit, Units
from proa.model.config import EndpointSettings
from proa.model.errors import EngineError, Forbidden, InvalidParameter, NotFound
from proa.model.network import Endpoint, Network, NetworkRequest
from proa.network.networks import Networks as NetworkStore

log = logging.getLogger(__name__)

_HOST_NETWORK = "container cannot be disconnected from host network or connected to host network"
_SHARED_NETWORK = (
    "container sharing network namespace with another container or host cannot be connected to any "
    "other network"
)
_NO_NETWORK = (
    "container cannot be connected to multiple networks with one of the networks in private (none) mode"
)
PREDEFINED = frozenset({"bridge", "host", "none"})


class Networks:
    """Creates, lists and removes networks, and changes which of them a container joins."""

    def __init__(
        self,
        *,
        store: NetworkStore,
        registry: Registry,
        units: Units,
        launcher: Launcher,
        events: EventBus,
    ) -> None:
        self._live = launcher.live_networks
        self._launcher = launcher
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
        self._events.publish("network", "prune", "", {"reclaimed": "0"})
        return removed

    async def connect(self, ref: str, container_ref: str, settings: EndpointSettings) -> None:
        """Let a container join a network: at once when it runs, else at its next start.

        Raises NoSuchNetwork, NoSuchContainer, Forbidden, InvalidParameter, FeatureMissing (a running VM that
        has no card to spare, or a network that a VM cannot be on).
        """
        network = self._store.get(ref)
        unit = self._units[self._registry.get(container_ref).id]
        async with unit.lock:
            with self._units.checked(unit):
                container = self._registry.get(unit.id)
            _check_modes(container, network)
            self._live.check(container.runtime, network)
            if network.name in container.networking:
                raise Forbidden(
                    f"endpoint with name {container.name} already exists in network {network.name}"
                )
            networking = {
                **container.networking,
                network.name: replace_struct(settings, network_id=network.id),
            }
            *_others, wanted = endpoint_requests(networking)
            connected = replace(container, networking=networking)
            if container.is_alive:
                check_live_options(settings)
                ports = parse_ports(container.config, container.host_config)
                attached = await self._live.connect(unit, container, wanted, ports)
                connected = replace(connected, endpoints=attached.endpoints, ports=attached.ports)
            else:
                self._store.check(container.id, wanted)
            self._registry.put(connected)
            await self._tell_of_change(unit, container, connected)
        self._publish("connect", network, container=container.id)

    async def disconnect(self, ref: str, container_ref: str, *, force: bool = False) -> None:
        """Take a container off a network. ``force`` makes no difference: nothing is left behind either way.

        Raises NoSuchNetwork, NoSuchContainer, NotFound.
        """
        del force
        network = self._store.get(ref)
        unit = self._units[self._registry.get(container_ref).id]
        async with unit.lock:
            with self._units.checked(unit):
                container = self._registry.get(unit.id)
            if network.driver == "host":
                raise Forbidden(_HOST_NETWORK)
            if network.name not in container.networking:
                raise NotFound(f"container {container.id} is not connected to network {network.name}")
            networking = {name: value for name, value in container.networking.items() if name != network.name}
            disconnected = replace(container, networking=networking)
            is_on = any(endpoint.network_id == network.id for endpoint in container.endpoints)
            if container.is_alive and is_on:
                attached = await self._live.disconnect(unit, container, network.id)
                disconnected = replace(disconnected, endpoints=attached.endpoints, ports=attached.ports)
            self._registry.put(disconnected)
            await self._tell_of_change(unit, container, disconnected)
        self._publish("disconnect", network, container=container.id)

    async def _tell_of_change(self, unit: Unit, before: Container, after: Container) -> None:
        """Change the container's own files; it is on its networks even when they cannot be."""
        if unit.task is None:
            return
        try:
            await self._launcher.update_files(unit.task, before, after)
        except (EngineError, OSError) as error:
            log.warning("files of container %s: %s", unit.id, error)

    def _is_dangling(self, network: Network) -> bool:
        if network.name in PREDEFINED:
            return False
        return not any(network.name in container.networking for container in self._registry)

    def _publish(self, action: str, network: Network, **extra: str) -> None:
        attributes = {"name": network.name, "type": network.driver, **extra}
        self._events.publish("network", action, network.id, attributes)


def _check_modes(container: Container, network: Network) -> None:
    mode = container.host_config.network_mode
    if network.driver == "host":
        raise Forbidden(_HOST_NETWORK)
    if mode == "host" or mode.startswith("container:"):
        raise InvalidParameter(_SHARED_NETWORK)
    if mode == "none" or network.driver == "null":
        raise Forbidden(_NO_NETWORK)


def _type(network: Network) -> str:
    return "builtin" if network.name in PREDEFINED else "custom"

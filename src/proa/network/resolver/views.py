# SPDX-License-Identifier: Apache-2.0
"""Who may ask for which names: a container sees those of the networks it is on, and no others. No sockets.

A question comes to the address of one network from the address of a container there; the container's other
networks count as well. Whoever is on the network without being known (the host itself, a container that was
just made) sees that network's names. Others are strangers and get no answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import TypeVar

from proa.network.resolver.message import Address, address_of_pointer

_K = TypeVar("_K")
Shuffle = Callable[[list[Address]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkEntry:
    """A network. ``is_internal``: it forwards nothing."""

    name: str
    subnets: tuple[IPv4Network | IPv6Network, ...]
    is_internal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointEntry:
    """A container on a network. ``servers``: whom it wants asked for what is not known here; ``links``: the
    names that aliases of its own stand for there."""

    container: str
    network: str
    addresses: tuple[Address, ...]
    names: tuple[str, ...]
    servers: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What one asker sees: networks by id; whether other names are asked for elsewhere, and whom (none: the
    host's nameservers); what its own aliases stand for, by network and alias."""

    networks: tuple[str, ...]
    forwards: bool
    servers: tuple[str, ...] = ()
    links: Mapping[tuple[str, str], str] = field(default_factory=dict)


@dataclass(slots=True)
class Views:
    """Networks and endpoints by their keys, and what is looked up in them."""

    networks: dict[str, NetworkEntry] = field(default_factory=dict)
    endpoints: dict[str, EndpointEntry] = field(default_factory=dict)
    _by_address: dict[tuple[str, Address], str] = field(default_factory=dict)
    _by_name: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    _by_container: dict[str, list[str]] = field(default_factory=dict)

    def put(self, key: str, entry: EndpointEntry) -> None:
        """Make an endpoint known, in place of what it was known by."""
        self.drop(key)
        self.endpoints[key] = entry
        for address in entry.addresses:
            self._by_address[entry.network, address] = key
        for name in entry.names:
            self._by_name.setdefault((entry.network, name.lower()), []).append(key)
        self._by_container.setdefault(entry.container, []).append(key)

    def drop(self, key: str) -> None:
        """Forget an endpoint. Idempotent."""
        entry = self.endpoints.pop(key, None)
        if entry is None:
            return
        for address in entry.addresses:
            if self._by_address.get((entry.network, address)) == key:
                del self._by_address[entry.network, address]
        for name in entry.names:
            _take(self._by_name, (entry.network, name.lower()), key)
        _take(self._by_container, entry.container, key)

    def keep_only(self, keys: Iterable[str]) -> None:
        """Forget all endpoints but these."""
        for key in set(self.endpoints) - set(keys):
            self.drop(key)

    def view(self, network: str, source: Address) -> View | None:
        """Return what the asker sees that came to a network's address; None for a stranger."""
        entry = self.networks.get(network)
        if entry is None:
            return None
        key = self._by_address.get((network, source))
        if key is None:
            if not any(source in subnet for subnet in entry.subnets):
                return None
            return View(networks=(network,), forwards=not entry.is_internal)
        asker = self.endpoints[key]
        mine = [self.endpoints[one] for one in self._by_container[asker.container]]
        networks = tuple(dict.fromkeys([network, *(one.network for one in mine)]))
        known = [self.networks[one] for one in networks if one in self.networks]
        return View(
            networks=networks,
            forwards=any(not one.is_internal for one in known),
            servers=asker.servers,
            links={(one.network, alias): name for one in mine for alias, name in one.links.items()},
        )

    def addresses(self, view: View, name: str, shuffle: Shuffle = random.shuffle) -> list[Address] | None:
        """Return the addresses of all that have the name, in a new order each time; None when nobody has it.

        A name may be followed by that of its network: ``db.back``. What an alias of the asker's own leads to
        goes before what others are called.
        """
        linked = [network for network in view.networks if (network, name) in view.links]
        others = [network for network in view.networks if network not in linked]
        found = self._named(view, linked, name) if linked else None
        found = found or self._named(view, others, name)
        if found is None:
            return None
        addresses = list(found)
        shuffle(addresses)
        return addresses

    def _named(self, view: View, networks: Iterable[str], name: str) -> dict[Address, None] | None:
        found: dict[Address, None] = {}
        is_known = False
        for network in networks:
            keys = self._by_name.get((network, view.links.get((network, name), name)))
            entry = self.networks.get(network)
            if keys is None and entry is not None and name.endswith("." + entry.name.lower()):
                keys = self._by_name.get((network, name[: -len(entry.name) - 1]))
            for key in keys or ():
                is_known = True
                found |= dict.fromkeys(self.endpoints[key].addresses)
        return found if is_known else None

    def names(self, view: View, pointer: str) -> list[str] | None:
        """Return the name of the container with an address, given as a name of a reverse zone; [] when the
        address is one of the asker's networks and nobody has it, None when it is none of theirs."""
        address = address_of_pointer(pointer)
        if address is None:
            return None
        for network in view.networks:
            entry = self.networks.get(network)
            if entry is None or not any(address in subnet for subnet in entry.subnets):
                continue
            key = self._by_address.get((network, address))
            names = self.endpoints[key].names if key is not None else ()
            return [f"{names[0]}.{entry.name}"] if names else []
        return None


def _take(index: dict[_K, list[str]], where: _K, key: str) -> None:
    keys = index.get(where, [])
    if key in keys:
        keys.remove(key)
    if not keys:
        index.pop(where, None)

# SPDX-License-Identifier: Apache-2.0
"""Plans a container's places: addresses, names, interfaces, and which of them leads out. Makes nothing.

Source: moby daemon/libnetwork/sandbox.go (which endpoint is the gateway), daemon/container_operations.go.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

from proa.host.rtnetlink import parse_mac
from proa.model.errors import InvalidParameter
from proa.model.ids import new_id, short
from proa.model.network import Endpoint, EndpointRequest, IpAddress, Network, PublishedPort
from proa.model.task import Interface, NetworkKind
from proa.network import ipam
from proa.network.catalog import Catalog
from proa.network.request import DEFAULT_NETWORK, PARENT_DRIVERS
from proa.network.store import Place, Record

_DEVICE_DIGITS = 12  # of the endpoint's id; "pv" and "pt" before it stay below IFNAMSIZ
_NAMED_ON_DEFAULT = "user specified IP address is supported on user defined networks only"
_NAMED_WITHOUT_SUBNET = (
    "user specified IP address is supported only when connecting to networks with user configured subnets"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachRequest:
    """Whom to attach, and to what."""

    container_id: str
    kind: NetworkKind
    endpoints: tuple[EndpointRequest, ...]
    ports: tuple[PublishedPort, ...]
    name: str
    hostname: str
    dns: tuple[str, ...] = ()
    user_namespace: Path | None = None  # that owns the network namespace; None: the host's


class Planner:
    """Chooses by what the catalog says is taken."""

    def __init__(self, exec_root: Path, catalog: Catalog) -> None:
        self._exec_root = exec_root
        self._catalog = catalog

    def plan(self, request: AttachRequest) -> Record:
        """Plan all of a container's places.

        :raises NoSuchNetwork, InvalidParameter, Forbidden: an address or a MAC will not do.
        """
        # A name of its own: the namespace of the container's last run may not be gone yet.
        path = self._exec_root / "netns" / f"{short(request.container_id)}-{secrets.token_hex(3)}"
        record = Record(
            container_id=request.container_id,
            kind=request.kind,
            name=request.name,
            hostname=request.hostname,
            namespace=path if request.kind is NetworkKind.NAMESPACE else None,
            dns=request.dns,
        )
        for wanted in request.endpoints:
            if self._catalog.get(wanted.network).driver not in ("host", "null"):
                record = self.with_place(record, wanted)
        return record

    def with_place(self, record: Record, wanted: EndpointRequest) -> Record:
        """Return the record with one more place. Raises as ``plan``."""
        network = self._catalog.get(wanted.network)
        place = self._place(record, wanted, network)
        return self._with_routes(replace(record, places=(*record.places, place)))

    def without_place(self, record: Record, network: Network) -> Record:
        """Return the record without its place on a network."""
        places = tuple(place for place in record.places if place.endpoint.network_id != network.id)
        return self._with_routes(replace(record, places=places))

    def _place(self, record: Record, wanted: EndpointRequest, network: Network) -> Place:
        address = self._choose_address(wanted, network)
        address6 = self._choose_address6(wanted, network, like=address)
        first = address or address6
        assert first is not None
        endpoint_id = new_id()
        mac = _checked_mac(wanted.mac) if wanted.mac else ipam.mac_of(first.ip)
        endpoint = Endpoint(
            container_id=record.container_id,
            network_id=network.id,
            endpoint_id=endpoint_id,
            name=record.name,
            mac=mac,
            address=address,
            gateway=None if network.internal else network.gateway,
            address6=address6,
            gateway6=None if network.internal else network.gateway6,
            dns_names=_names(record, wanted, network),
            links=wanted.links,
        )
        prefix = "pv" if record.kind is NetworkKind.NAMESPACE else "pt"
        interface = Interface(
            name=_chosen_name(record.places, wanted.interface) or _free_name(record.places),
            device="" if network.driver in PARENT_DRIVERS else prefix + endpoint_id[:_DEVICE_DIGITS],
            network_id=network.id,
            mac=mac,
            address=address,
            address6=address6,
            link_local=tuple(_link_local(one) for one in wanted.link_local),
            mtu=network.mtu,
        )
        return Place(endpoint=endpoint, interface=interface, priority=wanted.priority)

    def _choose_address(self, wanted: EndpointRequest, network: Network) -> IPv4Interface | None:
        if network.subnet is None:
            if wanted.address is not None:
                raise InvalidParameter(
                    "conflicting options: cannot assign an IPv4 address to an endpoint on network "
                    f"{network.name}: it has no IPv4"
                )
            return None
        taken = self._catalog.taken_addresses(network)
        address = wanted.address
        if address is None:
            address = ipam.choose_address(network.subnet, network.ip_range, taken)
        else:
            self._check_named(network)
            ipam.check_address(address, network.subnet, taken)
        return IPv4Interface((address, network.subnet.prefixlen))

    def _choose_address6(
        self, wanted: EndpointRequest, network: Network, *, like: IPv4Interface | None
    ) -> IPv6Interface | None:
        if network.subnet6 is None:
            if wanted.address6 is not None:
                raise InvalidParameter(
                    "conflicting options: cannot assign an IPv6 address to an endpoint on network "
                    f"{network.name}: it has no IPv6"
                )
            return None
        taken = self._catalog.taken_addresses6(network)
        address = wanted.address6
        if address is None:
            number = 0 if like is None else int(like.ip) - int(like.network.network_address)
            address = ipam.choose_address6(network.subnet6, network.ip_range6, taken, like=number)
        else:
            if network.name == DEFAULT_NETWORK:
                raise InvalidParameter(_NAMED_ON_DEFAULT)
            ipam.check_address(address, network.subnet6, taken)
        return IPv6Interface((address, network.subnet6.prefixlen))

    def _check_named(self, network: Network) -> None:
        if network.name == DEFAULT_NETWORK:
            raise InvalidParameter(_NAMED_ON_DEFAULT)
        if not self._catalog.has_own_subnet(network):
            raise InvalidParameter(_NAMED_WITHOUT_SUBNET)

    def _with_routes(self, record: Record) -> Record:
        """Choose which places carry the default routes, and which one published ports lead to."""
        networks = {
            place.endpoint.network_id: self._catalog.of_id(place.endpoint.network_id)
            for place in record.places
        }

        def order(place: Place) -> tuple[int, str]:
            return (-place.priority, networks[place.endpoint.network_id].name)

        ranked = sorted(record.places, key=order)
        route = next((place for place in ranked if place.endpoint.gateway is not None), None)
        route6 = next((place for place in ranked if place.endpoint.gateway6 is not None), None)
        bridged = [
            place.endpoint for place in ranked if networks[place.endpoint.network_id].driver == "bridge"
        ]
        target4 = next((found for found in bridged if found.gateway is not None), None)
        target6 = next((found for found in (target4, *bridged) if found and found.gateway6 is not None), None)
        places = tuple(
            replace(
                place,
                interface=replace(
                    place.interface,
                    gateway=place.endpoint.gateway if place is route else None,
                    gateway6=place.endpoint.gateway6 if place is route6 else None,
                ),
            )
            for place in record.places
        )
        return replace(
            record,
            places=places,
            target4=target4.endpoint_id if target4 else "",
            target6=target6.endpoint_id if target6 else "",
        )


def _names(record: Record, wanted: EndpointRequest, network: Network) -> tuple[str, ...]:
    """The default network has no names, as in Docker; nor has one whose containers cannot reach the host."""
    if network.name == DEFAULT_NETWORK or network.driver in PARENT_DRIVERS:
        return ()
    names = (record.name, *wanted.aliases, short(record.container_id), record.hostname)
    return tuple(dict.fromkeys(name for name in names if name))


def _chosen_name(places: Sequence[Place], name: str) -> str:
    """:raises InvalidParameter: another interface of the container has the name."""
    if any(place.interface.name == name for place in places):
        raise InvalidParameter(f"an interface named {name} exists already")
    return name


def _link_local(address: IpAddress) -> IPv4Interface | IPv6Interface:
    """The prefix is that of all link-local addresses: RFC 3927, RFC 4291."""
    return IPv4Interface(f"{address}/16") if address.version == 4 else IPv6Interface(f"{address}/64")


def _free_name(places: Sequence[Place]) -> str:
    taken = {place.interface.name for place in places}
    return next(name for number in range(len(places) + 1) if (name := f"eth{number}") not in taken)


def _checked_mac(mac: str) -> str:
    """:raises InvalidParameter: it is not a MAC address of one device."""
    try:
        packed = parse_mac(mac)
    except ValueError:
        raise InvalidParameter(f"invalid MAC address: {mac}") from None
    if packed[0] & 1 or not any(packed):
        raise InvalidParameter(f"invalid MAC address: {mac}: it is not one of a single device")
    return mac.lower()

# SPDX-License-Identifier: Apache-2.0
"""Networks and the containers' endpoints on them. Source: Engine API, Network and EndpointSettings."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import TYPE_CHECKING

from proa.model.ids import NetworkId

if TYPE_CHECKING:
    IpAddress = IPv4Address | IPv6Address
else:
    # msgspec, which writes the engine's records, takes no union of two foreign classes.
    IpAddress = ipaddress._BaseAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRequest:
    """What POST /networks/create asks, parsed.

    :ivar ipv4: containers get IPv4 addresses.
    :ivar ipv6: containers get IPv6 addresses; without ``subnet6`` proa chooses a private prefix.
    :ivar auxiliary: addresses that no container may get, by the name that the user gave them.
    """

    name: str
    driver: str = "bridge"
    internal: bool = False
    attachable: bool = False
    ipv4: bool = True
    subnet: IPv4Network | None = None
    ip_range: IPv4Network | None = None
    gateway: IPv4Address | None = None
    ipv6: bool = False
    subnet6: IPv6Network | None = None
    ip_range6: IPv6Network | None = None
    gateway6: IPv6Address | None = None
    auxiliary: Mapping[str, IpAddress] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A container's place on one network, while it is attached. It has an address of each family that the
    network has: one at least."""

    container_id: str
    network_id: NetworkId
    endpoint_id: str
    name: str  # of the container
    mac: str
    address: IPv4Interface | None
    gateway: IPv4Address | None
    address6: IPv6Interface | None = None
    gateway6: IPv6Address | None = None
    dns_names: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()  # aliases for this container alone: alias, name


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network. ``bridge``, ``host`` and ``none`` always exist and cannot be removed.

    :ivar subnet: None on a network without IPv4, ``subnet6`` on one without IPv6.
    """

    id: NetworkId
    name: str
    driver: str  # bridge, macvlan, ipvlan, host, null
    created_at_ns: int
    scope: str = "local"
    internal: bool = False
    attachable: bool = False
    subnet: IPv4Network | None = None
    ip_range: IPv4Network | None = None
    gateway: IPv4Address | None = None
    subnet6: IPv6Network | None = None
    ip_range6: IPv6Network | None = None
    gateway6: IPv6Address | None = None
    auxiliary: Mapping[str, IpAddress] = field(default_factory=dict)
    bridge: str = ""  # device name
    mtu: int = 1500
    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointRequest:
    """One network a container joins. Addresses and ``mac`` None let proa choose.

    :ivar priority: the default route goes by the network with the highest; among equals, by the first name.
    """

    network: str  # name, id or id prefix
    address: IPv4Address | None = None
    address6: IPv6Address | None = None
    mac: str | None = None
    aliases: tuple[str, ...] = ()
    interface: str = ""  # its name inside; "" lets proa choose
    link_local: tuple[IpAddress, ...] = ()  # further addresses, which no router forwards
    links: tuple[tuple[str, str], ...] = ()  # alias, and the name on this network that it stands for
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPort:
    """A port of the host that leads to one of the container. ``host_port`` 0 lets proa choose.

    :ivar last_host_port: of a range from ``host_port`` on, of which the first free one is taken; 0: no range.
    :ivar any_address: the user named no address: where the container has IPv6, that is published as well,
        and the network may name another address than 0.0.0.0.
    """

    container_port: int
    protocol: str  # tcp, udp, sctp
    host_ip: IpAddress = field(default_factory=lambda: IPv4Address(0))
    host_port: int = 0
    last_host_port: int = 0
    any_address: bool = False

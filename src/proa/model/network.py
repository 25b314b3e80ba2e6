# SPDX-License-Identifier: Apache-2.0
"""Networks and the containers' endpoints on them. Source: Engine API, Network and EndpointSettings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from proa.model.ids import NetworkId


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRequest:
    """What POST /networks/create asks, parsed."""

    name: str
    driver: str = "bridge"
    internal: bool = False
    attachable: bool = False
    subnet: IPv4Network | None = None
    ip_range: IPv4Network | None = None
    gateway: IPv4Address | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A container's place on one network, while it is attached."""

    container_id: str
    network_id: NetworkId
    endpoint_id: str
    name: str  # of the container
    mac: str
    address: IPv4Interface
    gateway: IPv4Address | None
    dns_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network. ``bridge``, ``host`` and ``none`` always exist and cannot be removed."""

    id: NetworkId
    name: str
    driver: str  # bridge, host, null
    created_at_ns: int
    scope: str = "local"
    internal: bool = False
    attachable: bool = False
    subnet: IPv4Network | None = None
    ip_range: IPv4Network | None = None
    gateway: IPv4Address | None = None
    bridge: str = ""  # device name
    mtu: int = 1500
    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointRequest:
    """One network a container joins. ``address`` and ``mac`` None let proa choose."""

    network: str  # name, id or id prefix
    address: IPv4Address | None = None
    mac: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPort:
    """A port of the host that leads to one of the container. ``host_port`` 0 lets proa choose."""

    container_port: int
    protocol: str  # tcp, udp, sctp
    host_ip: IPv4Address = field(default_factory=lambda: IPv4Address(0))
    host_port: int = 0

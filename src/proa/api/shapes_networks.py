# SPDX-License-Identifier: Apache-2.0
"""Networks as Docker shows them, and what a create asks, checked. Source: Engine API, Network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeVar

from proa.model.errors import Forbidden, InvalidParameter
from proa.model.network import Endpoint, IpAddress, Network, NetworkRequest
from proa.wire import networks as wire
from proa.wire.times import format_time

_T = TypeVar("_T")


def network(value: Network, endpoints: Sequence[Endpoint]) -> wire.Network:
    """Return one network with the containers that are attached now (a list leaves them out)."""
    pools = (
        (value.subnet, value.ip_range, value.gateway),
        (value.subnet6, value.ip_range6, value.gateway6),
    )
    config = [
        wire.IpamConfig(
            subnet=str(subnet),
            ip_range=str(ip_range) if ip_range else "",
            gateway=str(gateway) if gateway else "",
            auxiliary_addresses={
                name: str(address) for name, address in value.auxiliary.items() if address in subnet
            }
            or None,
        )
        for subnet, ip_range, gateway in pools
        if subnet is not None
    ]
    return wire.Network(
        name=value.name,
        id=value.id,
        created=format_time(value.created_at_ns),
        scope=value.scope,
        driver=value.driver,
        enable_ipv4=value.subnet is not None
        or value.subnet6 is None,  # of "host" and "none" Docker says so too
        enable_ipv6=value.subnet6 is not None,
        ipam=wire.Ipam(config=config),
        internal=value.internal,
        attachable=value.attachable,
        containers={endpoint.container_id: _container(endpoint) for endpoint in endpoints},
        options=dict(value.options),
        labels=dict(value.labels),
    )


def parse_request(body: wire.NetworkCreateRequest) -> NetworkRequest:
    """Return what the engine is asked for. Raises InvalidParameter for what proa's networks are not."""
    if not body.name:
        raise InvalidParameter("invalid network name: name is empty")
    if body.ingress or body.config_only or body.config_from or body.scope not in ("", "local"):
        raise InvalidParameter("swarm and configuration-only networks are not supported")
    ipam = body.ipam or wire.Ipam()
    if ipam.driver not in ("", "default"):
        raise InvalidParameter(f"could not find an IPAM driver named {ipam.driver}")
    driver = body.driver or "bridge"
    pools = [_pool(config) for config in ipam.config or ()]
    four = [pool for pool in pools if pool.version == 4]
    six = [pool for pool in pools if pool.version == 6]
    if len(four) > 1 or len(six) > 1:
        raise Forbidden(f"{driver} driver doesn't support multiple subnets")
    if six and not body.enable_ipv6:
        raise InvalidParameter("an IPv6 subnet needs IPv6 to be enabled on the network (--ipv6)")
    if four and body.enable_ipv4 is False:
        raise InvalidParameter("an IPv4 subnet needs IPv4 to be enabled on the network (--ipv4)")
    pool, pool6 = (four or [_Pool()])[0], (six or [_Pool()])[0]
    return NetworkRequest(
        name=body.name,
        driver=driver,
        internal=body.internal,
        attachable=body.attachable,
        ipv4=body.enable_ipv4 is not False,
        subnet=_of(IPv4Network, pool.subnet),
        ip_range=_of(IPv4Network, pool.ip_range),
        gateway=_of(IPv4Address, pool.gateway),
        ipv6=bool(body.enable_ipv6),
        subnet6=_of(IPv6Network, pool6.subnet),
        ip_range6=_of(IPv6Network, pool6.ip_range),
        gateway6=_of(IPv6Address, pool6.gateway),
        auxiliary={**pool.auxiliary, **pool6.auxiliary},
        options=body.options or {},
        labels=body.labels or {},
    )


def _container(endpoint: Endpoint) -> wire.NetworkContainer:
    return wire.NetworkContainer(
        name=endpoint.name,
        endpoint_id=endpoint.endpoint_id,
        mac_address=endpoint.mac,
        ipv4_address=str(endpoint.address) if endpoint.address else "",
        ipv6_address=str(endpoint.address6) if endpoint.address6 else "",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pool:
    """One address pool, parsed; its parts may still be of different families."""

    subnet: IPv4Network | IPv6Network | None = None
    ip_range: IPv4Network | IPv6Network | None = None
    gateway: IpAddress | None = None
    auxiliary: Mapping[str, IpAddress] = field(default_factory=dict)

    @property
    def version(self) -> int:
        return next((one.version for one in (self.subnet, self.ip_range, self.gateway) if one is not None), 4)


def _pool(config: wire.IpamConfig) -> _Pool:
    named = config.auxiliary_addresses or {}
    pool = _Pool(
        subnet=_subnet("subnet", config.subnet),
        ip_range=_subnet("range", config.ip_range),
        gateway=_address("gateway", config.gateway),
        auxiliary={
            name: address
            for name, text in named.items()
            if (address := _address(f"aux-address {name}", text)) is not None
        },
    )
    named_parts = (pool.ip_range, pool.gateway, *pool.auxiliary.values())
    parts = [part for part in named_parts if part is not None]
    if any(part.version != pool.version for part in parts):
        raise InvalidParameter(f"no matching subnet for {', '.join(str(part) for part in parts)}")
    return pool


def _of(kind: type[_T], value: object) -> _T | None:
    """Return a value of which the family is known."""
    return value if isinstance(value, kind) else None


def _subnet(what: str, text: str) -> IPv4Network | IPv6Network | None:
    """Read a CIDR block. Docker takes one with host bits set for its network."""
    if not text:
        return None
    try:
        return ip_network(text, strict=False)
    except ValueError as error:
        raise InvalidParameter(f"invalid {what} {text}: invalid CIDR block notation") from error


def _address(what: str, text: str) -> IpAddress | None:
    try:
        return ip_address(text) if text else None
    except ValueError as error:
        raise InvalidParameter(f"invalid {what} {text}: invalid address") from error

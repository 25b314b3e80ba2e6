# SPDX-License-Identifier: Apache-2.0
"""Networks as Docker shows them, and what a create asks, checked. Source: Engine API, Network."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError

from proa.model.errors import InvalidParameter
from proa.model.network import Endpoint, Network, NetworkRequest
from proa.wire import networks as wire
from proa.wire.times import format_time


def network(value: Network, endpoints: Sequence[Endpoint]) -> wire.Network:
    """Return one network with the containers that are attached now (a list leaves them out)."""
    config = []
    if value.subnet is not None:
        config.append(
            wire.IpamConfig(
                subnet=str(value.subnet),
                ip_range=str(value.ip_range) if value.ip_range else "",
                gateway=str(value.gateway) if value.gateway else "",
            )
        )
    return wire.Network(
        name=value.name,
        id=value.id,
        created=format_time(value.created_at_ns),
        scope=value.scope,
        driver=value.driver,
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
    if body.enable_ipv6:
        raise InvalidParameter("IPv6 is not supported on proa's networks")
    if body.enable_ipv4 is False:
        raise InvalidParameter("IPv4 cannot be disabled: proa's networks have no IPv6")
    ipam = body.ipam or wire.Ipam()
    if ipam.driver not in ("", "default"):
        raise InvalidParameter(f"could not find an IPAM driver named {ipam.driver}")
    pools = ipam.config or []
    if len(pools) > 1:
        raise InvalidParameter("only one address pool for each network is supported")
    pool = pools[0] if pools else wire.IpamConfig()
    if pool.auxiliary_addresses:
        raise InvalidParameter("auxiliary addresses are not supported")
    return NetworkRequest(
        name=body.name,
        driver=body.driver or "bridge",
        internal=body.internal,
        attachable=body.attachable,
        subnet=_subnet("subnet", pool.subnet),
        ip_range=_subnet("range", pool.ip_range),
        gateway=_address(pool.gateway),
        options=body.options or {},
        labels=body.labels or {},
    )


def _container(endpoint: Endpoint) -> wire.NetworkContainer:
    return wire.NetworkContainer(
        name=endpoint.name,
        endpoint_id=endpoint.endpoint_id,
        mac_address=endpoint.mac,
        ipv4_address=str(endpoint.address),
    )


def _subnet(what: str, text: str) -> IPv4Network | None:
    """Read a CIDR block. Docker takes one with host bits set for its network."""
    if not text:
        return None
    try:
        return IPv4Network(text, strict=False)
    except (AddressValueError, NetmaskValueError, ValueError) as error:
        raise InvalidParameter(f"invalid {what} {text}: invalid CIDR block notation (IPv4)") from error


def _address(text: str) -> IPv4Address | None:
    try:
        return IPv4Address(text) if text else None
    except AddressValueError as error:
        raise InvalidParameter(f"invalid gateway {text}: invalid IPv4 address") from error

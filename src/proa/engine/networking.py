# SPDX-License-Identifier: Apache-2.0
"""Reads which networks a container joins, and how. Source: Engine API, NetworkMode and NetworkingConfig."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from msgspec.structs import replace

from proa.engine.links import check_default_links, endpoint_links
from proa.model.config import (
    ContainerConfig,
    EndpointIpamConfig,
    EndpointSettings,
    HostConfig,
    NetworkingConfig,
)
from proa.model.errors import InvalidParameter
from proa.model.network import EndpointRequest
from proa.network.networks import Networks

_MAC = re.compile(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}")


def check_networking(
    config: ContainerConfig, host: HostConfig, asked: NetworkingConfig, networks: Networks
) -> dict[str, EndpointSettings]:
    """Return the endpoints a container will have, by network name; {} for none, host and container:X.

    Raises InvalidParameter for options that contradict each other, NoSuchNetwork.
    """
    mode = host.network_mode
    endpoints = {name: value or EndpointSettings() for name, value in (asked.endpoints_config or {}).items()}
    is_shared = mode == "host" or mode.startswith("container:")
    if is_shared and (config.mac_address or any(one.mac_address for one in endpoints.values())):
        raise InvalidParameter("conflicting options: mac-address and the network mode")
    endpoints = {"bridge" if name == "default" else name: value for name, value in endpoints.items()}
    if mode.startswith("container:"):
        if config.hostname:
            raise InvalidParameter("conflicting options: hostname and the network mode")
        if host.port_bindings or host.publish_all_ports:
            raise InvalidParameter("conflicting options: port publishing and the container type network mode")
        return {}
    if mode in ("none", "host"):
        return {}
    if mode not in endpoints:
        # A network may be given by id as the mode and by name in the endpoints, or the other way round.
        network = networks.get(mode)
        given = endpoints.pop(network.name, None) or endpoints.pop(network.id, None) or EndpointSettings()
        endpoints = {network.name: given, **endpoints}
    else:
        endpoints = {mode: endpoints.pop(mode), **endpoints}
    checked = {}
    for position, (name, settings) in enumerate(endpoints.items()):
        network = networks.get(name)
        if network.driver in ("host", "null"):
            raise InvalidParameter(
                f"conflicting options: cannot attach both user-defined and non-user-defined "
                f"network-modes: {network.name}"
            )
        if settings.aliases and network.name == "bridge":
            raise InvalidParameter(
                "network-scoped alias is supported only for containers in user defined networks"
            )
        mac = settings.mac_address or (config.mac_address if position == 0 else "")
        if network.name == "bridge":
            check_default_links(host, settings)
        elif (host.links or settings.links) and network.driver != "bridge":
            raise InvalidParameter(f"network {network.name} has no names that a link could lead to")
        elif position == 0 and host.links and not settings.links:
            settings = replace(settings, links=host.links)  # docker-py writes them here alone
        settings = replace(settings, mac_address=mac, network_id=network.id)
        _parse_endpoint(network.name, settings)
        checked[network.name] = settings
    return checked


def endpoint_requests(networking: Mapping[str, EndpointSettings]) -> list[EndpointRequest]:
    """Return what the network package is asked for, in order. Raises InvalidParameter."""
    return [_parse_endpoint(name, settings) for name, settings in networking.items()]


def _parse_endpoint(name: str, settings: EndpointSettings) -> EndpointRequest:
    ipam = settings.ipam_config or EndpointIpamConfig()
    if ipam.link_local_i_ps:
        raise InvalidParameter(
            "link-local addresses of the user's choice (--link-local-ip) are not supported"
        )
    if settings.driver_opts:
        option = min(settings.driver_opts)
        raise InvalidParameter(f"the driver option {option} of an endpoint is not supported")
    if name == "bridge" and settings.aliases:
        raise InvalidParameter(
            "network-scoped alias is supported only for containers in user defined networks"
        )
    try:
        address = IPv4Address(ipam.i_pv4_address) if ipam.i_pv4_address else None
    except AddressValueError as error:
        raise InvalidParameter(f"invalid IPv4 address: {ipam.i_pv4_address}") from error
    try:
        address6 = IPv6Address(ipam.i_pv6_address) if ipam.i_pv6_address else None
    except AddressValueError as error:
        raise InvalidParameter(f"invalid IPv6 address: {ipam.i_pv6_address}") from error
    if settings.mac_address and _MAC.fullmatch(settings.mac_address) is None:
        raise InvalidParameter(f"invalid MAC address: {settings.mac_address}")
    return EndpointRequest(
        network=name,
        address=address,
        address6=address6,
        mac=settings.mac_address.lower().replace("-", ":") or None,
        aliases=tuple(settings.aliases or ()),
        links=endpoint_links(name, settings),
        priority=settings.gw_priority,
    )

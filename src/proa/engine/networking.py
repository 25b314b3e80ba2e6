# SPDX-License-Identifier: Apache-2.0
"""Reads which networks a container joins, and how. Source: Engine API, NetworkMode and NetworkingConfig."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address

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
from proa.model.ids import NetworkId
from proa.model.network import EndpointRequest
from proa.model.task import Interface
from proa.network.networks import Networks

OPTION_IFNAME = "com.docker.network.endpoint.ifname"
OPTION_SYSCTLS = "com.docker.network.endpoint.sysctls"
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,14}")  # IFNAMSIZ; a dot would part a sysctl's name
# The docker command writes all of it in small letters.
_SYSCTL = re.compile(r"(net\.(?:ipv4|ipv6|mpls)\.[a-z]+)\.(?:IFNAME|ifname)\.([a-z0-9_]+)=([0-9 -]+)")
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


def parse_sysctls(text: str) -> tuple[tuple[str, str], ...]:
    """Read ``net.ipv4.conf.IFNAME.log_martians=1,…``: settings of an endpoint's interface, whatever its name.

    Raises InvalidParameter. Source: Docker documentation, "Driver options" of docker network connect.
    """
    found = []
    for entry in filter(None, text.split(",")):
        match = _SYSCTL.fullmatch(entry)
        if match is None:
            raise InvalidParameter(
                f"unrecognised network interface sysctl '{entry}'; represent 'net.X.Y.ethN.Z=V' as "
                "'net.X.Y.IFNAME.Z=V'"
            )
        found.append((f"{match[1]}.IFNAME.{match[2]}", match[3]))
    return tuple(found)


def endpoint_sysctls(
    networking: Mapping[str, EndpointSettings], interfaces: Iterable[Interface]
) -> dict[str, str]:
    """Return the settings that endpoints want of their interfaces, by the sysctl's name."""
    names = {interface.network_id: interface.name for interface in interfaces}
    return {
        name.replace(".IFNAME.", f".{names[NetworkId(settings.network_id)]}."): value
        for settings in networking.values()
        if settings.network_id in names
        for name, value in parse_sysctls((settings.driver_opts or {}).get(OPTION_SYSCTLS, ""))
    }


def check_live_options(settings: EndpointSettings) -> None:
    """Raise InvalidParameter for what is set only when a container starts."""
    if (settings.driver_opts or {}).get(OPTION_SYSCTLS):
        raise InvalidParameter(f"{OPTION_SYSCTLS} is not supported for a container that runs: stop it first")


def _link_local(text: str) -> IPv4Address | IPv6Address:
    try:
        address = ip_address(text)
    except ValueError:
        address = None
    if address is None or not address.is_link_local:
        raise InvalidParameter(f"invalid link-local IP address: {text}")
    return address


def _parse_endpoint(name: str, settings: EndpointSettings) -> EndpointRequest:
    ipam = settings.ipam_config or EndpointIpamConfig()
    options = settings.driver_opts or {}
    unknown = sorted(set(options) - {OPTION_IFNAME, OPTION_SYSCTLS})
    if unknown:
        raise InvalidParameter(f"the driver option {unknown[0]} of an endpoint is not supported")
    interface = options.get(OPTION_IFNAME, "")
    if interface and (_INTERFACE.fullmatch(interface) is None or interface == "lo"):
        raise InvalidParameter(f"invalid interface name: {interface}")
    parse_sysctls(options.get(OPTION_SYSCTLS, ""))
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
        interface=interface,
        link_local=tuple(_link_local(text) for text in ipam.link_local_i_ps or ()),
        links=endpoint_links(name, settings),
        priority=settings.gw_priority,
    )

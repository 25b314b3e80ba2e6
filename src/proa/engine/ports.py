# SPDX-License-Identifier: Apache-2.0
"""Reads published and exposed ports. Source: Engine API, PortMap; docker run reference, "EXPOSE"."""

from __future__ import annotations

from ipaddress import ip_address

from proa.model.config import ContainerConfig, HostConfig, PortBinding
from proa.model.errors import InvalidParameter
from proa.model.network import PublishedPort

_PROTOCOLS = ("tcp", "udp", "sctp")


def parse_port(text: str) -> tuple[int, str]:
    """Return number and protocol of "80/tcp" or "80". Raises InvalidParameter."""
    number, _, protocol = text.partition("/")
    protocol = (protocol or "tcp").lower()
    if protocol not in _PROTOCOLS:
        raise InvalidParameter(f"invalid port specification: {text!r}: unknown protocol {protocol}")
    return _parse_number(number, text), protocol


def parse_ports(config: ContainerConfig, host: HostConfig) -> tuple[PublishedPort, ...]:
    """Return the ports to publish; with PublishAllPorts every exposed port on a port of proa's choice."""
    published: list[PublishedPort] = []
    for key, bindings in (host.port_bindings or {}).items():
        number, protocol = parse_port(key)
        published += [_publish(number, protocol, binding) for binding in bindings or [PortBinding()]]
    if host.publish_all_ports:
        taken = {(port.container_port, port.protocol) for port in published}
        for key in config.exposed_ports or ():
            number, protocol = parse_port(key)
            if (number, protocol) not in taken:
                published.append(PublishedPort(container_port=number, protocol=protocol, any_address=True))
    return tuple(published)


def check_exposed(config: ContainerConfig) -> None:
    """Raise InvalidParameter for an exposed port that is none."""
    for key in config.exposed_ports or ():
        parse_port(key)


def _publish(number: int, protocol: str, binding: PortBinding) -> PublishedPort:
    try:
        host_ip = ip_address(binding.host_ip.strip("[]") or "0.0.0.0")
    except ValueError as error:
        raise InvalidParameter(f"invalid IP address {binding.host_ip!r} in a port binding") from error
    first, dash, last = binding.host_port.partition("-")
    host_port = _parse_number(first, binding.host_port) if dash or first not in ("", "0") else 0
    last_port = _parse_number(last, binding.host_port) if dash else 0
    if dash and last_port < host_port:
        raise InvalidParameter(f"invalid port specification: {binding.host_port!r}")
    return PublishedPort(
        container_port=number,
        protocol=protocol,
        host_ip=host_ip,
        host_port=host_port,
        last_host_port=last_port,
        any_address=not binding.host_ip,
    )


def _parse_number(text: str, whole: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) < 65536:
        raise InvalidParameter(f"invalid port specification: {whole!r}")
    return int(text)

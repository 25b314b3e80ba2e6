# SPDX-License-Identifier: Apache-2.0
"""From the domain of an image's name to the servers that are asked, in order. Pure but for name resolution.

Docker Hub's domain is docker.io, its registry is at registry-1.docker.io, and its key in authentication files
is https://index.docker.io/v1/. Mirrors are for Docker Hub only, as in Docker.

A registry is *insecure* when it is on the loopback or configured so: its certificate is not checked, and when
it does not speak TLS at all, plain HTTP is used. A host with a CA of its own in certs.d is always checked.

Source: dockerd reference, "Insecure registries", "Registry mirrors"; Docker Engine, registry/service_v2.go.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import anyio

from proa.model.errors import InvalidParameter
from proa.model.registry import Credentials, RegistrySettings

HUB_DOMAIN = "docker.io"
HUB_URL = "https://registry-1.docker.io"
_HUB_HOSTS = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})
_LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))

_HOST = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One server of a registry.

    :ivar url: its base, without a slash at the end.
    :ivar is_insecure: its certificate need not be valid, and it may speak plain HTTP.
    :ivar is_mirror: it gets no credentials.
    """

    url: str
    is_insecure: bool = False
    is_mirror: bool = False

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc


async def find_endpoints(domain: str, settings: RegistrySettings) -> Sequence[Endpoint]:
    """Return the servers to ask for images of a domain, in order.

    Raises InvalidParameter when the domain is no host: that of a login or a search is any text of the client.
    """
    if domain == HUB_DOMAIN:
        mirrors = [
            Endpoint(
                url=mirror.rstrip("/"), is_insecure=await is_insecure(_host(mirror), settings), is_mirror=True
            )
            for mirror in settings.mirrors
        ]
        return [*mirrors, Endpoint(url=HUB_URL)]
    fields = _HOST.fullmatch(domain)
    if fields is None or int(fields["port"] or 0) > 65535:
        raise InvalidParameter(f"invalid registry endpoint {domain!r}: it is not HOST or HOST:PORT")
    return [Endpoint(url=f"https://{domain}", is_insecure=await is_insecure(domain, settings))]


def credentials_for(domain: str, credentials: Credentials) -> Credentials:
    """Return the credentials when they are for this registry, or do not say for which; else none.

    A client may send what it has for another registry; that one's secrets stay here.
    """
    if not credentials.server or _same_registry(_host(credentials.server), domain):
        return credentials
    return Credentials()


def login_domain(server: str) -> str:
    """Return the domain of a login's server address: docker.io for none and for Docker Hub's many names."""
    host = _host(server)
    return HUB_DOMAIN if not host or host in _HUB_HOSTS else host


def is_loopback(host: str) -> bool:
    """Tell whether a host, with or without a port, is this machine by its name."""
    name = host_name(host)
    address = _address(name)
    if address is None:
        return name == "localhost" or name.endswith(".localhost")
    return any(address in network for network in _LOOPBACK) or address.is_unspecified


def is_internal(host: str) -> bool:
    """Tell whether a host is written as an address that means something only here: loopback, link-local
    (where clouds serve machine credentials), private."""
    address = _address(host_name(host))
    return is_loopback(host) or (address is not None and not address.is_global)


def host_name(host: str) -> str:
    """Return a host without its port and without the brackets of an IPv6 address."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, colon, port = host.rpartition(":")
    return name.lower() if colon and port.isdigit() else host.lower()


def parse_network(text: str) -> Network | None:
    """Return the network of a CIDR; None when the text is a host's name."""
    try:
        return ipaddress.ip_network(text, strict=False) if "/" in text else None
    except ValueError:
        return None


async def is_insecure(host: str, settings: RegistrySettings) -> bool:
    name = host_name(host)
    if is_loopback(host) or host.lower() in settings.insecure or name in settings.insecure:
        return True
    networks = [network for text in settings.insecure if (network := parse_network(text)) is not None]
    if not networks:
        return False
    return any(address in network for address in await _resolve(name) for network in networks)


async def _resolve(name: str) -> Sequence[Address]:
    literal = _address(name)
    if literal is not None:
        return [literal]
    try:
        found = await anyio.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []  # asking it will say that it does not exist
    return [address for *_, where in found if (address := _address(str(where[0]))) is not None]


def _address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


def _host(server: str) -> str:
    """Return the host, with its port, of what clients write: an URL or a host with or without a path."""
    _, separator, rest = server.partition("://")
    return (rest if separator else server).partition("/")[0].lower()


def _same_registry(host: str, domain: str) -> bool:
    if domain == HUB_DOMAIN:
        return host in _HUB_HOSTS
    return host == domain.lower()

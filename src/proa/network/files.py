# SPDX-License-Identifier: Apache-2.0
"""Content of a container's /etc/resolv.conf and /etc/hosts. Pure.

Source: resolv.conf(5), hosts(5); moby daemon/libnetwork/{internal/resolvconf,etchosts} for the form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address

from proa.model.errors import InvalidParameter
from proa.model.network import Endpoint, IpAddress

LOCALHOST_LINES = (
    ("127.0.0.1", "localhost"),
    ("::1", "localhost ip6-localhost ip6-loopback"),
    ("fe00::", "ip6-localnet"),
    ("ff00::", "ip6-mcastprefix"),
    ("ff02::1", "ip6-allnodes"),
    ("ff02::2", "ip6-allrouters"),
)

HOST_GATEWAY = "host-gateway"  # in --add-host name:host-gateway: an address of the host


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvConf:
    """What a resolv.conf says. Addresses are text: they may be IPv6 and carry a zone."""

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def parse_resolv_conf(text: str) -> ResolvConf:
    """Read a resolv.conf; of several search or domain lines the last one counts, as in libc."""
    nameservers: list[str] = []
    search: tuple[str, ...] = ()
    options: list[str] = []
    for line in text.splitlines():
        words = line.split("#", 1)[0].split(";", 1)[0].split()
        if len(words) < 2:
            continue
        match words[0]:
            case "nameserver":
                nameservers.append(words[1])
            case "search" | "domain":
                search = tuple(words[1:])
            case "options":
                options += words[1:]
            case _:
                pass
    return ResolvConf(nameservers=tuple(nameservers), search=search, options=tuple(options))


def without_loopback(conf: ResolvConf) -> ResolvConf:
    """Drop the nameservers that only the host itself can reach."""
    kept = tuple(server for server in conf.nameservers if not _is_loopback(server))
    return ResolvConf(nameservers=kept, search=conf.search, options=conf.options)


def resolv_conf(
    *,
    host: ResolvConf,
    resolvers: Sequence[IpAddress] = (),
    dns: Sequence[str] = (),
    search: Sequence[str] = (),
    options: Sequence[str] = (),
) -> bytes:
    """Build a container's resolv.conf: what the user asks for takes the place of what the host has.

    :param host: the host's, reduced to what a container can reach.
    :param resolvers: those of the container's own networks, which know its peers; asked first. They forward
        to the host's nameservers, which are then left out.
    :param search: "." alone means none at all.
    """
    nameservers = [str(address) for address in resolvers]
    nameservers += dns or (() if resolvers else host.nameservers)
    domains = [] if list(search) == ["."] else list(search or host.search)
    chosen = list(options or host.options)
    if resolvers and not any(option.startswith("ndots:") for option in chosen):
        # A peer's name has no dot: it is looked up as it is before any search domain is tried.
        chosen.append("ndots:0")
    lines = [f"nameserver {server}" for server in dict.fromkeys(nameservers)]
    if domains:
        lines.append("search " + " ".join(domains))
    if chosen:
        lines.append("options " + " ".join(chosen))
    return "".join(line + "\n" for line in lines).encode()


def addresses_of(endpoints: Sequence[Endpoint]) -> list[IpAddress]:
    """Return the addresses of a container, those of each network together."""
    found = [address for endpoint in endpoints for address in (endpoint.address, endpoint.address6)]
    return [address.ip for address in found if address is not None]


def hosts_file(
    *,
    addresses: Sequence[IpAddress],
    hostname: str,
    domainname: str = "",
    extra_hosts: Sequence[str] = (),
    host_gateway: IPv4Address | None = None,
    base: str | None = None,
    links: Sequence[tuple[str, Sequence[IpAddress]]] = (),
) -> bytes:
    """Build a container's hosts file: loopback, then what the user adds, then the container itself.

    :param base: what the file begins with in place of the lines for loopback: the host's own file, of a
        container on the host's network.

    :param addresses: of the container, one on each of its networks; empty for one without a network.
    :param extra_hosts: ``name:address`` or ``name=address``; HOST_GATEWAY as address stands for
        ``host_gateway``.
    :param links: names of peers, as they are written, with their addresses.
    :raises InvalidParameter: an extra host is malformed.
    """
    names = f"{hostname}.{domainname} {hostname}" if domainname else hostname
    loopback = [f"{address}\t{name}" for address, name in LOCALHOST_LINES]
    lines = loopback if base is None else base.splitlines()
    lines += [_extra_line(entry, host_gateway) for entry in extra_hosts]
    lines += [f"{address}\t{peer}" for peer, found in links for address in found]
    lines += [f"{address}\t{names}" for address in addresses if hostname]
    return "".join(line + "\n" for line in lines).encode()


def hosts_change(before: bytes, after: bytes) -> Callable[[bytes], bytes]:
    """Return what makes of a hosts file that began as ``before`` one that tells what ``after`` does:
    lines that proa wrote are taken away or added, all others stay."""
    gone = set(before.splitlines()) - set(after.splitlines())
    new = [line for line in after.splitlines() if line not in set(before.splitlines())]

    def change(found: bytes) -> bytes:
        kept = [line for line in found.splitlines() if line not in gone]
        return b"".join(line + b"\n" for line in (*kept, *new))

    return change


def peer_moved(names: str, addresses: Sequence[IpAddress]) -> Callable[[bytes], bytes]:
    """Return what makes of a hosts file one in which a linked peer has these addresses.

    :param names: as the peer's lines have them; the first one is its alias, by which they are known.
    """
    alias = names.split()[0].encode()
    new = [f"{address}\t{names}".encode() for address in addresses]

    def change(found: bytes) -> bytes:
        lines = found.splitlines()
        old = [number for number, line in enumerate(lines) if line.split()[1:2] == [alias]]
        kept = [line for number, line in enumerate(lines) if number not in old]
        place = old[0] if old else len(kept)
        return b"".join(line + b"\n" for line in (*kept[:place], *new, *kept[place:]))

    return change


def _extra_line(entry: str, host_gateway: IPv4Address | None) -> str:
    name, _, address = entry.partition("=" if "=" in entry else ":")
    if not name or not address or any(character.isspace() for character in entry):
        raise InvalidParameter(f'bad format for add-host: "{entry}"')
    if address == HOST_GATEWAY:
        if host_gateway is None:
            raise InvalidParameter("unable to derive the IP value for host-gateway")
        address = str(host_gateway)
    try:
        ip_address(address.strip("[]"))
    except ValueError:
        raise InvalidParameter(f'invalid IP address in add-host: "{address}"') from None
    return f"{address.strip('[]')}\t{name}"


def _is_loopback(server: str) -> bool:
    try:
        return ip_address(server.partition("%")[0]).is_loopback
    except ValueError:
        return True  # nothing a container could use either

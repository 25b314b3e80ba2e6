# SPDX-License-Identifier: Apache-2.0
"""The packet filter's rules, as nft text. Pure; golden files in the tests show the whole.

All lives in tables of ours, one of each family (that of IPv6 only where a network has IPv6), and no other
table is touched. The chains change only with the networks;
publishing a port adds an element to a map. Each function returns one transaction.

    prerouting, raw   a bridge's containers may not reach 127.0.0.0/8 of the host (route_localnet is on there)
    prerouting, nat   to one of the host's addresses, port published: on to the container
    output, nat       the same for the host's own connections, 127.0.0.1 included
    forward           replies; published ports; within one network; out of a network unless it is internal.
                      Between networks, and into one from outside: dropped
    postrouting, nat  leaving a network: the host's address; published port of one's own network, or from
                      127.0.0.0/8: the bridge's address, so that the answer comes back this way

``drop`` is final and ``accept`` is not: a host's own tables see what these chains let pass.

Source: nft(8); Linux Documentation/networking/ip-sysctl.rst, route_localnet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from proa.model.network import IpAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What differs between the tables of IPv4 and IPv6."""

    name: str  # of the table, and of its expressions
    version: int
    address_type: str
    loopback: str


IPV4 = Family(name="ip", version=4, address_type="ipv4_addr", loopback="127.0.0.0/8")
IPV6 = Family(name="ip6", version=6, address_type="ipv6_addr", loopback="::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeRules:
    """A network as the filter sees it. A subnet is None of a family that it has not."""

    bridge: str
    subnet: IPv4Network | None
    subnet6: IPv6Network | None = None
    internal: bool = False
    masquerade: bool = True

    def of(self, family: Family) -> IPv4Network | IPv6Network | None:
        """Return the subnet of a family."""
        return self.subnet if family is IPV4 else self.subnet6


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A port of the host (``host_ip`` unspecified: on all its addresses) that leads to ``address``, which is
    of the same family."""

    protocol: str
    host_ip: IpAddress
    host_port: int
    address: IpAddress
    port: int


def whole_table(
    table: str,
    networks: Sequence[BridgeRules],
    published: Sequence[Published],
    *,
    family: Family = IPV4,
    refuse_loopback: bool = False,
) -> str:
    """Make a family's table anew, whatever was there. Connections that exist go on.

    :param refuse_loopback: connections from the host's loopback to a published port cannot work (see
        ``bridge.is_ipv6_loopback_lost``) and are refused, so that clients try the other family at once.
    """
    ours = [network for network in networks if network.of(family) is not None]
    ip, kind = family.name, family.address_type
    elements = "".join(_element_commands("add", table, published, family, with_target=True))
    return f"""add table {ip} {table}
delete table {ip} {table}
table {ip} {table} {{
\tmap published {{
\t\ttype inet_proto . inet_service : {kind} . inet_service
\t}}
\tmap published_on {{
\t\ttype {kind} . inet_proto . inet_service : {kind} . inet_service
\t}}
\tchain raw {{
\t\ttype filter hook prerouting priority raw; policy accept;
{_lines(_raw(ours, family))}\t}}
\tchain publish {{
\t\tdnat {ip} to {ip} daddr . meta l4proto . th dport map @published_on
\t\tdnat {ip} to meta l4proto . th dport map @published
\t}}
\tchain prerouting {{
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t\t{ip} daddr {family.loopback} return
\t\tfib daddr type local goto publish
\t}}
\tchain output {{
\t\ttype nat hook output priority -100; policy accept;
\t\tfib daddr type local goto publish
\t}}
{_refusal(family) if refuse_loopback else ""}\tchain forward {{
\t\ttype filter hook forward priority filter; policy accept;
{_lines(_forward(ours))}\t}}
\tchain postrouting {{
\t\ttype nat hook postrouting priority srcnat; policy accept;
{_lines(_postrouting(ours, family))}\t}}
}}
{elements}"""


def add_published(table: str, published: Sequence[Published]) -> str:
    """Publish ports. Fails as a whole when one of them is published to another target."""
    commands = (_element_commands("create", table, published, one, with_target=True) for one in (IPV4, IPV6))
    return "".join(command for found in commands for command in found)


def delete_published(table: str, published: Sequence[Published]) -> str:
    """Take ports back. Fails as a whole when one of them is not published."""
    commands = (_element_commands("delete", table, published, one, with_target=False) for one in (IPV4, IPV6))
    return "".join(command for found in commands for command in found)


def delete_table(table: str, family: Family = IPV4) -> str:
    """Remove a family's table, if there is one."""
    return f"add table {family.name} {table}\ndelete table {family.name} {table}\n"


def _refusal(family: Family) -> str:
    rule = f"{family.name} saddr {family.loopback} ct status dnat meta l4proto tcp reject with tcp reset"
    chain = "type filter hook output priority filter; policy accept;"
    return f"\tchain refuse {{\n{_lines([chain, rule])}\t}}\n"


def _raw(networks: Sequence[BridgeRules], family: Family) -> list[str]:
    return [f'iifname "{network.bridge}" {family.name} daddr {family.loopback} drop' for network in networks]


def _forward(networks: Sequence[BridgeRules]) -> list[str]:
    if not networks:
        return []
    bridges = "{ " + ", ".join(f'"{network.bridge}"' for network in networks) + " }"
    rules = [
        f"iifname != {bridges} oifname != {bridges} accept",
        # Frames between ports of one bridge come here too where br_netfilter is on.
        *(f'iifname "{network.bridge}" oifname "{network.bridge}" accept' for network in networks),
    ]
    for network in networks:
        if network.internal:
            rules.append(f'iifname "{network.bridge}" drop')
            rules.append(f'oifname "{network.bridge}" drop')
    rules += [
        "ct state established,related accept",
        f"oifname {bridges} ct status dnat accept",
        f"oifname {bridges} drop",
    ]
    return rules


def _postrouting(networks: Sequence[BridgeRules], family: Family) -> list[str]:
    rules = []
    ip = family.name
    for network in networks:
        if network.internal:
            continue
        name, subnet = network.bridge, network.of(family)
        rules.append(f'{ip} saddr {family.loopback} oifname "{name}" masquerade')
        rules.append(f'{ip} saddr {subnet} oifname "{name}" ct status dnat masquerade')
        if network.masquerade:
            rules.append(f'{ip} saddr {subnet} oifname != "{name}" masquerade')
    return rules


def _lines(rules: Iterable[str]) -> str:
    return "".join(f"\t\t{rule}\n" for rule in rules)


def _element_commands(
    verb: str, table: str, published: Iterable[Published], family: Family, *, with_target: bool
) -> Iterable[str]:
    elements: dict[str, list[str]] = {}
    for port in published:
        if port.host_ip.version != family.version:
            continue
        name = "published" if port.host_ip.is_unspecified else "published_on"
        key = f"{port.protocol} . {port.host_port}"
        if not port.host_ip.is_unspecified:
            key = f"{port.host_ip} . {key}"
        target = f" : {port.address} . {port.port}" if with_target else ""
        elements.setdefault(name, []).append(key + target)
    for name, found in elements.items():
        yield f"{verb} element {family.name} {table} {name} {{ {', '.join(found)} }}\n"

# SPDX-License-Identifier: Apache-2.0
"""The packet filter's rules, as nft text. Pure; golden files in the tests show the whole.

All lives in one table of ours, and no other table is touched. The chains change only with the networks;
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
from ipaddress import IPv4Address, IPv4Network

ANY = IPv4Address(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeRules:
    """A network as the filter sees it."""

    bridge: str
    subnet: IPv4Network
    internal: bool = False
    masquerade: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A port of the host (``host_ip`` ANY: on all its addresses) that leads to ``address``."""

    protocol: str
    host_ip: IPv4Address
    host_port: int
    address: IPv4Address
    port: int


def whole_table(table: str, networks: Sequence[BridgeRules], published: Iterable[Published]) -> str:
    """Make the table anew, whatever was there. Connections that exist go on."""
    elements = "".join(_element_commands("add", table, published, with_target=True))
    return f"""add table ip {table}
delete table ip {table}
table ip {table} {{
\tmap published {{
\t\ttype inet_proto . inet_service : ipv4_addr . inet_service
\t}}
\tmap published_on {{
\t\ttype ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
\t}}
\tchain raw {{
\t\ttype filter hook prerouting priority raw; policy accept;
{_lines(_raw(networks))}\t}}
\tchain publish {{
\t\tdnat ip to ip daddr . meta l4proto . th dport map @published_on
\t\tdnat ip to meta l4proto . th dport map @published
\t}}
\tchain prerouting {{
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t\tip daddr 127.0.0.0/8 return
\t\tfib daddr type local goto publish
\t}}
\tchain output {{
\t\ttype nat hook output priority -100; policy accept;
\t\tfib daddr type local goto publish
\t}}
\tchain forward {{
\t\ttype filter hook forward priority filter; policy accept;
{_lines(_forward(networks))}\t}}
\tchain postrouting {{
\t\ttype nat hook postrouting priority srcnat; policy accept;
{_lines(_postrouting(networks))}\t}}
}}
{elements}"""


def add_published(table: str, published: Sequence[Published]) -> str:
    """Publish ports. Fails as a whole when one of them is published to another target."""
    return "".join(_element_commands("create", table, published, with_target=True))


def delete_published(table: str, published: Sequence[Published]) -> str:
    """Take ports back. Fails as a whole when one of them is not published."""
    return "".join(_element_commands("delete", table, published, with_target=False))


def delete_table(table: str) -> str:
    """Remove the table, if there is one."""
    return f"add table ip {table}\ndelete table ip {table}\n"


def _raw(networks: Sequence[BridgeRules]) -> list[str]:
    return [f'iifname "{network.bridge}" ip daddr 127.0.0.0/8 drop' for network in networks]


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


def _postrouting(networks: Sequence[BridgeRules]) -> list[str]:
    rules = []
    for network in networks:
        if network.internal:
            continue
        name, subnet = network.bridge, network.subnet
        rules.append(f'ip saddr 127.0.0.0/8 oifname "{name}" masquerade')
        rules.append(f'ip saddr {subnet} oifname "{name}" ct status dnat masquerade')
        if network.masquerade:
            rules.append(f'ip saddr {subnet} oifname != "{name}" masquerade')
    return rules


def _lines(rules: Iterable[str]) -> str:
    return "".join(f"\t\t{rule}\n" for rule in rules)


def _element_commands(
    verb: str, table: str, published: Iterable[Published], *, with_target: bool
) -> Iterable[str]:
    elements: dict[str, list[str]] = {}
    for port in published:
        name = "published" if port.host_ip == ANY else "published_on"
        key = f"{port.protocol} . {port.host_port}"
        if port.host_ip != ANY:
            key = f"{port.host_ip} . {key}"
        target = f" : {port.address} . {port.port}" if with_target else ""
        elements.setdefault(name, []).append(key + target)
    for name, found in elements.items():
        yield f"{verb} element ip {table} {name} {{ {', '.join(found)} }}\n"

# SPDX-License-Identifier: Apache-2.0
"""Bridges and their ports on the host. Knows networks, not containers.

Every device of ours carries an alias with the exec root of its daemon: by it, what a dead daemon left is told
from what belongs to others, and two daemons on one host keep apart.
"""

from __future__ import annotations

import hashlib
import logging
import socket
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, ip_address
from pathlib import Path

from proa.host.rtnetlink import (
    Link,
    RouteSocket,
    accept_loopback6,
    add_address,
    create_bridge,
    delete_link,
    set_link,
)
from proa.model.errors import Conflict, Internal, InvalidParameter
from proa.model.network import Network
from proa.network.files import parse_resolv_conf
from proa.network.ipam import mac_of
from proa.network.request import OPTION_BRIDGE_NAME, OPTION_PARENT

STANDARD_EXEC_ROOT = Path("/run/proa")
_SYSCTL = Path("/proc/sys/net/ipv4")
_BRIDGE_FILTER = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
_BRIDGE_FILTER6 = Path("/proc/sys/net/bridge/bridge-nf-call-ip6tables")
_SYSCTL6 = Path("/proc/sys/net/ipv6")

_log = logging.getLogger(__name__)


def tag_of(exec_root: Path) -> str:
    """Return what tells this daemon's devices and rules from another's: nothing for the standard one."""
    if exec_root == STANDARD_EXEC_ROOT:
        return ""
    return hashlib.blake2s(str(exec_root).encode(), digest_size=3).hexdigest()


def table_name(exec_root: Path) -> str:
    """Return the name of the packet filter's table."""
    tag = tag_of(exec_root)
    return f"proa_{tag}" if tag else "proa"


def default_bridge_name(exec_root: Path) -> str:
    """Return the device name of the network ``bridge``."""
    tag = tag_of(exec_root)
    return f"proa-{tag}" if tag else "proa0"


def alias_of(exec_root: Path) -> str:
    """Return the mark on our devices."""
    return f"proa {exec_root}"


class Bridges:
    """The host's side of the networks."""

    def __init__(self, route: RouteSocket, exec_root: Path) -> None:
        self._route = route
        self._alias = alias_of(exec_root)

    def ensure(self, network: Network) -> None:
        """Make the bridge, or set an existing one right: address, up, loopback routing. Idempotent.

        :raises Conflict: a device of that name is not a bridge of ours.
        :raises Internal: the kernel refuses.
        """
        first = network.gateway or network.gateway6
        assert first is not None
        link = self._route.find_link(network.bridge)
        if link is not None and not self._is_ours(link, network):
            raise Conflict(f"network {network.name}: a device {network.bridge} exists that is not proa's")
        made = link is None
        try:
            if link is None:
                mac = mac_of(first)
                self._route.transact(create_bridge(network.bridge, mac=mac, mtu=network.mtu))
                link = self._route.find_link(network.bridge)
                assert link is not None
            # IPv6 goes before the device comes up, or it would announce an address.
            has_ipv6 = network.subnet6 is not None
            _write(_SYSCTL6 / "conf" / network.bridge / "disable_ipv6", "0" if has_ipv6 else "1")
            messages = [set_link(link.index, up=True, alias=self._alias)]
            if network.subnet is not None:
                address = IPv4Interface((network.gateway or 0, network.subnet.prefixlen))
                messages.append(add_address(link.index, address))
            if network.subnet6 is not None:
                enable_ipv6_forwarding()
                for name in ("accept_dad", "accept_ra"):
                    _write(_SYSCTL6 / "conf" / network.bridge / name, "0")
                address6 = IPv6Interface((network.gateway6 or 0, network.subnet6.prefixlen))
                messages += (add_address(link.index, address6), accept_loopback6(link.index))
            self._route.transact(*messages)
            # A connection from 127.0.0.1 of the host to a published port leaves by the bridge.
            _write(_SYSCTL / "conf" / network.bridge / "route_localnet", "1")
        except OSError as error:
            if made and link is not None:
                self._route.transact(delete_link(link.index))
            raise Internal(f"cannot set up bridge {network.bridge}: {error}") from error

    def index(self, network: Network) -> int:
        """Return the device number of the network's bridge; a bridge that somebody deleted is made again.

        :raises Conflict, Internal: as ``ensure``.
        """
        try:
            return socket.if_nametoindex(network.bridge)
        except OSError:
            self.ensure(network)
            return socket.if_nametoindex(network.bridge)

    def parent_index(self, network: Network) -> int:
        """Return the device number of the parent that a macvlan or ipvlan network is on.

        :raises InvalidParameter: there is no such device.
        """
        parent = network.options[OPTION_PARENT]
        try:
            return socket.if_nametoindex(parent)
        except OSError:
            raise InvalidParameter(
                f"network {network.name}: the parent device {parent} does not exist"
            ) from None

    def remove(self, network: Network) -> None:
        """Delete the bridge. Takes tens of milliseconds. Idempotent."""
        link = self._route.find_link(network.bridge)
        if link is not None and link.alias == self._alias:
            self._route.transact(delete_link(link.index))

    def plug(self, network: Network, device: str) -> bool:
        """Make an existing device a port of the bridge and bring it up; False when there is no device."""
        link = self._route.find_link(device)
        if link is None:
            return False
        self._route.transact(set_link(link.index, up=True, master=self.index(network)))
        return True

    def strangers(self, known: set[str]) -> list[Link]:
        """List devices of ours, and ports of our bridges, whose names are not among those known."""
        links = self._route.links()
        bridges = {link.index for link in links if link.kind == "bridge" and link.alias == self._alias}
        return [
            link
            for link in links
            if link.name not in known and (link.alias == self._alias or link.master in bridges)
        ]

    def taken_subnets(self, resolv_conf: Path) -> list[IPv4Network]:
        """List what a new network must not overlap: the host's addresses, routes and nameservers."""
        taken = [address.network for _index, address in self._route.addresses()]
        taken += [destination for _index, destination in self._route.routes()]
        for server in _nameservers(resolv_conf):
            address = ip_address(server)
            if address.version == 4:
                taken.append(IPv4Network(address))
        return [network for network in taken if not network.is_loopback]

    def _is_ours(self, link: Link, network: Network) -> bool:
        # A daemon that died between making and marking left one unmarked, under a name nobody else chooses.
        unmarked = link.alias == "" and OPTION_BRIDGE_NAME not in network.options
        return link.kind == "bridge" and (link.alias == self._alias or unmarked)


def enable_forwarding() -> None:
    """Let the host pass packets between devices. A host that forbids the change is told in the log."""
    path = _SYSCTL / "ip_forward"
    try:
        if path.read_text().strip() != "1":
            path.write_text("1")
    except OSError as error:
        _log.warning("cannot enable net.ipv4.ip_forward, networks will not reach outside: %s", error)


def enable_ipv6_forwarding() -> None:
    """As ``enable_forwarding``, of IPv6. A router listens to no other router, unless it is told to:
    interfaces of the host that get their address and route that way go on doing so."""
    switch = _SYSCTL6 / "conf" / "all" / "forwarding"
    try:
        if switch.read_text().strip() == "1":
            return
        for path in (_SYSCTL6 / "conf").glob("*/accept_ra"):
            if path.parent.name not in ("all", "default", "lo") and path.read_text().strip() == "1":
                path.write_text("2")
        switch.write_text("1")
    except OSError as error:
        _log.warning("cannot enable IPv6 forwarding, networks will not reach outside by IPv6: %s", error)


def is_bridge_filtered() -> bool:
    """Tell whether bridged frames pass the IP packet filter (br_netfilter).

    A published port is then translated inside the bridge, and a container that connects to its own needs its
    bridge port to send frames back.
    """
    try:
        return _BRIDGE_FILTER.read_text().strip() == "1"
    except OSError:
        return False


def is_ipv6_loopback_lost() -> bool:
    """Tell whether answers to a connection from [::1] to a published port get lost.

    With br_netfilter they are translated back to [::1] inside the bridge, and the kernel then drops a frame
    from outside that is addressed to loopback. (IPv4 has route_localnet against that.)
    """
    try:
        return _BRIDGE_FILTER6.read_text().strip() == "1"
    except OSError:
        return False


def _nameservers(path: Path) -> list[str]:
    try:
        servers = parse_resolv_conf(path.read_text()).nameservers
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for server in servers:
        try:
            ip_address(server)
        except ValueError:
            continue
        found.append(server)
    return found


def _write(path: Path, value: str) -> None:
    """Set a kernel parameter. One that this kernel does not have is left out; a refusal is logged."""
    try:
        path.write_text(value)
    except FileNotFoundError:
        _log.debug("no %s in this kernel", path)
    except OSError as error:
        _log.warning("cannot set a kernel parameter: %s", error)

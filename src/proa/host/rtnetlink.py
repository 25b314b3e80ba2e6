# SPDX-License-Identifier: Apache-2.0
"""Links, addresses, routes and bridge ports, by rtnetlink. Knows no container and no network of ours.

The functions build messages; ``RouteSocket`` sends them in the namespace it was opened in, so one socket
serves the host and others (handed out by ``netns``) serve prepared namespaces, without anyone entering them.

A veth's peer is made inside its namespace at once (IFLA_NET_NS_FD within VETH_INFO_PEER): moving it there
later would wait for RCU grace periods, 8 to 20 ms each.

Source: rtnetlink(7); Linux include/uapi/linux/{if_link,if_addr,rtnetlink,neighbour,veth}.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface

from proa.host.netlink import (
    NETLINK_ROUTE,
    NLA_F_NESTED,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    NetlinkSocket,
    attribute,
    nested,
    parse_attributes,
    text,
    u32,
)

IFNAME_MAX = 15  # IFNAMSIZ - 1

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_SETLINK = 19
RTM_NEWADDR = 20
RTM_GETADDR = 22
RTM_NEWROUTE = 24
RTM_GETROUTE = 26
RTM_NEWNEIGH = 28

IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_LINK = 5
IFLA_MASTER = 10
IFLA_PROTINFO = 12
IFLA_LINKINFO = 18
IFLA_IFALIAS = 20
IFLA_NET_NS_FD = 28
IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2
IFLA_BR_FORWARD_DELAY = 1
IFLA_BR_STP_STATE = 5
IFLA_BRPORT_MODE = 4
IFLA_BRPORT_ISOLATED = 33
IFLA_BRPORT_LOCKED = 39  # Linux 5.18; older kernels leave it out of account
VETH_INFO_PEER = 1
IFLA_MACVLAN_MODE = 1
IFLA_IPVLAN_MODE = 1

MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}

IFA_ADDRESS = 1
IFA_LOCAL = 2
IFA_BROADCAST = 4
IFA_F_NODAD = 0x02
RTA_DST = 1
RTA_OIF = 4
RTA_GATEWAY = 5
RTA_PRIORITY = 6
NDA_LLADDR = 2

IFF_UP = 0x1
RT_TABLE_MAIN = 254
RT_TABLE_LOCAL = 255
RTPROT_BOOT = 3
RT_SCOPE_UNIVERSE = 0
RTN_UNICAST = 1
RTN_LOCAL = 2
NUD_NOARP = 0x40  # of a bridge's table: fixed, as "bridge fdb add … static" writes it
NTF_MASTER = 0x4
NTF_STICKY = 0x40  # a frame that arrives elsewhere does not move it; Linux 4.20

_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change mask
_IFADDR = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst len, src len, tos, table, protocol, scope, type, flags
_NDMSG = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A network device. ``master`` is the index of the bridge it belongs to, 0 for none."""

    index: int
    name: str
    kind: str  # bridge, veth, tun…; "" of physical ones
    master: int
    mtu: int
    is_up: bool
    alias: str  # free text; marks whose device it is


@dataclass(frozen=True, slots=True, kw_only=True)
class VethPair:
    """A veth to be made. ``peer`` is the end inside the namespace, ``device`` the host's."""

    device: str
    bridge: int  # index
    peer: str
    peer_mac: str
    namespace: int  # descriptor
    mtu: int


def create_bridge(name: str, *, mac: str, mtu: int) -> Message:
    """A bridge that forwards at once: no spanning tree, no forward delay. A MAC of its own keeps it from
    changing with the ports."""
    body = _link_header() + text(IFLA_IFNAME, name) + attribute(IFLA_ADDRESS, parse_mac(mac))
    info = u32(IFLA_BR_FORWARD_DELAY, 0) + u32(IFLA_BR_STP_STATE, 0)
    body += u32(IFLA_MTU, mtu)
    body += nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "bridge"), nested(IFLA_INFO_DATA, info))
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"create bridge {name}")


def create_veth(pair: VethPair) -> Message:
    """A veth: one end up and a port of the bridge, the other in its namespace and down (the kernel refuses to
    bring an end up whose pair is not complete)."""
    peer = (
        _link_header()
        + text(IFLA_IFNAME, pair.peer)
        + attribute(IFLA_ADDRESS, parse_mac(pair.peer_mac))
        + u32(IFLA_MTU, pair.mtu)
        + u32(IFLA_NET_NS_FD, pair.namespace)
    )
    body = (
        _link_header(flags=IFF_UP)
        + text(IFLA_IFNAME, pair.device)
        + u32(IFLA_MTU, pair.mtu)
        + u32(IFLA_MASTER, pair.bridge)
        + nested(
            IFLA_LINKINFO,
            text(IFLA_INFO_KIND, "veth"),
            nested(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, peer)),
        )
    )
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"create veth {pair.device}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubDevice:
    """A device to be made on a parent, inside a namespace. ``mode``: of MACVLAN_MODES, IPVLAN_MODES."""

    kind: str  # macvlan, ipvlan
    mode: str
    parent: int  # index
    name: str
    mac: str  # of a macvlan; an ipvlan has its parent's
    namespace: int  # descriptor
    mtu: int


def create_sub_device(device: SubDevice) -> Message:
    """A macvlan or ipvlan, born inside its namespace and down."""
    body = _link_header() + text(IFLA_IFNAME, device.name) + u32(IFLA_LINK, device.parent)
    body += u32(IFLA_MTU, device.mtu) + u32(IFLA_NET_NS_FD, device.namespace)
    if device.kind == "macvlan":
        body += attribute(IFLA_ADDRESS, parse_mac(device.mac))
        info = u32(IFLA_MACVLAN_MODE, MACVLAN_MODES[device.mode])
    else:
        info = attribute(IFLA_IPVLAN_MODE, struct.pack("=H", IPVLAN_MODES[device.mode]))
    body += nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, device.kind), nested(IFLA_INFO_DATA, info))
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"create {device.kind} {device.name}")


def set_link(
    index: int,
    *,
    up: bool | None = None,
    master: int | None = None,
    mtu: int | None = None,
    alias: str | None = None,
) -> Message:
    """Change what is given. ``master`` 0 takes the device out of its bridge."""
    body = _link_header(index=index, flags=IFF_UP if up else 0, change=0 if up is None else IFF_UP)
    if master is not None:
        body += u32(IFLA_MASTER, master)
    if mtu is not None:
        body += u32(IFLA_MTU, mtu)
    if alias is not None:
        body += attribute(IFLA_IFALIAS, alias.encode())
    return Message(RTM_NEWLINK, 0, body, f"change link {index}")


def set_port(index: int, *, isolated: bool, hairpin: bool, locked: bool) -> Message:
    """Set how a bridge port forwards: never to another isolated port; back to where a frame came from.

    :param locked: nothing but what comes from a MAC address that has been fixed to this port.
    """
    body = _IFINFO.pack(socket.AF_BRIDGE, 0, index, 0, 0)
    body += nested(
        IFLA_PROTINFO | NLA_F_NESTED,
        attribute(IFLA_BRPORT_MODE, bytes([hairpin])),
        attribute(IFLA_BRPORT_ISOLATED, bytes([isolated])),
        attribute(IFLA_BRPORT_LOCKED, bytes([locked])),
    )
    return Message(RTM_SETLINK, 0, body, f"set up bridge port {index}")


def delete_link(index: int) -> Message:
    """Delete a device. The kernel waits for RCU inside (tens of milliseconds): not on a hot path."""
    return Message(RTM_DELLINK, 0, _link_header(index=index), f"delete link {index}")


def add_address(index: int, address: IPv4Interface | IPv6Interface) -> Message:
    """Give a device an address; an equal one is left as it is. An IPv6 address can be used at once: nobody
    is asked whether he has it."""
    local = address.ip.packed
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    flags = 0 if address.version == 4 else IFA_F_NODAD
    body = (
        _IFADDR.pack(family, address.network.prefixlen, flags, RT_SCOPE_UNIVERSE, index)
        + attribute(IFA_LOCAL, local)
        + attribute(IFA_ADDRESS, local)
    )
    if address.version == 4 and address.network.prefixlen < 31:
        body += attribute(IFA_BROADCAST, address.network.broadcast_address.packed)
    return Message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body, f"add address {address}")


def add_default_route(index: int, gateway: IPv4Address | IPv6Address | None) -> Message:
    """Make the default route lead by a gateway, in place of the one there is; None (IPv4): by the device."""
    header = _default_route(6 if gateway is not None and gateway.version == 6 else 4)
    by = b"" if gateway is None else attribute(RTA_GATEWAY, gateway.packed)
    body = header + by + u32(RTA_OIF, index)
    return Message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, f"add default route by {gateway}")


def _default_route(version: int) -> bytes:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    return _RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0)


def accept_loopback6(index: int) -> Message:
    """Let packets to [::1] come in by a device, once translation has made them so: what route_localnet is to
    IPv4. A packet that arrives with that address is dropped by the kernel before."""
    header = _RTMSG.pack(
        socket.AF_INET6, 128, 0, 0, RT_TABLE_LOCAL, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_LOCAL, 0
    )
    # A metric of its own, behind the kernel's route by the loopback device.
    body = header + attribute(RTA_DST, bytes(15) + b"\1") + u32(RTA_OIF, index)
    body += u32(RTA_PRIORITY, 1_000_000 + index)
    return Message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, f"accept [::1] on device {index}")


def fix_port_of_mac(index: int, mac: str) -> Message:
    """Tell the bridge that this MAC lives behind this port, in place of what it has learned.

    A new container may have the address, hence the MAC, of one that has just gone and whose port the kernel
    has not deleted yet; frames would go there until the new one speaks.
    """
    body = _NDMSG.pack(socket.AF_BRIDGE, index, NUD_NOARP, NTF_MASTER | NTF_STICKY, 0)
    body += attribute(NDA_LLADDR, parse_mac(mac))
    return Message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body, f"place {mac} on port {index}")


class RouteSocket(NetlinkSocket):
    """An rtnetlink socket: sends the messages above, and lists what there is."""

    def __init__(self, *, opened: socket.socket | None = None) -> None:
        super().__init__(NETLINK_ROUTE, opened=opened)

    def links(self) -> list[Link]:
        """List all devices of the namespace."""
        return [
            _parse_link(body) for body in self.dump(Message(RTM_GETLINK, 0, _link_header(), "list links"))
        ]

    def find_link(self, name: str) -> Link | None:
        """Return the device of that name, None when there is none."""
        request = Message(RTM_GETLINK, 0, _link_header() + text(IFLA_IFNAME, name), f"find link {name}")
        try:
            return _parse_link(self.query(request))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise

    def addresses(self) -> list[tuple[int, IPv4Interface]]:
        """List IPv4 addresses with the index of their device."""
        request = Message(RTM_GETADDR, 0, _IFADDR.pack(socket.AF_INET, 0, 0, 0, 0), "list addresses")
        found = []
        for body in self.dump(request):
            _family, prefix, _flags, _scope, index = _IFADDR.unpack_from(body)
            attributes = parse_attributes(body[_IFADDR.size :])
            local = attributes.get(IFA_LOCAL) or attributes.get(IFA_ADDRESS)
            if local is not None:
                found.append((index, IPv4Interface((local, prefix))))
        return found

    def routes(self) -> list[tuple[int, IPv4Network]]:
        """List IPv4 destinations of the main table (the default route is not among them), with the index of
        the device each leaves by, 0 when it has none or several."""
        request = Message(RTM_GETROUTE, 0, _RTMSG.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0), "list routes")
        found = []
        for body in self.dump(request):
            header = _RTMSG.unpack_from(body)
            attributes = parse_attributes(body[_RTMSG.size :])
            if header[4] != RT_TABLE_MAIN or RTA_DST not in attributes:
                continue
            (index,) = struct.unpack("=I", attributes.get(RTA_OIF, bytes(4)))
            found.append((index, IPv4Network((attributes[RTA_DST], header[1]), strict=False)))
        return found


def parse_mac(mac: str) -> bytes:
    """Pack a MAC address written with colons.

    :raises ValueError: it is not six pairs of hex digits.
    """
    packed = bytes(int(part, 16) for part in mac.split(":") if len(part) == 2)
    if len(packed) != 6 or mac.count(":") != 5:
        raise ValueError(f"invalid MAC address {mac}")
    return packed


def overlaps(network: IPv4Network, others: Iterable[IPv4Network]) -> bool:
    """Tell whether the network shares an address with one of the others."""
    return any(network.overlaps(other) for other in others)


def _link_header(*, index: int = 0, flags: int = 0, change: int | None = None) -> bytes:
    return _IFINFO.pack(socket.AF_UNSPEC, 0, index, flags, flags if change is None else change)


def _parse_link(body: bytes) -> Link:
    _family, _type, index, flags, _change = _IFINFO.unpack_from(body)
    attributes = parse_attributes(body[_IFINFO.size :])
    info = parse_attributes(attributes.get(IFLA_LINKINFO, b""))
    return Link(
        index=index,
        name=_string(attributes.get(IFLA_IFNAME)),
        kind=_string(info.get(IFLA_INFO_KIND)),
        master=_number(attributes.get(IFLA_MASTER)),
        mtu=_number(attributes.get(IFLA_MTU)),
        is_up=bool(flags & IFF_UP),
        alias=_string(attributes.get(IFLA_IFALIAS)),
    )


def _string(data: bytes | None) -> str:
    return (data or b"").rstrip(b"\0").decode(errors="replace")


def _number(data: bytes | None) -> int:
    return int(struct.unpack("=I", data)[0]) if data else 0

# SPDX-License-Identifier: Apache-2.0
"""Forget tracked connections, by nfnetlink. Knows no rule and no container.

Address translation is decided by a connection's first packet. A UDP peer that keeps sending keeps its
connection, and with it the decision of a time when a port led elsewhere, or nowhere.

Source: Linux include/uapi/linux/netfilter/nfnetlink{,_conntrack}.h; conntrack(8).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address

from proa.host.netlink import (
    NETLINK_NETFILTER,
    NLA_F_NESTED,
    Message,
    NetlinkSocket,
    attribute,
    parse_attributes,
)

_NFNL_SUBSYS_CTNETLINK = 1
_IPCTNL_MSG_CT_GET = 1
_IPCTNL_MSG_CT_DELETE = 2
_CTA_TUPLE_ORIG = 1
_CTA_ZONE = 18
_CTA_TUPLE_IP = 1
_CTA_TUPLE_PROTO = 2
_CTA_IP_V4_DST = 2
_CTA_IP_V6_DST = 4
_CTA_PROTO_NUM = 1
_CTA_PROTO_DST_PORT = 3

_NFGENMSG = struct.Struct("=BBH")  # family, version, resource id


def forget_udp(targets: Collection[tuple[IPv4Address | IPv6Address, int]]) -> int:
    """Forget the UDP connections that were made to these addresses and ports of the host (an
    unspecified address: any). Reads the whole table of connections: not for the event loop's thread. Returns
    how many.

    :raises OSError: the kernel tracks no connections, or CAP_NET_ADMIN is missing.
    """
    families = {socket.AF_INET if address.version == 4 else socket.AF_INET6 for address, _port in targets}
    return sum(_forget_of(family, targets) for family in families)


def _forget_of(family: int, targets: Collection[tuple[IPv4Address | IPv6Address, int]]) -> int:
    header = _NFGENMSG.pack(family, 0, 0)
    connection = NetlinkSocket(NETLINK_NETFILTER)
    forgotten = 0
    try:
        request = Message(_kind(_IPCTNL_MSG_CT_GET), 0, header, "list connections")
        for body in connection.dump(request):
            attributes = parse_attributes(body[_NFGENMSG.size :])
            original = attributes.get(_CTA_TUPLE_ORIG, b"")
            if not _matches(original, targets):
                continue
            key = attribute(_CTA_TUPLE_ORIG | NLA_F_NESTED, original)
            if _CTA_ZONE in attributes:
                key += attribute(_CTA_ZONE, attributes[_CTA_ZONE])
            try:
                connection.transact(
                    Message(_kind(_IPCTNL_MSG_CT_DELETE), 0, header + key, "forget connection")
                )
                forgotten += 1
            except FileNotFoundError:
                continue  # it ended by itself
    finally:
        connection.close()
    return forgotten


def _matches(packed: bytes, targets: Collection[tuple[IPv4Address | IPv6Address, int]]) -> bool:
    parts = parse_attributes(packed)
    protocol = parse_attributes(parts.get(_CTA_TUPLE_PROTO, b""))
    if protocol.get(_CTA_PROTO_NUM) != bytes([socket.IPPROTO_UDP]):
        return False
    (port,) = struct.unpack("!H", protocol.get(_CTA_PROTO_DST_PORT, bytes(2)))
    addresses = parse_attributes(parts.get(_CTA_TUPLE_IP, b""))
    packed_address = addresses.get(_CTA_IP_V4_DST) or addresses.get(_CTA_IP_V6_DST)
    if packed_address is None:
        return False
    address = ip_address(packed_address)
    unspecified = IPv4Address(0) if address.version == 4 else IPv6Address(0)
    return (unspecified, port) in targets or (address, port) in targets


def _kind(message: int) -> int:
    return _NFNL_SUBSYS_CTNETLINK << 8 | message

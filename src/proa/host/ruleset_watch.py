# SPDX-License-Identifier: Apache-2.0
"""Tells when somebody changes nftables rules, by the kernel's own notifications. Knows no rule of ours.

Changes of set elements in tables of our own are left out: each published port is one.

Source: Linux include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h; netlink(7), NETLINK_ADD_MEMBERSHIP.
"""

from __future__ import annotations

import contextlib
import socket
import struct

import anyio

from proa.host.netlink import NETLINK_NETFILTER, parse_attributes

_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NFNLGRP_NFTABLES = 7
_NFNL_SUBSYS_NFTABLES = 10
_TABLES_CHAINS_RULES = frozenset((0, 2, 3, 5, 6, 8))  # NEW and DEL of each
_ELEMENTS = frozenset((12, 14))
_TABLE_NAME = 1  # the attribute is the same in all of them
_FAMILY_BYTES = 4  # struct nfgenmsg
_HEADER = struct.Struct("=IHHII")
_RECEIVE_BYTES = 256 * 1024


class RulesetWatch:
    """A subscription in the current network namespace. Tables whose names begin with ``own`` are ours.

    :raises OSError: the kernel has no nftables, or CAP_NET_ADMIN is missing.
    """

    def __init__(self, own: str) -> None:
        self._own = own.encode()
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_NETFILTER
        )
        try:
            self._socket.bind((0, 0))  # a socket without a number gets no notifications
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        except OSError:
            self._socket.close()
            raise

    async def changed(self) -> None:
        """Wait until a table, a chain or a rule has come or gone since the last call."""
        while True:
            await anyio.wait_readable(self._socket)
            if self._drain():
                return

    def _drain(self) -> bool:
        found = False
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return found
            except OSError:  # ENOBUFS: so many that some are lost
                found = True
                continue
            found = found or _tells_of_rules(data, self._own)

    def close(self) -> None:
        """End the subscription; nobody may be waiting. Idempotent."""
        with contextlib.suppress(OSError):
            self._socket.close()


def _tells_of_rules(data: bytes, own: bytes) -> bool:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _flags, _sequence, _port = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return False
        if kind >> 8 == _NFNL_SUBSYS_NFTABLES:
            if kind & 0xFF in _TABLES_CHAINS_RULES:
                return True
            body = data[offset + _HEADER.size + _FAMILY_BYTES : offset + length]
            if kind & 0xFF in _ELEMENTS and not parse_attributes(body).get(_TABLE_NAME, b"").startswith(own):
                return True
        offset += (length + 3) & ~3
    return False

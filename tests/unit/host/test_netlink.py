# SPDX-License-Identifier: Apache-2.0
"""Netlink messages, against a fake kernel on a socket pair and against bytes written by iproute2."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Interface

import pytest

from proa.host import netlink, rtnetlink
from proa.host.netlink import Message, NetlinkSocket


class _Pretender(socket.socket):
    """A socket that takes netlink's options."""

    def setsockopt(self, *_arguments: object) -> None:
        return


@pytest.fixture
def kernel() -> Iterator[tuple[NetlinkSocket, socket.socket]]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    opened = NetlinkSocket(0, opened=_Pretender(fileno=near.detach()))
    yield opened, far
    opened.close()
    far.close()


def answer(code: int, sequence: int, said: bytes = b"") -> bytes:
    flags = 0x300 if said else 0x100
    body = struct.pack("=i", -code) + bytes(16)
    body += netlink.attribute(1, said + b"\0") if said else b""
    return struct.pack("=IHHII", 16 + len(body), 2, flags, sequence, 0) + body


def test_attributes_are_padded_and_read_back() -> None:
    packed = netlink.nested(9, netlink.text(3, "ab"), netlink.u32(4, 7))
    assert len(packed) % 4 == 0
    inner = netlink.parse_attributes(netlink.parse_attributes(packed)[9])
    assert inner == {3: b"ab\0", 4: struct.pack("=I", 7)}


def test_damaged_attributes_end_the_list() -> None:
    assert netlink.parse_attributes(b"\x02\x00\x01\x00") == {}
    assert netlink.parse_attributes(b"\x08") == {}


def test_the_first_failure_is_raised_after_all_answers(kernel: tuple[NetlinkSocket, socket.socket]) -> None:
    opened, far = kernel
    far.send(answer(0, 1) + answer(errno.EEXIST, 2, b"File is there"))
    far.send(answer(errno.ENODEV, 3))
    messages = [Message(16, 0, b"abc", f"step {number}") for number in (1, 2, 3)]
    with pytest.raises(OSError, match=r"step 2: File exists \(File is there\)") as raised:
        opened.transact(*messages)
    assert raised.value.errno == errno.EEXIST
    sent = far.recv(4096)
    assert len(sent) == 3 * 20  # header and body, padded
    assert struct.unpack_from("=IHHI", sent) == (19, 16, netlink.NLM_F_REQUEST | netlink.NLM_F_ACK, 1)


def test_a_list_that_changed_meanwhile_is_asked_for_again(
    kernel: tuple[NetlinkSocket, socket.socket],
) -> None:
    opened, far = kernel
    item = struct.pack("=IHHII", 20, 16, 0, 1, 0) + b"old "
    done = struct.pack("=IHHIIi", 20, 3, 0x10, 1, 0, 0)
    far.send(item + done)
    far.send(struct.pack("=IHHII", 20, 16, 0, 2, 0) + b"new " + struct.pack("=IHHIIi", 20, 3, 0, 2, 0, 0))
    assert opened.dump(Message(18, 0, b"", "list")) == [b"new "]


def test_a_veth_is_made_with_its_peer_in_the_namespace() -> None:
    pair = rtnetlink.VethPair(
        device="pv0", bridge=7, peer="eth0", peer_mac="02:42:ac:11:00:02", namespace=5, mtu=1500
    )
    body = rtnetlink.create_veth(pair).body
    outer = netlink.parse_attributes(body[16:])
    assert outer[rtnetlink.IFLA_IFNAME] == b"pv0\0"
    assert outer[rtnetlink.IFLA_MASTER] == struct.pack("=I", 7)
    info = netlink.parse_attributes(outer[rtnetlink.IFLA_LINKINFO])
    assert info[rtnetlink.IFLA_INFO_KIND] == b"veth\0"
    peer = netlink.parse_attributes(
        netlink.parse_attributes(info[rtnetlink.IFLA_INFO_DATA])[rtnetlink.VETH_INFO_PEER][16:]
    )
    assert peer[rtnetlink.IFLA_IFNAME] == b"eth0\0"
    assert peer[rtnetlink.IFLA_NET_NS_FD] == struct.pack("=I", 5)
    assert peer[rtnetlink.IFLA_ADDRESS] == bytes.fromhex("0242ac110002")


def test_an_address_has_its_broadcast() -> None:
    body = rtnetlink.add_address(3, IPv4Interface("10.1.2.3/24")).body
    found = netlink.parse_attributes(body[8:])
    assert found[rtnetlink.IFA_BROADCAST] == bytes([10, 1, 2, 255])
    assert body[:4] == bytes([socket.AF_INET, 24, 0, 0])


@pytest.mark.parametrize(
    "mac", ["", "02:42", "02:42:ac:11:00:0g", "02:42:ac:11:00:02:03", "0:42:ac:11:00:02"]
)
def test_a_bad_mac_is_refused(mac: str) -> None:
    with pytest.raises(ValueError, match=r"invalid"):
        rtnetlink.parse_mac(mac)

# SPDX-License-Identifier: Apache-2.0
"""A resolver's client and a nameserver, as small as tests need them. Source: RFC 1035, section 4."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from tests.support.netns import inside

A, PTR, AAAA = 1, 12, 28
NOERROR, NXDOMAIN, REFUSED = 0, 3, 5


@dataclass(frozen=True)
class Answer:
    """``addresses`` of the A and AAAA records; ``names`` of the PTR records."""

    status: int
    addresses: tuple[str, ...]
    names: tuple[str, ...]


def ask(namespace: int | Path, server: IPv4Address | IPv6Address, name: str, kind: int = A) -> Answer:
    """Ask a nameserver from inside a namespace."""

    def query() -> bytes:
        family = socket.AF_INET if server.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.settimeout(10.0)
            client.sendto(_question(name, kind), (str(server), 53))
            return client.recv(4096)

    return _parse(inside(namespace, query))


@contextlib.contextmanager
def nameserver(namespace: int | Path, address: str, *, known: dict[str, str]) -> Iterator[list[str]]:
    """Serve A records in a namespace; gives the list of names that were asked for."""
    asked: list[str] = []

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((address, 53))
        return made

    server = inside(namespace, make)

    def serve() -> None:
        while True:
            request, peer = server.recvfrom(4096)
            if not request:
                return
            name, end = _name(request, 12)
            asked.append(name)
            (kind,) = struct.unpack_from("!H", request, end)
            found = known.get(name) if kind == A else None
            status = NOERROR if name in known else NXDOMAIN
            header = struct.pack(
                "!HHHHHH", struct.unpack("!H", request[:2])[0], 0x8180 | status, 1, bool(found), 0, 0
            )
            answer = header + request[12 : end + 4]
            if found:
                answer += b"\xc0\x0c" + struct.pack("!HHIH", A, 1, 60, 4) + IPv4Address(found).packed
            server.sendto(answer, peer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield asked
    finally:
        inside(namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", (address, 53)))
        thread.join()
        server.close()


def _question(name: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", 1, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


def _parse(answer: bytes) -> Answer:
    _id, flags, _questions, count, _ns, _additional = struct.unpack_from("!HHHHHH", answer)
    _asked, offset = _name(answer, 12)
    offset += 4
    addresses: list[str] = []
    names: list[str] = []
    for _record in range(count):
        _owner, offset = _name(answer, offset)
        kind, _class, _ttl, length = struct.unpack_from("!HHIH", answer, offset)
        offset += 10
        if kind == A:
            addresses.append(str(IPv4Address(answer[offset : offset + 4])))
        if kind == AAAA:
            addresses.append(str(IPv6Address(answer[offset : offset + 16])))
        if kind == PTR:
            names.append(_name(answer, offset)[0])
        offset += length
    return Answer(status=flags & 15, addresses=tuple(addresses), names=tuple(names))


def _name(message: bytes, offset: int) -> tuple[str, int]:
    labels: list[str] = []
    end = 0
    while length := message[offset]:
        if length & 0xC0:
            end = end or offset + 2
            offset = struct.unpack_from("!H", message, offset)[0] & 0x3FFF
            continue
        labels.append(message[offset + 1 : offset + 1 + length].decode())
        offset += 1 + length
    return ".".join(labels), end or offset + 1

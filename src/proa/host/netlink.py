# SPDX-License-Identifier: Apache-2.0
"""Netlink: building messages, sending them, reading answers. Bytes and sockets; no links or rules.

Messages are packed here by hand instead of by pyroute2, which takes nearly as long to build one as the kernel
to obey it; a container's start needs six (docs/decisions/0005-netlink.md). What the messages mean is in
``rtnetlink`` and ``conntrack``.

    | length u32 | type u16 | flags u16 | sequence u32 | port u32 |  family header  | attribute… |
    attribute: | length u16 | type u16 | payload | padding to 4 bytes |

All numbers are in the byte order of the host. The kernel answers a request inside ``send``, so reading the
answer never waits; a socket stays bound to the network namespace it was made in, whoever uses it later.

Source: netlink(7); Linux include/uapi/linux/netlink.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_DUMP_INTR = 0x10  # what was listed changed while it was
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1
_NLA_TYPE_MASK = 0x3FFF  # without the nested and byte order flags
NLA_F_NESTED = 0x8000

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10  # an error does not repeat the request
_NETLINK_EXT_ACK = 11  # an error says what was wrong, in words

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVE_BYTES = 256 * 1024  # the kernel fills at most 32 KiB per datagram, unless asked for more
_ANSWER_TIMEOUT_S = 5.0  # never reached: the answer is there when send returns; a guard against a hang

Attributes = dict[int, bytes]


def attribute(kind: int, payload: bytes) -> bytes:
    """Pack one attribute, padded to four bytes."""
    length = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + bytes(-length % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Pack attributes inside an attribute."""
    return attribute(kind, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """Pack a string with its final zero."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def parse_attributes(data: bytes) -> Attributes:
    """Split packed attributes; of repeated types the last one stays."""
    found: Attributes = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _NLA_TYPE_MASK] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


@dataclass(frozen=True, slots=True)
class Message:
    """One request: type, flags beyond REQUEST and ACK, and the body (family header and attributes).

    :ivar what: words for the error, such as "create bridge proa0".
    """

    kind: int
    flags: int
    body: bytes
    what: str


class NetlinkSocket:
    """A netlink socket of the namespace it was opened in. Calls block for as long as the kernel works."""

    def __init__(self, family: int, *, opened: socket.socket | None = None) -> None:
        """Open a socket, or take over one that was opened elsewhere (in another namespace)."""
        self._socket = opened or socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family
        )
        self._socket.settimeout(_ANSWER_TIMEOUT_S)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._sequence = 0

    def transact(self, *messages: Message) -> None:
        """Have the kernel carry out the messages in order, all sent at once.

        A failure does not stop the ones after it; the first failure is raised when all have been answered.

        :raises OSError: with the message's ``what`` and the kernel's own words, where it has any.
        """
        pending: dict[int, Message] = {}
        packed = []
        for message in messages:
            self._sequence += 1
            pending[self._sequence] = message
            packed.append(self._pack(message, NLM_F_ACK, self._sequence))
        if packed:
            self._socket.send(b"".join(packed))
        failure: OSError | None = None
        while pending:
            for kind, flags, sequence, body in _split(self._socket.recv(_RECEIVE_BYTES)):
                if kind != _NLMSG_ERROR or sequence not in pending:
                    continue
                message = pending.pop(sequence)
                failure = failure or _error_of(flags, body, message.what)
        if failure is not None:
            raise failure

    def dump(self, message: Message) -> list[bytes]:
        """Return the bodies (family header and attributes) of all objects of a kind.

        :raises OSError: the kernel refuses to list them.
        """
        while True:
            bodies, interrupted = self._dump_once(message)
            if not interrupted:
                return bodies

    def query(self, message: Message) -> bytes:
        """Return the body of the one object asked for.

        :raises OSError: ENODEV, ENOENT: there is none.
        """
        self._sequence += 1
        self._socket.send(self._pack(message, 0, self._sequence))
        while True:
            for kind, flags, sequence, body in _split(self._socket.recv(_RECEIVE_BYTES)):
                if sequence != self._sequence:
                    continue
                error = _error_of(flags, body, message.what) if kind == _NLMSG_ERROR else None
                if error is not None:
                    raise error
                return body

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()

    def _dump_once(self, message: Message) -> tuple[list[bytes], bool]:
        self._sequence += 1
        self._socket.send(self._pack(message, NLM_F_DUMP, self._sequence))
        bodies: list[bytes] = []
        interrupted = False
        while True:
            for kind, flags, sequence, body in _split(self._socket.recv(_RECEIVE_BYTES)):
                if sequence != self._sequence:
                    continue
                interrupted = interrupted or bool(flags & _NLM_F_DUMP_INTR)
                if kind == _NLMSG_DONE:
                    return bodies, interrupted
                if kind == _NLMSG_ERROR:
                    error = _error_of(flags, body, message.what)
                    if error is not None:
                        raise error
                    return bodies, interrupted
                bodies.append(body)

    @staticmethod
    def _pack(message: Message, flags: int, sequence: int) -> bytes:
        length = _HEADER.size + len(message.body)
        header = _HEADER.pack(length, message.kind, message.flags | NLM_F_REQUEST | flags, sequence, 0)
        return header + message.body + bytes(-length % 4)


def _split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield type, flags, sequence and body of each message of a datagram."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _port = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _error_of(flags: int, body: bytes, what: str) -> OSError | None:
    """Translate an answer of type ERROR; None when it says that all went well."""
    code = -struct.unpack_from("=i", body)[0]
    if code == 0:
        return None
    reason = os.strerror(code)
    if flags & _NLM_F_ACK_TLVS and flags & _NLM_F_CAPPED:
        said = parse_attributes(body[4 + _HEADER.size :]).get(_NLMSGERR_ATTR_MSG)
        if said:
            reason = f"{reason} ({said.rstrip(bytes(1)).decode(errors='replace')})"
    return OSError(code, f"{what}: {reason}")

# SPDX-License-Identifier: Apache-2.0
"""DNS messages: reading a question, writing an answer. Pure; every byte read is a stranger's.

    | id u16 | flags u16 | questions u16 | answers u16 | authorities u16 | additionals u16 | question | …
    question: labels (length u8, bytes)…, 0, type u16, class u16

Source: RFC 1035, section 4; RFC 6891 (EDNS); RFC 2308 (no data).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

A, PTR, AAAA, OPT, ANY = 1, 12, 28, 41, 255
CLASS_IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5
PLAIN_BYTES = 512  # of an answer by UDP to a client without EDNS
EDNS_BYTES = 1232  # never more by UDP: it would be cut into fragments
TTL_S = 0  # the next question may have another answer

_HEADER = struct.Struct("!HHHHHH")
_QUESTION = struct.Struct("!HH")
_RECORD = struct.Struct("!HHHIH")  # pointer to the name, type, class, seconds, length
_QR, _AA, _TC, _RD, _RA = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080
_OPCODE = 0x7800
_NAME_AT_QUESTION = 0xC000 | _HEADER.size
_NAME_BYTES = 255

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Question:
    """A question as it came. ``name``: small letters, no final dot; ``limit``: bytes of an answer by UDP."""

    id: int
    flags: int
    name: str
    kind: int
    class_: int
    packed: bytes
    limit: int
    has_edns: bool


def parse_question(data: bytes) -> Question | None:
    """Read a query with one question; None for anything else, which deserves no answer."""
    if len(data) < _HEADER.size:
        return None
    number, flags, questions, _answers, _authorities, additionals = _HEADER.unpack_from(data)
    if flags & _QR or questions != 1:
        return None
    found = _parse_name(data, _HEADER.size)
    if found is None:
        return None
    name, end = found
    if end + _QUESTION.size > len(data):
        return None
    kind, class_ = _QUESTION.unpack_from(data, end)
    end += _QUESTION.size
    limit = _edns_limit(data, end) if additionals else None
    return Question(
        id=number,
        flags=flags,
        name=name,
        kind=kind,
        class_=class_,
        packed=data[_HEADER.size : end],
        limit=PLAIN_BYTES if limit is None else min(max(limit, PLAIN_BYTES), EDNS_BYTES),
        has_edns=limit is not None,
    )


def is_query(question: Question) -> bool:
    """Whether it is an ordinary query, and not a notification or an update."""
    return question.flags & _OPCODE == 0


def answer(
    question: Question,
    status: int = NOERROR,
    *,
    addresses: Sequence[Address] = (),
    names: Sequence[str] = (),
    limit: int | None = None,
) -> bytes:
    """Write an answer of address records, or of names (of a PTR question). One that is longer than ``limit``
    (default: the client's by UDP) says so and is empty: the client asks again by TCP."""
    records = [_record(A if one.version == 4 else AAAA, one.packed) for one in addresses]
    records += [_record(PTR, _pack_name(name)) for name in names]
    flags = _QR | _AA | _RA | (question.flags & (_RD | _OPCODE)) | status
    tail = _edns_record() if question.has_edns else b""
    whole = _message(question, flags, records, tail)
    if len(whole) > (question.limit if limit is None else limit):
        return _message(question, flags | _TC, [], tail)
    return whole


def matches(reply: bytes, number: int, question: Question) -> bool:
    """Whether a nameserver's message answers what was asked under a number."""
    if len(reply) < _HEADER.size + len(question.packed):
        return False
    found, flags, questions, *_rest = _HEADER.unpack_from(reply)
    asked = reply[_HEADER.size : _HEADER.size + len(question.packed)]
    return (
        found == number and bool(flags & _QR) and questions == 1 and asked.lower() == question.packed.lower()
    )


def with_id(data: bytes, number: int) -> bytes:
    """Return the message under another number."""
    return struct.pack("!H", number) + data[2:]


def address_of_pointer(name: str) -> Address | None:
    """Return the address that a name of a reverse zone stands for; None for any other name."""
    labels = name.split(".")
    try:
        if name.endswith(".in-addr.arpa") and len(labels) == 6:
            return IPv4Address(".".join(reversed(labels[:4])))
        if name.endswith(".ip6.arpa") and len(labels) == 34:
            digits = "".join(reversed(labels[:32]))
            return ip_address(bytes.fromhex(digits))
    except ValueError:
        return None
    return None


def _message(question: Question, flags: int, records: Sequence[bytes], tail: bytes) -> bytes:
    header = _HEADER.pack(question.id, flags, 1, len(records), 0, 1 if tail else 0)
    return header + question.packed + b"".join(records) + tail


def _record(kind: int, data: bytes) -> bytes:
    return _RECORD.pack(_NAME_AT_QUESTION, kind, CLASS_IN, TTL_S, len(data)) + data


def _edns_record() -> bytes:
    return struct.pack("!BHHIH", 0, OPT, EDNS_BYTES, 0, 0)


def _pack_name(name: str) -> bytes:
    labels = [label.encode()[:63] for label in name.split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def _parse_name(data: bytes, offset: int) -> tuple[str, int] | None:
    """Read a name without pointers (a question's has none); return it and where it ends."""
    labels: list[str] = []
    start = offset
    while offset < len(data) and offset - start < _NAME_BYTES:
        length = data[offset]
        offset += 1
        if length == 0:
            return ".".join(labels), offset
        if length > 63 or offset + length > len(data):
            return None
        # A dot inside a label, or a byte that is no character, makes a name that nobody has.
        labels.append(data[offset : offset + length].decode("latin-1").lower().replace(".", "\\."))
        offset += length
    return None


def _edns_limit(data: bytes, offset: int) -> int | None:
    """Return what the client takes, if the first additional record says so (its owner is the root)."""
    if offset + 11 <= len(data) and data[offset] == 0:
        kind, size = _QUESTION.unpack_from(data, offset + 1)
        return int(size) if kind == OPT else None
    return None

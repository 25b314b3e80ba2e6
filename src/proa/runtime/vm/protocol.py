# SPDX-License-Identifier: Apache-2.0
"""Frames between the engine and the guest agent, as bytes: what is sent, and what is believed of what comes.

No I/O here. Everything from the guest is hostile input: lengths are bounded before anything is kept, field
types are checked when they are read, and whatever breaks the rules raises ``ProtocolError``, after which the
connection is of no use any more. What the messages mean is in ``messages``, who waits for them in
``channel``.

Source: docs/reference/agent-protocol.md, sections 2, 3 and 7.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass

VERSION = 1
MARKER = bytes.fromhex("f570726f610d0a1a00c19ed47b3a86e0")
NONCE_BYTES = 16
MAX_DATA_BYTES = 65_536  # payload of STDIN, STDOUT, STDERR
MAX_CONTROL_BYTES = 1_048_576  # payload of everything else
# What may come before our nonce: the rest of an earlier connection, as much as device and socket hold.
MAX_STALE_BYTES = 8 * 1024 * 1024

_HEADER = struct.Struct("<IBI")
_FIELD = struct.Struct("<HI")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_CREDIT = struct.Struct("<BI")
UNLIMITED = 2**64 - 1


class ProtocolError(Exception):
    """The guest broke the rules of the protocol."""


class FrameType(enum.IntEnum):
    """Section 3, Frames."""

    HELLO = 0x01
    CONFIGURE = 0x02
    START = 0x03
    EXEC = 0x04
    ATTACH = 0x05
    DETACH = 0x06
    RESIZE = 0x07
    SIGNAL = 0x08
    STATS = 0x09
    PROCESSES = 0x0A
    SYNC = 0x0B
    POWEROFF = 0x0C
    UPDATE = 0x0D
    LIST = 0x0E
    RELEASE = 0x0F
    CLOCK = 0x10
    PREPARE = 0x11
    REHEARSE = 0x12
    FILES = 0x13
    IDENTIFY = 0x14
    NETWORK = 0x16
    WATCH_OOM = 0x18
    FREEZE = 0x20
    STDIN = 0x40
    STDIN_EOF = 0x41
    CREDIT = 0x42
    STDOUT = 0x43
    STDERR = 0x44
    OUT_EOF = 0x45
    OK = 0x80
    ERROR = 0x81
    EXITED = 0xC0
    STDIN_CLOSED = 0xC1
    SYNCED = 0xC2


_FROM_AGENT = frozenset(
    {
        FrameType.CREDIT,
        FrameType.STDOUT,
        FrameType.STDERR,
        FrameType.OUT_EOF,
        FrameType.OK,
        FrameType.ERROR,
        FrameType.EXITED,
        FrameType.STDIN_CLOSED,
        FrameType.SYNCED,
    }
)
_DATA = frozenset({FrameType.STDIN, FrameType.STDOUT, FrameType.STDERR})


class Key(enum.IntEnum):
    """Section 3, Fields."""

    VERSION = 1
    AGENT_VERSION = 2
    KERNEL = 3
    MODULE = 4
    CONFIGURED = 5
    MESSAGE = 6
    CODE = 7
    ERRNO = 8
    OOM = 9
    FINISHED_NS = 10
    PID = 11
    ENTROPY = 20
    WALL_CLOCK_NS = 21
    HOSTNAME = 22
    DOMAINNAME = 23
    INTERFACE = 24
    IF_NAME = 25
    IF_MAC = 26
    IF_MATCH_MAC = 27
    IF_ADDRESS = 28
    IF_GATEWAY = 29
    IF_MTU = 30
    SYSCTL = 31
    NAME = 32
    VALUE = 33
    LAYER = 34
    OFFSET = 35
    LENGTH = 36
    LAYERS_DISK = 37
    WRITABLE_DISK = 38
    TMPFS_SIZE = 39
    SHM_SIZE = 40
    PRIVILEGED = 41
    FILE = 42
    PATH = 43
    CONTENT = 44
    MODE = 45
    IF_EMPTY = 46
    MOUNT = 47
    KIND = 48
    TARGET = 49
    SOURCE = 50
    OPTIONS = 51
    READ_ONLY = 52
    MEMORY_MAX = 53
    PIDS_MAX = 54
    PROCESS = 60
    ARG = 61
    ENV = 62
    CWD = 63
    USER = 64
    GROUP_ADD = 65
    TTY = 66
    ROWS = 67
    COLUMNS = 68
    OPEN_STDIN = 69
    RLIMIT = 70
    RESOURCE = 71
    SOFT = 72
    HARD = 73
    CAPABILITIES = 74
    NO_NEW_PRIVS = 75
    INIT = 76
    MASKED_PATH = 77
    READONLY_PATH = 78
    READ_ONLY_ROOT = 79
    OOM_SCORE_ADJ = 80
    ATTACHED = 81
    CREDIT_STDOUT = 82
    CREDIT_STDERR = 83
    SIGNAL_NUMBER = 84
    RECORD = 85
    STDIN_CREDIT = 86
    STATE = 87
    FLAGS = 88
    CPU_TOTAL_NS = 100
    CPU_USER_NS = 101
    CPU_KERNEL_NS = 102
    SYSTEM_CPU_NS = 103
    ONLINE_CPUS = 104
    MEMORY_USAGE = 105
    MEMORY_LIMIT = 106
    MEMORY_STAT = 107
    COUNT = 108
    PIDS = 109
    PIDS_LIMIT = 110
    READ_BYTES = 111
    WRITE_BYTES = 112
    NETWORK = 113
    RX_BYTES = 114
    RX_PACKETS = 115
    RX_ERRORS = 116
    RX_DROPPED = 117
    TX_BYTES = 118
    TX_PACKETS = 119
    TX_ERRORS = 120
    TX_DROPPED = 121
    READ_AT_NS = 122
    ROW = 130
    ROW_PID = 131
    ROW_PPID = 132
    ROW_UID = 133
    ROW_TTY = 134
    ROW_STATE = 135
    ROW_UTIME_TICKS = 136
    ROW_STIME_TICKS = 137
    ROW_START_NS = 138
    ROW_VSZ = 139
    ROW_RSS = 140
    ROW_COMM = 141
    ROW_CMDLINE = 142
    ROW_NSPID = 143
    ROW_NICE = 144
    ROW_THREADS = 145
    ROW_SESSION = 146
    ROW_PGRP = 147
    ROW_TPGID = 148
    JOIN_SEAT = 200
    CPU_QUOTA_US = 201
    CPU_PERIOD_US = 202
    CPU_WEIGHT = 203
    FRESH = 204


# --- writing ---


def frame(kind: FrameType, number: int, payload: bytes = b"") -> bytes:
    """Return one frame. ``number`` is the request's or the process's id.

    :raises ProtocolError: the payload is too long or holds the marker (see ``split_input`` for data).
    """
    limit = MAX_DATA_BYTES if kind in _DATA else MAX_CONTROL_BYTES
    if len(payload) > limit:
        raise ProtocolError(f"a {kind.name} frame of {len(payload)} bytes is longer than {limit}")
    if MARKER in payload:
        raise ProtocolError(f"a {kind.name} frame may not contain the marker that begins a connection")
    return _HEADER.pack(len(payload), kind, number) + payload


def u32(key: Key, value: int) -> bytes:
    return _FIELD.pack(key, 4) + _U32.pack(value & 0xFFFF_FFFF)


def u64(key: Key, value: int) -> bytes:
    return _FIELD.pack(key, 8) + _U64.pack(value)


def flag(key: Key, value: bool) -> bytes:
    """A flag that is off is not sent."""
    return u32(key, 1) if value else b""


def data(key: Key, value: bytes) -> bytes:
    return _FIELD.pack(key, len(value)) + value


def text(key: Key, value: str) -> bytes:
    """:raises ProtocolError: the text has a NUL or a lone surrogate."""
    try:
        encoded = value.encode()
    except UnicodeEncodeError as error:
        raise ProtocolError(f"{key.name} is not valid Unicode") from error
    if b"\0" in encoded:
        raise ProtocolError(f"{key.name} contains a NUL character")
    return data(key, encoded)


def credit(stream: int, count: int) -> bytes:
    """The payload of a CREDIT frame."""
    return _CREDIT.pack(stream, count)


def split_input(content: bytes) -> Iterator[bytes]:
    """Cut standard input into payloads that fit a frame and do not hold the marker."""
    rest = content
    while rest:
        piece = rest[:MAX_DATA_BYTES]
        at = piece.find(MARKER)
        if at >= 0:
            piece = piece[: at + 1]  # the marker's first byte goes with this piece, the others with the next
        rest = rest[len(piece) :]
        yield piece


# --- reading ---


def plain_text(text: str) -> str:
    """Return a guest's words without what would command a terminal: only lines and tabs stay."""
    return "".join(
        each if each in "\n\t" or each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text
    )


class Fields:
    """The fields of a control frame. Reading one that has another type or length raises ProtocolError."""

    def __init__(self, payload: bytes) -> None:
        self._values: dict[int, list[bytes]] = {}
        position = 0
        while position < len(payload):
            if len(payload) - position < _FIELD.size:
                raise ProtocolError("a field is cut off")
            key, length = _FIELD.unpack_from(payload, position)
            position += _FIELD.size
            if len(payload) - position < length:
                raise ProtocolError(f"field {key} is longer than its frame")
            self._values.setdefault(key, []).append(payload[position : position + length])
            position += length

    def __contains__(self, key: Key) -> bool:
        return key in self._values

    def all_data(self, key: Key) -> list[bytes]:
        """Every value of the key, in order."""
        return self._values.get(key, [])

    def data(self, key: Key) -> bytes:
        values = self._values.get(key)
        return values[-1] if values else b""

    def text(self, key: Key) -> str:
        """The last value as text. Bytes that are not UTF-8 come out as replacement characters."""
        return self.data(key).decode(errors="replace")

    def number(self, key: Key) -> int:
        """The last value as an unsigned number (u32 or u64), 0 when absent."""
        value = self.data(key)
        if not value:
            return 0
        if len(value) == _U32.size:
            return int(_U32.unpack(value)[0])
        if len(value) == _U64.size:
            return int(_U64.unpack(value)[0])
        raise ProtocolError(f"{key.name} has {len(value)} bytes, not those of a number")

    def signed(self, key: Key) -> int:
        """A u32 that is a number in two's complement."""
        value = self.number(key)
        return value - (1 << 32) if value >= 1 << 31 else value

    def groups(self, key: Key) -> list[Fields]:
        """Every value of the key as nested fields."""
        return [Fields(value) for value in self.all_data(key)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A frame from the agent. ``number`` is the request's or the process's id."""

    kind: FrameType
    number: int
    payload: bytes

    def credit(self) -> tuple[int, int]:
        """Stream and bytes of a CREDIT frame."""
        if len(self.payload) != _CREDIT.size:
            raise ProtocolError("a CREDIT frame has the wrong length")
        stream, count = _CREDIT.unpack(self.payload)
        return stream, count


class Decoder:
    """Turns the bytes of one connection into frames.

    :param nonce: what this end sent; all that comes before its echo belongs to an earlier connection.
    """

    def __init__(self, nonce: bytes) -> None:
        self._nonce = nonce
        self._buffer = bytearray()
        self._stale = 0
        self.is_open = False

    def feed(self, received: bytes) -> Iterator[Frame]:
        """Take bytes and yield the frames that are complete now.

        :raises ProtocolError: the rules are broken; nothing more may be fed.
        """
        self._buffer += received
        if not self.is_open and not self._find_nonce():
            return
        while len(self._buffer) >= _HEADER.size:
            length, kind, number = _HEADER.unpack_from(self._buffer)
            if kind not in _FROM_AGENT:
                raise ProtocolError(f"frame of type {kind:#04x}")
            limit = MAX_DATA_BYTES if kind in _DATA else MAX_CONTROL_BYTES
            if length > limit or (kind in _DATA and length == 0):
                raise ProtocolError(f"a {FrameType(kind).name} frame of {length} bytes")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(memoryview(self._buffer)[_HEADER.size : end])
            del self._buffer[:end]
            yield Frame(kind=FrameType(kind), number=number, payload=payload)

    def _find_nonce(self) -> bool:
        at = self._buffer.find(self._nonce)
        if at >= 0:
            del self._buffer[: at + len(self._nonce)]
            self.is_open = True
            return True
        dropped = max(0, len(self._buffer) - len(self._nonce) + 1)
        del self._buffer[:dropped]
        self._stale += dropped
        if self._stale > MAX_STALE_BYTES:
            raise ProtocolError("no answer to the beginning of the connection")
        return False

# SPDX-License-Identifier: Apache-2.0
"""The host's end of the agent protocol, as small as tests need it and independent of the engine's own.

Blocking, one reader. Source: docs/reference/agent-protocol.md.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

MARKER = bytes.fromhex("f570726f610d0a1a00c19ed47b3a86e0")

HELLO, CONFIGURE, START, EXEC, ATTACH, DETACH, RESIZE, SIGNAL = range(1, 9)
STATS, PROCESSES, SYNC, POWEROFF, UPDATE, LIST, RELEASE, CLOCK = range(9, 17)
STDIN, STDIN_EOF, CREDIT, STDOUT, STDERR, OUT_EOF = range(0x40, 0x46)
OK, ERROR = 0x80, 0x81
EXITED, STDIN_CLOSED, SYNCED = 0xC0, 0xC1, 0xC2

VERSION, AGENT_VERSION, KERNEL, MODULE, CONFIGURED, MESSAGE, CODE, ERRNO, OOM, FINISHED_NS, PID = range(1, 12)
ENTROPY, WALL_CLOCK_NS, HOSTNAME, DOMAINNAME, INTERFACE, IF_NAME, IF_MAC = range(20, 27)
IF_MATCH_MAC, IF_ADDRESS, IF_GATEWAY, IF_MTU, SYSCTL, NAME, VALUE = range(27, 34)
LAYER, OFFSET, LENGTH, LAYERS_DISK, WRITABLE_DISK, TMPFS_SIZE, SHM_SIZE = range(34, 41)
PRIVILEGED, FILE, PATH, CONTENT, MODE, IF_EMPTY, MOUNT = range(41, 48)
KIND, TARGET, SOURCE, OPTIONS, READ_ONLY, MEMORY_MAX, PIDS_MAX = range(48, 55)
PROCESS, ARG, ENV, CWD, USER, GROUP_ADD, TTY = range(60, 67)
ROWS, COLUMNS, OPEN_STDIN, RLIMIT, RESOURCE, SOFT, HARD = range(67, 74)
CAPABILITIES, NO_NEW_PRIVS, INIT, MASKED_PATH, READONLY_PATH, READ_ONLY_ROOT, OOM_SCORE_ADJ = range(74, 81)
ATTACHED, CREDIT_STDOUT, CREDIT_STDERR, SIGNAL_NUMBER, RECORD, STDIN_CREDIT, STATE = range(81, 88)
(FLAGS,) = range(88, 89)
CPU_TOTAL_NS, _, _, SYSTEM_CPU_NS, ONLINE_CPUS, MEMORY_USAGE, MEMORY_LIMIT, MEMORY_STAT = range(100, 108)
COUNT, PIDS, PIDS_LIMIT, READ_BYTES, WRITE_BYTES, NETWORK = range(108, 114)
ROW, ROW_PID, ROW_PPID, ROW_UID = range(130, 134)
ROW_COMM, ROW_CMDLINE, ROW_NSPID = 141, 142, 143

Value = int | str | bytes | Sequence["Pair"]
Pair = tuple[int, Value]
_WIDE = {
    *(WALL_CLOCK_NS, OFFSET, LENGTH, TMPFS_SIZE, SHM_SIZE, MEMORY_MAX, PIDS_MAX, SOFT, HARD, CAPABILITIES),
}

DEFAULT_CAPABILITIES = 0x00000000A80425FB  # Docker's fourteen


def encode(fields: Iterable[Pair]) -> bytes:
    out = bytearray()
    for key, value in fields:
        if isinstance(value, int):
            data = struct.pack(
                "<Q" if key in _WIDE else "<I", value & (2**64 - 1 if key in _WIDE else 2**32 - 1)
            )
        elif isinstance(value, str):
            data = value.encode()
        elif isinstance(value, bytes):
            data = value
        else:
            data = encode(value)
        out += struct.pack("<HI", key, len(data)) + data
    return bytes(out)


class Fields:
    """What an answer carries."""

    def __init__(self, data: bytes) -> None:
        self._values: dict[int, list[bytes]] = defaultdict(list)
        at = 0
        while at < len(data):
            key, length = struct.unpack_from("<HI", data, at)
            self._values[key].append(data[at + 6 : at + 6 + length])
            at += 6 + length

    def number(self, key: int) -> int:
        return int.from_bytes(self._values[key][0], "little")

    def text(self, key: int) -> str:
        return self._values[key][0].decode()

    def bytes(self, key: int) -> bytes:
        return self._values[key][0]

    def texts(self, key: int) -> list[str]:
        return [value.decode() for value in self._values[key]]

    def nested(self, key: int) -> list[Fields]:
        return [Fields(value) for value in self._values[key]]

    def has(self, key: int) -> bool:
        return key in self._values


class Refused(Exception):
    """An ERROR answer."""

    def __init__(self, fields: Fields) -> None:
        self.code, self.errno, self.message = fields.number(CODE), fields.number(ERRNO), fields.text(MESSAGE)
        super().__init__(f"{self.message} (code {self.code}, errno {self.errno})")


class Link:
    """One connection to the port proa.control."""

    def __init__(self, path: Path, *, timeout_s: float = 60) -> None:
        self.timeout_s = timeout_s
        self.auto_credit = True  # give back what was read at once
        self.output: dict[tuple[int, int], bytearray] = defaultdict(bytearray)
        self.ended_streams: set[tuple[int, int]] = set()
        self.exits: dict[int, Fields] = {}
        self.synced: set[int] = set()
        self.stdin_credit: dict[int, int] = defaultdict(lambda: 65536)
        self.stdin_closed: set[int] = set()
        self._answers: dict[int, tuple[int, Fields]] = {}
        self._ids = iter(range(1, 1 << 30))
        self._buffer = bytearray()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        self._socket.connect(str(path))
        nonce = os.urandom(16)
        self._socket.sendall(MARKER + nonce)
        self._deadline = time.monotonic() + timeout_s
        while (at := self._buffer.find(nonce)) < 0:
            self._receive()
        del self._buffer[: at + 16]

    def close(self) -> None:
        self._socket.close()

    def _receive(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the agent does not answer")
        self._socket.settimeout(left)
        data = self._socket.recv(1 << 18)
        if not data:
            raise EOFError("QEMU has closed the port")
        self._buffer += data

    def send(self, kind: int, identifier: int, payload: bytes = b"") -> None:
        self._socket.settimeout(self.timeout_s)
        self._socket.sendall(struct.pack("<IBI", len(payload), kind, identifier) + payload)

    def step(self) -> None:
        """Read and book one frame."""
        while len(self._buffer) < 9 or len(self._buffer) < 9 + struct.unpack_from("<I", self._buffer)[0]:
            self._receive()
        length, kind, identifier = struct.unpack_from("<IBI", self._buffer)
        payload = bytes(self._buffer[9 : 9 + length])
        del self._buffer[: 9 + length]
        if kind in (OK, ERROR):
            self._answers[identifier] = (kind, Fields(payload))
        elif kind in (STDOUT, STDERR):
            stream = kind - STDOUT + 1
            self.output[identifier, stream] += payload
            if self.auto_credit:
                self.credit(identifier, stream, length)
        elif kind == OUT_EOF:
            self.ended_streams.add((identifier, payload[0]))
        elif kind == CREDIT:
            self.stdin_credit[identifier] += struct.unpack("<BI", payload)[1]
        elif kind == EXITED:
            self.exits[identifier] = Fields(payload)
        elif kind == STDIN_CLOSED:
            self.stdin_closed.add(identifier)
        elif kind == SYNCED:
            self.synced.add(identifier)
        else:
            raise AssertionError(f"frame of type {kind:#x}")

    def begin(self, kind: int, *fields: Pair) -> int:
        identifier = next(self._ids)
        self.send(kind, identifier, encode(fields))
        return identifier

    def answer(self, identifier: int) -> Fields:
        self._deadline = time.monotonic() + self.timeout_s
        while identifier not in self._answers:
            self.step()
        kind, fields = self._answers.pop(identifier)
        if kind == ERROR:
            raise Refused(fields)
        return fields

    def request(self, kind: int, *fields: Pair) -> Fields:
        return self.answer(self.begin(kind, *fields))

    def credit(self, process: int, stream: int, size: int) -> None:
        self.send(CREDIT, process, struct.pack("<BI", stream, size))

    def feed(self, process: int, data: bytes) -> None:
        """Send input within the credit."""
        self._deadline = time.monotonic() + self.timeout_s
        at = 0
        while at < len(data) and process not in self.stdin_closed:
            if self.stdin_credit[process] == 0:
                self.step()
                continue
            part = data[at : at + min(self.stdin_credit[process], 65536)]
            self.send(STDIN, process, part)
            self.stdin_credit[process] -= len(part)
            at += len(part)

    def wait(self, process: int) -> int:
        """Wait for the exit and the end of both streams; return the code."""
        self._deadline = time.monotonic() + self.timeout_s
        while process not in self.exits or len({s for p, s in self.ended_streams if p == process}) < 2:
            self.step()
        return self.exits[process].number(CODE)

    def wait_exit(self, process: int) -> int:
        self._deadline = time.monotonic() + self.timeout_s
        while process not in self.exits:
            self.step()
        return self.exits[process].number(CODE)

    def wait_output(self, process: int, text: bytes, stream: int = 1) -> None:
        self._deadline = time.monotonic() + self.timeout_s
        while text not in self.output[process, stream]:
            self.step()

    def quiet(self, seconds: float) -> None:
        """Book whatever comes for so long."""
        self._deadline = time.monotonic() + seconds
        try:
            while True:
                self.step()
        except TimeoutError:
            return

# SPDX-License-Identifier: Apache-2.0
"""A guest that speaks the protocol to do harm: raw messages, without a kernel in between."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK, MKNOD, MKDIR, UNLINK = 1, 2, 3, 4, 5, 6, 8, 9, 10
RENAME, OPEN, READ, WRITE, INIT, OPENDIR, CREATE, BATCH_FORGET = 12, 14, 15, 16, 26, 27, 35, 42
ROOT = 1
MAX_MESSAGE = 128 * 1024 + 4096


class Hostile:
    """A connection to a server built with sanitizers."""

    def __init__(self, binary: Path, export: Path) -> None:
        ours, theirs = socket.socketpair()
        self.stream = ours
        self.stream.settimeout(10)
        environment = {"ASAN_OPTIONS": "detect_leaks=0"}
        argv: list[str | Path] = [binary, "--fd", str(theirs.fileno()), "--export-rw", export]
        self.process = subprocess.Popen(
            argv, pass_fds=[theirs.fileno()], env=environment, stderr=subprocess.PIPE
        )
        theirs.close()
        self.unique = 1

    def send(self, opcode: int, node: int, body: bytes, *, uid: int = 0) -> None:
        self.unique += 1
        header = struct.pack("<IIQQIIIHH", 40 + len(body), opcode, self.unique, node, uid, 0, 1, 0, 0)
        self.stream.sendall(header + body)

    def receive(self) -> tuple[int, bytes]:
        """Return errno and body of the next reply."""
        header = self._exactly(16)
        length, error, _ = struct.unpack("<IiQ", header)
        return -error, self._exactly(length - 16)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.stream.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def call(self, opcode: int, node: int, body: bytes = b"", *, uid: int = 0) -> tuple[int, bytes]:
        self.send(opcode, node, body, uid=uid)
        return self.receive()

    def handshake(self) -> int:
        """Do INIT; return the node of the first export."""
        assert self.call(INIT, 0, struct.pack("<IIII", 7, 37, 131072, 0xFFFFFFFF) + bytes(48))[0] == 0
        return self.look_up(ROOT, "0")

    def look_up(self, node: int, name: str) -> int:
        error, body = self.call(LOOKUP, node, name.encode() + b"\0")
        assert error == 0
        (found,) = struct.unpack_from("<Q", body)
        return int(found)

    def end(self) -> int:
        """Hang up; return the exit status. Sanitizer reports would be in it."""
        self.stream.close()
        _, report = self.process.communicate(timeout=20)
        assert b"Sanitizer" not in report and b"runtime error" not in report, report.decode()
        return self.process.returncode


@pytest.fixture
def export(tmp_path: Path) -> Path:
    directory = tmp_path / "export"
    directory.mkdir()
    (tmp_path / "outside").write_text("not yours")
    (directory / "f").write_text("x")
    (directory / "d").mkdir()
    (directory / "up").symlink_to("../outside")
    (directory / "absolute").symlink_to("/etc/passwd")
    return directory


@pytest.fixture
def hostile(binaries: Path, export: Path) -> Iterator[Hostile]:
    guest = Hostile(binaries / "fs-server-checked", export)
    yield guest
    if guest.process.poll() is None:
        guest.end()


@pytest.mark.parametrize("name", [b"..", b".", b"", b"../outside", b"d/..", b"/etc", b"a/b", b"up/x"])
def test_no_name_leaves_the_export(hostile: Hostile, name: bytes) -> None:
    top = hostile.handshake()
    for opcode, front in (
        (LOOKUP, b""),
        (UNLINK, b""),
        (MKDIR, bytes(8)),
        (MKNOD, bytes(16)),
        (CREATE, struct.pack("<IIII", os.O_RDWR, 0o644, 0, 0)),
        (RENAME, struct.pack("<Q", top) + b"f\0"),
    ):
        assert hostile.call(opcode, top, front + name + b"\0")[0] == errno.EINVAL
    assert hostile.call(LOOKUP, ROOT, name + b"\0")[0] in (errno.EINVAL, errno.ENOENT)
    assert hostile.end() == 0


def test_symlinks_are_objects_and_never_followed(hostile: Hostile, tmp_path: Path) -> None:
    top = hostile.handshake()
    for name in ("up", "absolute"):
        link = hostile.look_up(top, name)
        assert hostile.call(OPEN, link, struct.pack("<II", os.O_RDWR, 0))[0] == errno.ENXIO
        assert hostile.call(OPENDIR, link, bytes(8))[0] == errno.ENOTDIR
        assert hostile.call(LOOKUP, link, b"x\0")[0] == errno.ENOTDIR
        create = struct.pack("<IIII", os.O_RDWR | os.O_TRUNC, 0o644, 0, 0)
        assert hostile.call(CREATE, top, create + name.encode() + b"\0")[0] == errno.ELOOP
        size = struct.pack("<II", 1 << 3, 0) + bytes(80)
        assert hostile.call(SETATTR, link, size)[0] == errno.EINVAL
        mode = struct.pack("<II", 1, 0) + bytes(80)
        assert hostile.call(SETATTR, link, mode)[0] in (errno.EOPNOTSUPP, 0)
    assert (tmp_path / "outside").read_text() == "not yours"
    assert (tmp_path / "outside").stat().st_mode & 0o777 == 0o644
    assert hostile.end() == 0


def test_a_replaced_directory_is_not_followed(hostile: Hostile, export: Path) -> None:
    top = hostile.handshake()
    directory = hostile.look_up(top, "d")
    (export / "d").rename(export / "moved")
    (export / "d").symlink_to("/etc")
    assert hostile.call(LOOKUP, directory, b"passwd\0")[0] == errno.ENOENT
    assert hostile.end() == 0


def test_numbers_never_given_out_are_refused(hostile: Hostile) -> None:
    top = hostile.handshake()
    for node in (0, 2, 99, top + 1, top | 1 << 32, 0xFFFFFFFFFFFFFFFF):
        if node != top:
            assert hostile.call(GETATTR, node, bytes(16))[0] == errno.ESTALE
    for handle in (0, 1, 2, 3, 0xFFFFFFFF00000002, 0xFFFFFFFFFFFFFFFF):
        read = struct.pack("<QQIIQII", handle, 0, 4096, 0, 0, 0, 0)
        assert hostile.call(READ, top, read)[0] == errno.EBADF
    file = hostile.look_up(top, "f")
    hostile.send(FORGET, file, struct.pack("<Q", 0xFFFFFFFFFFFFFFFF))
    assert hostile.call(GETATTR, file, bytes(16))[0] == errno.ESTALE
    assert hostile.end() == 0


def test_forgetting_too_much_is_harmless(hostile: Hostile) -> None:
    top = hostile.handshake()
    hostile.send(BATCH_FORGET, 0, struct.pack("<II", 0xFFFFFFFF, 0) + struct.pack("<QQ", top, 9) * 3)
    assert hostile.call(GETATTR, top, bytes(16))[0] == errno.ESTALE
    assert hostile.look_up(ROOT, "0") != top
    assert hostile.end() == 0


@pytest.mark.parametrize("length", [0, 1, 39, MAX_MESSAGE + 1, 0xFFFFFFFF])
def test_impossible_lengths_end_the_session(hostile: Hostile, length: int) -> None:
    hostile.handshake()
    hostile.stream.sendall(struct.pack("<IIQQIIIHH", length, GETATTR, 9, ROOT, 0, 0, 1, 0, 0))
    assert hostile.process.wait(10) == 3


def test_nothing_is_served_before_the_handshake(hostile: Hostile) -> None:
    assert hostile.call(LOOKUP, ROOT, b"0\0")[0] == errno.EPROTO
    assert hostile.call(INIT, 0, b"")[0] == errno.EPROTO
    assert hostile.call(INIT, 0, struct.pack("<IIII", 7, 12, 0, 0))[0] == errno.EPROTO
    assert hostile.end() == 0


def test_an_impossible_owner_is_refused(hostile: Hostile, export: Path) -> None:
    top = hostile.handshake()
    assert hostile.call(MKDIR, top, struct.pack("<II", 0o755, 0) + b"n\0", uid=0xFFFFFFFF)[0] == errno.EPERM
    assert not (export / "n").exists()
    assert hostile.call(MKDIR, top, struct.pack("<II", 0o755, 0) + b"m\0", uid=0xFFFFFFFE)[0] == 0
    assert (export / "m").stat().st_uid == 0xFFFFFFFE
    assert hostile.end() == 0


def test_random_messages_never_crash_it(hostile: Hostile) -> None:
    """Well-framed messages with random operations, nodes and bodies; every reply is read."""
    chance = random.Random(20251123)
    top = hostile.handshake()
    nodes = [ROOT, top, hostile.look_up(top, "f"), hostile.look_up(top, "d"), 0, 0xFFFFFFFFFFFFFFFF]
    words = [0, 1, 2, 3, 255, 4096, 0o644, 0o40755, 1 << 31, (1 << 32) - 1, MAX_MESSAGE]
    names = [
        b"f\0",
        b"d\0",
        b"up\0",
        b"new\0",
        b"..\0",
        b"x" * 255 + b"\0",
        b"x" * 300 + b"\0",
        b"\0",
        b"nonul",
    ]
    silent = {FORGET, BATCH_FORGET, 36}
    for _ in range(8000):
        opcode = chance.choice([*range(53), 4096, 1 << 31])
        if opcode in (26, 38) and chance.random() < 0.95:
            continue
        body = b"".join(struct.pack("<I", chance.choice(words)) for _ in range(chance.randrange(26)))
        if chance.random() < 0.6:
            body += chance.choice(names) + (chance.choice(names) if chance.random() < 0.5 else b"")
        if chance.random() < 0.1:
            body += chance.randbytes(chance.randrange(5000))
        hostile.send(opcode, chance.choice(nodes), body, uid=chance.choice([0, 1000]))
        if opcode not in silent:
            error, reply = hostile.receive()
            if error == 0 and opcode in (LOOKUP, MKDIR, CREATE) and len(reply) >= 8:
                nodes.append(struct.unpack_from("<Q", reply)[0])
        if opcode == INIT or opcode == 38:
            top = hostile.handshake()
            nodes[1] = top
    assert hostile.process.poll() is None
    assert hostile.end() == 0


def test_a_peer_that_leaves_in_the_middle_ends_it(hostile: Hostile) -> None:
    hostile.handshake()
    hostile.stream.sendall(b"\x50\0\0\0")
    assert hostile.end() == 3

# SPDX-License-Identifier: Apache-2.0
"""The agent's pure parts, compiled for the host: frames and fields, users and groups.

The vectors are those of docs/reference/agent-protocol.md, section 7.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MARKER = bytes.fromhex("f570726f610d0a1a00c19ed47b3a86e0")
PARTIAL, WHOLE, BROKEN = range(3)


class Frame(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint8),
        ("id", ctypes.c_uint32),
        ("payload", ctypes.c_void_p),
        ("length", ctypes.c_uint32),
    )


class Fields(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_char_p), ("size", ctypes.c_size_t))


class Buffer(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.POINTER(ctypes.c_uint8)),
        ("start", ctypes.c_size_t),
        ("length", ctypes.c_size_t),
        ("capacity", ctypes.c_size_t),
        ("failed", ctypes.c_bool),
    )


class Identity(ctypes.Structure):
    _fields_ = (
        ("uid", ctypes.c_uint32),
        ("gid", ctypes.c_uint32),
        ("home", ctypes.c_char_p),
        ("groups", ctypes.POINTER(ctypes.c_uint32)),
        ("group_count", ctypes.c_size_t),
    )


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ctypes.CDLL]:
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    library = tmp_path_factory.mktemp("agent") / "pure.so"
    sources = [str(ROOT / "agent" / name) for name in ("frame.c", "user.c")]
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), *sources], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.marker_scan.restype = ctypes.c_size_t
    loaded.frame_begin.restype = ctypes.c_size_t
    loaded.fields_u64.restype = ctypes.c_uint64
    loaded.fields_valid.restype = loaded.identity_resolve.restype = ctypes.c_bool
    yield loaded


def vectors() -> dict[str, bytes]:
    text = (ROOT / "docs/reference/agent-protocol.md").read_text().split("## 7. Vectors")[1]
    return {
        name: bytes.fromhex(data)
        for name, data in re.findall(r"^\| ([^|]+) \| `([0-9a-f ]+)` \|$", text, re.M)
    }


def parse(agent: ctypes.CDLL, data: bytes) -> tuple[int, Frame]:
    frame = Frame()
    return agent.frame_parse(data, ctypes.c_size_t(len(data)), ctypes.byref(frame)), frame


# --- frames ---


def test_the_vectors_are_whole_frames(agent: ctypes.CDLL) -> None:
    assert len(vectors()) == 5
    for name, data in vectors().items():
        status, frame = parse(agent, data)
        assert (status, 9 + frame.length) == (WHOLE, len(data)), name
        assert all(parse(agent, data[:size])[0] == PARTIAL for size in range(len(data)))


def test_hello(agent: ctypes.CDLL) -> None:
    data = vectors()["HELLO, id 7, VERSION 1"]
    status, frame = parse(agent, data)
    assert (status, frame.type, frame.id) == (WHOLE, 1, 7)
    fields = Fields(data[9:], len(data) - 9)
    assert agent.fields_u32(fields, 1, 99) == 1
    assert agent.fields_u32(fields, 2, 99) == 99


def test_an_exit_is_written_as_the_vector(agent: ctypes.CDLL) -> None:
    out = Buffer()
    mark = agent.frame_begin(ctypes.byref(out), 0xC0, 1)
    agent.put_field_u32(ctypes.byref(out), 7, 137)
    agent.put_field_u32(ctypes.byref(out), 9, 1)
    agent.put_field_u64(ctypes.byref(out), 10, ctypes.c_uint64(1))
    agent.frame_end(ctypes.byref(out), ctypes.c_size_t(mark))
    written = bytes(out.data[out.start : out.start + out.length])
    assert written == vectors()["EXITED process 1, CODE 137, OOM 1, FINISHED_NS 1"]
    agent.buffer_free(ctypes.byref(out))


@pytest.mark.parametrize(("kind", "limit"), [(0x40, 65536), (0x02, 1 << 20), (0xFF, 1 << 20)])
def test_frames_have_a_limit(agent: ctypes.CDLL, kind: int, limit: int) -> None:
    assert parse(agent, limit.to_bytes(4, "little") + bytes((kind, 0, 0, 0, 0)))[0] == PARTIAL
    assert parse(agent, (limit + 1).to_bytes(4, "little") + bytes((kind, 0, 0, 0, 0)))[0] == BROKEN


@pytest.mark.parametrize("data", [b"\1", b"\1\0\4\0\0\0abc", b"\1\0\xff\xff\xff\xff"])
def test_malformed_fields(agent: ctypes.CDLL, data: bytes) -> None:
    assert not agent.fields_valid(Fields(data, len(data)))
    assert agent.fields_u32(Fields(data, len(data)), 1, 5) == 5


@pytest.mark.parametrize("before", [b"", b"\xf5", MARKER[:15], MARKER[:9] + b"\xf5p", b"x" * 100])
@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_the_marker_is_found_wherever_it_is_cut(agent: ctypes.CDLL, before: bytes, piece: int) -> None:
    stream, matched, found = before + MARKER + b"rest", ctypes.c_uint(0), []
    for at in range(0, len(stream), piece):
        part = stream[at : at + piece]
        if used := agent.marker_scan(ctypes.byref(matched), part, ctypes.c_size_t(len(part))):
            found.append(at + used)
    assert found == [len(before) + 16]


# --- users ---

PASSWD = b"""# comment
root:x:0:0:root:/root:/bin/sh
broken
app:x:1000:1001:A,B:/home/app:/bin/sh
odd:x:4000000000:0::/:
"""
GROUP = b"root:x:0:\nwheel:x:10:other,root\napp:x:1001:\nextra:x:2000:app\nmany:x:2001:other,app\n"


def resolve(agent: ctypes.CDLL, user: bytes, *add: bytes) -> tuple[int, int, bytes, list[int]] | str:
    identity, message = Identity(), ctypes.create_string_buffer(256)
    groups = (ctypes.c_char_p * (len(add) + 1))(*add, None)
    size = ctypes.c_size_t(len(message))
    if not agent.identity_resolve(user, groups, PASSWD, GROUP, ctypes.byref(identity), message, size):
        return message.value.decode()
    return identity.uid, identity.gid, identity.home, identity.groups[: identity.group_count]


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (b"", (0, 0, b"/root", [0, 10])),
        (b"app", (1000, 1001, b"/home/app", [1001, 2000, 2001])),
        (b"1000", (1000, 1001, b"/home/app", [1001, 2000, 2001])),
        (b"app:wheel", (1000, 10, b"/home/app", [10])),
        (b"app:77", (1000, 77, b"/home/app", [77])),
        (b"77:77", (77, 77, b"/", [77])),
        (b"77", (77, 0, b"/", [0])),
        (b":wheel", (0, 10, b"/root", [10])),
        (b"none", "unable to find user none: no matching entries in passwd file"),
        (b"odd", "unable to find user odd: no matching entries in passwd file"),
        (b"app:none", "unable to find group none: no matching entries in group file"),
        (b"3000000000", "uids and gids must be in range 0-2147483647"),
        (b"1:3000000000", "uids and gids must be in range 0-2147483647"),
    ],
)
def test_users(agent: ctypes.CDLL, user: bytes, expected: object) -> None:
    assert resolve(agent, user) == expected


def test_added_groups(agent: ctypes.CDLL) -> None:
    assert resolve(agent, b"77", b"extra", b"5", b"extra") == (77, 0, b"/", [0, 2000, 5])
    assert resolve(agent, b"77", b"none") == "unable to find group none: no matching entries in group file"

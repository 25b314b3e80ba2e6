# SPDX-License-Identifier: Apache-2.0
"""Headers of disk images, sound and hostile."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.machines.images import HEADER_BYTES, MAX_DISK_BYTES, Header, parse_header
from proa.model.errors import InvalidParameter


def qcow2(
    *,
    version: int = 3,
    backing: tuple[int, int] = (0, 0),
    cluster_bits: int = 16,
    size: int = 1 << 30,
    encryption: int = 0,
    l1_size: int = 2,
    features: int = 0,
) -> bytes:
    head = struct.pack(">4sIQIIQII", b"QFI\xfb", version, *backing, cluster_bits, size, encryption, l1_size)
    head = head.ljust(72, b"\0") + struct.pack(">Q", features)
    return head.ljust(HEADER_BYTES, b"\0")


def test_sound_images() -> None:
    assert parse_header(qcow2()) == Header(format="qcow2", size=1 << 30)
    assert parse_header(qcow2(version=2)) == Header(format="qcow2", size=1 << 30)
    assert parse_header(qcow2(features=1)).format == "qcow2"  # not closed cleanly: qemu-img mends it
    assert parse_header(b"\xeb\x63\x90" + bytes(200)) == Header(format="raw")
    assert parse_header(b"") == Header(format="raw")


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (qcow2(backing=(512, 11)), "backing file"),
        (qcow2(backing=(0, 11)), "backing file"),
        (qcow2(features=4), "another file"),
        (qcow2(features=2), "corrupt"),
        (qcow2(features=1 << 40), "unknown features"),
        (qcow2(version=4), "version 4"),
        (qcow2(cluster_bits=63), "clusters of 2^63"),
        (qcow2(cluster_bits=0), "clusters of 2^0"),
        (qcow2(encryption=1), "encrypted"),
        (qcow2(size=1 << 62), "bytes"),
        (qcow2(size=0), "a disk of 0 bytes"),
        (qcow2(size=MAX_DISK_BYTES + 512), "bytes"),
        (qcow2(l1_size=1 << 31), "table"),
        (qcow2()[:40], "cut off"),
        (qcow2()[:80], "cut off"),
        (b"KDMV" + bytes(200), "VMDK"),
        (b"vhdxfile" + bytes(200), "VHDX"),
    ],
)
def test_what_is_refused(head: bytes, why: str) -> None:
    with pytest.raises(InvalidParameter, match=why.replace("^", r"\^")):
        parse_header(head)


@given(st.binary(max_size=200))
def test_any_bytes_give_an_answer(data: bytes) -> None:
    for head in (data, b"QFI\xfb" + data):
        with contextlib.suppress(InvalidParameter):
            assert parse_header(head).size <= MAX_DISK_BYTES

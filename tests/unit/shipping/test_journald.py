# SPDX-License-Identifier: Apache-2.0
"""The journal's protocol and Docker's fields."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from proa.shipping.journald import Journal, encode, field_name, fields, is_present
from proa.shipping.lines import Line, Source

pytestmark = pytest.mark.anyio

SOURCE = Source(
    container_id="f" * 64,
    container_name="web",
    image_name="busybox",
    tag="web/1",
    extra={"com.example.a-b": "x", "_!": "nothing is left of the name", "priority": "9"},
)


def test_entries() -> None:
    assert encode({"A": "b", "C": b"d\ne"}) == b"A=b\nC\n\x03\0\0\0\0\0\0\0d\ne\n"


def test_names() -> None:
    assert field_name("com.example.a-b") == "COM_EXAMPLE_A_B"
    assert field_name("_!") == ""


def test_fields() -> None:
    line = Line(at_ns=1_795_000_000_123_456_789, text=b"hi", is_error=True, is_partial=True)
    assert fields(line, SOURCE) == {
        "COM_EXAMPLE_A_B": "x",
        "PRIORITY": "3",
        "CONTAINER_ID": "f" * 12,
        "CONTAINER_ID_FULL": "f" * 64,
        "CONTAINER_NAME": "web",
        "CONTAINER_TAG": "web/1",
        "IMAGE_NAME": "busybox",
        "SYSLOG_IDENTIFIER": "web/1",
        "SYSLOG_TIMESTAMP": "2026-11-18T11:06:40.123456789Z",
        "MESSAGE": b"hi",
        "CONTAINER_PARTIAL_MESSAGE": "true",
    }


async def test_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    journal = Journal(SOURCE, path)
    with pytest.raises(OSError, match="journald is not enabled on this host"):
        await journal.open()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        assert is_present(path)
        await journal.open()
        await journal.send([Line(at_ns=0, text=b"one"), Line(at_ns=0, text=b"two")])
        entries = [server.recv(4096), server.recv(4096)]
        assert [entry.splitlines()[-1] for entry in entries] == [b"MESSAGE=one", b"MESSAGE=two"]
    with pytest.raises(OSError):
        await journal.send([Line(at_ns=0, text=b"three")])
    await journal.aclose()

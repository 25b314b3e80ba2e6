# SPDX-License-Identifier: Apache-2.0
"""Sends lines to the journal of systemd, with the fields that Docker sets.

Source: systemd, "Native Journal Protocol"; Docker documentation, "Journald logging driver".
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import anyio
import anyio.to_thread

from proa.shipping.lines import Line, Source

SOCKET = Path("/run/systemd/journal/socket")
TIMEOUT_S = 10.0
_INFO, _ERROR = "6", "3"
_NOT_IN_A_NAME = re.compile(r"[^A-Z0-9]")


def is_present(path: Path = SOCKET) -> bool:
    """Tell whether this host has a journal."""
    return path.is_socket()


def encode(fields: Mapping[str, str | bytes]) -> bytes:
    """Return one entry in the native protocol. Pure."""
    entry = bytearray()
    for name, value in fields.items():
        data = value if isinstance(value, bytes) else value.encode()
        if b"\n" in data:
            entry += name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
        else:
            entry += name.encode() + b"=" + data + b"\n"
    return bytes(entry)


def field_name(text: str) -> str:
    """Return what a label's or variable's name becomes; "" when nothing is left of it. Pure."""
    return _NOT_IN_A_NAME.sub("_", text.upper()).lstrip("_")


def fields(line: Line, source: Source) -> dict[str, str | bytes]:
    """Return the fields of a line. Pure."""
    at = datetime.fromtimestamp(line.at_ns // 1_000_000_000, UTC)
    extra = {field_name(name): value for name, value in source.extra.items()}
    extra.pop("", None)
    found: dict[str, str | bytes] = {
        **extra,
        "PRIORITY": _ERROR if line.is_error else _INFO,
        "CONTAINER_ID": source.container_id[:12],
        "CONTAINER_ID_FULL": source.container_id,
        "CONTAINER_NAME": source.container_name,
        "CONTAINER_TAG": source.tag,
        "IMAGE_NAME": source.image_name,
        "SYSLOG_IDENTIFIER": source.tag,
        "SYSLOG_TIMESTAMP": f"{at:%Y-%m-%dT%H:%M:%S}.{line.at_ns % 1_000_000_000:09d}Z",
        "MESSAGE": line.text,
    }
    if line.is_partial:
        found["CONTAINER_PARTIAL_MESSAGE"] = "true"
    return found


class Journal:
    """A destination."""

    def __init__(self, source: Source, path: Path = SOCKET) -> None:
        self._source = source
        self._path = path
        self._socket: socket.socket | None = None

    async def open(self) -> None:
        await self.aclose()
        if not is_present(self._path):
            raise OSError("journald is not enabled on this host")
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        opened.settimeout(TIMEOUT_S)
        try:
            opened.connect(str(self._path))
        except OSError:
            opened.close()
            raise
        self._socket = opened

    async def send(self, lines: Sequence[Line]) -> None:
        # In a thread: a journal that is behind makes the sender wait.
        await anyio.to_thread.run_sync(self._send, lines, abandon_on_cancel=True)

    def _send(self, lines: Sequence[Line]) -> None:
        if self._socket is None:
            raise OSError("not connected")
        for line in lines:
            self._socket.send(encode(fields(line, self._source)))

    async def aclose(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

# SPDX-License-Identifier: Apache-2.0
"""Listens to what QEMU tells of a machine: why it shuts down, that it was reset, that its disk is full.

A second monitor, because the first serves one client at a time and is opened for every command.

Source: QEMU QMP reference, events SHUTDOWN, RESET, STOP, RESUME, BLOCK_IO_ERROR, GUEST_PANICKED.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec

MAX_LINE_BYTES = 1024 * 1024  # no event comes near it
Event = dict[str, Any]  # Any: JSON
OnEvent = Callable[[str, Event], None]  # name and data


async def watch_events(path: Path, on_event: OnEvent) -> None:
    """Call ``on_event`` for each until QEMU ends. Returns at once when nobody listens."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with contextlib.closing(link), contextlib.suppress(OSError):
        link.connect(os.fspath(path))
        link.sendall(b'{"execute": "qmp_capabilities"}\n')
        link.setblocking(False)
        rest = bytearray()
        while len(rest) <= MAX_LINE_BYTES:
            try:
                data = link.recv(65536)
            except BlockingIOError:
                await anyio.wait_readable(link)
                continue
            if not data:
                return
            rest += data
            while (end := rest.find(b"\n")) >= 0:
                line = bytes(rest[:end])
                del rest[: end + 1]
                _tell(line, on_event)


def _tell(line: bytes, on_event: OnEvent) -> None:
    with contextlib.suppress(msgspec.DecodeError):
        message = msgspec.json.decode(line, type=Event)
        if "event" in message:
            on_event(str(message["event"]), message.get("data") or {})

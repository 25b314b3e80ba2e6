# SPDX-License-Identifier: Apache-2.0
"""Asks other nameservers what nobody here knows: passes messages on and answers back, and reads neither."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from proa.network.files import parse_resolv_conf
from proa.network.resolver.message import Question, matches, with_id

PORT = 53
TRY_S = 2.0  # a server that has not answered by then is left for the next
ROUNDS = 2  # clients give up after five to ten seconds themselves
MAX_SERVERS = 3
_ANSWER_BYTES = 65535


class Upstream:
    """The host's nameservers, as its resolv.conf says at the moment."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._servers: tuple[str, ...] = ()

    def servers(self) -> tuple[str, ...]:
        """Return them; those on loopback too (systemd-resolved), which this program can reach."""
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                self._servers = parse_resolv_conf(self._path.read_text(errors="replace")).nameservers
                self._stamp = stamp
        except OSError:
            self._stamp, self._servers = None, ()
        return self._servers


async def forward(data: bytes, question: Question, servers: Sequence[str], *, by_tcp: bool) -> bytes | None:
    """Return a nameserver's answer to a query, None when none of them gives one."""
    ask = _ask_by_tcp if by_tcp else _ask_by_udp
    for server in list(servers[:MAX_SERVERS]) * ROUNDS:
        # A number, and a port of the kernel's choice, that nobody outside can know.
        number = int.from_bytes(os.urandom(2), "big")
        try:
            async with asyncio.timeout(TRY_S):
                fits = partial(matches, number=number, question=question)
                reply = await ask(server, with_id(data, number), fits)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            continue
        return with_id(reply, question.id)
    return None


async def _ask_by_udp(server: str, data: bytes, fits: Callable[[bytes], bool]) -> bytes:
    loop = asyncio.get_running_loop()
    family, _kind, _protocol, _name, address = _resolve(server)
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as connection:
        connection.connect(address)
        await loop.sock_sendall(connection, data)
        while True:
            reply = await loop.sock_recv(connection, _ANSWER_BYTES)
            if fits(reply):
                return reply


async def _ask_by_tcp(server: str, data: bytes, fits: Callable[[bytes], bool]) -> bytes:
    reader, writer = await asyncio.open_connection(server, PORT)
    try:
        writer.write(len(data).to_bytes(2, "big") + data)
        await writer.drain()
        reply = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
    finally:
        writer.close()
    if not fits(reply):
        raise OSError("the answer is to another question")
    return reply


def _resolve(server: str) -> tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]:
    """Return what a socket needs for a nameserver's address, which may carry a zone (fe80::1%eth0)."""
    try:
        ip_address(server.partition("%")[0])
        found = socket.getaddrinfo(server, PORT, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
    except ValueError as error:
        raise OSError(f"no address: {server}") from error
    return found[0]  # type: ignore[return-value]

# SPDX-License-Identifier: Apache-2.0
"""Which container has which port of the host.

A published port is taken twice over: in this table, against other containers; and by a socket bound to it,
against the programs of the host, which so see that it is in use (and we see theirs). The packet filter
redirects before a packet gets to the socket, so nothing is ever read from it. The sockets go when the daemon
does; the next one binds them again.

Source: moby daemon/libnetwork/portallocator, the wording of its errors.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

from proa.model.errors import Internal, InvalidParameter
from proa.model.network import PublishedPort

_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_DEFAULT_RANGE = (32768, 60999)
_ANY = IPv4Address(0)
_SOCKET_TYPES = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}

_log = logging.getLogger(__name__)


class PortTaken(Internal):
    """A port of the host is not free. (The Engine answers 500 to this, so it is no Conflict.)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    owner: str
    port: PublishedPort
    held: socket.socket | None


def conflicts(one: PublishedPort, other: PublishedPort) -> bool:
    """Tell whether two published ports claim the same port of the same address. Pure."""
    if (one.protocol, one.host_port) != (other.protocol, other.host_port):
        return False
    return one.host_ip == other.host_ip or _ANY in (one.host_ip, other.host_ip)


class PortTable:
    """The claims of all containers, by owner (a container id)."""

    def __init__(self) -> None:
        self._claims: dict[tuple[str, int], list[_Claim]] = {}
        self._next_free: dict[str, int] = {}

    def claim(self, owner: str, ports: Sequence[PublishedPort]) -> tuple[PublishedPort, ...]:
        """Take all of the ports, choosing those with number 0, or none.

        :raises PortTaken: one is taken; the message begins with ``Bind for`` or ``listen``.
        :raises InvalidParameter: the protocol is unknown, or the host does not have the address.
        """
        chosen: list[PublishedPort] = []
        try:
            for port in ports:
                chosen.append(self._claim_one(owner, port))
        except BaseException:
            for port in chosen:
                self._drop(owner, port)
            raise
        return tuple(chosen)

    def restore(self, owner: str, ports: Sequence[PublishedPort]) -> None:
        """Take ports that the owner has had before this daemon, even when a program of the host has taken
        one meanwhile: the packet filter comes before it."""
        for port in ports:
            held = None
            try:
                held = _bind(port)
            except OSError as error:
                _log.warning("published port %d/%s: %s", port.host_port, port.protocol, error.strerror)
            self._add(_Claim(owner=owner, port=port, held=held))

    def release(self, owner: str, ports: Sequence[PublishedPort]) -> None:
        """Give ports back. Idempotent."""
        for port in ports:
            self._drop(owner, port)

    def close(self) -> None:
        """Close all sockets. The claims' rules are not touched."""
        for claims in self._claims.values():
            for claim in claims:
                if claim.held is not None:
                    claim.held.close()
        self._claims.clear()

    def _claim_one(self, owner: str, port: PublishedPort) -> PublishedPort:
        if port.protocol not in (*_SOCKET_TYPES, "sctp"):
            raise InvalidParameter(f"invalid port protocol: {port.protocol}")
        if port.host_port != 0:
            self._check_table(port)
            self._add(_Claim(owner=owner, port=port, held=_bind_or_explain(port)))
            return port
        for number in self._candidates(port.protocol):
            candidate = replace(port, host_port=number)
            if any(conflicts(candidate, claim.port) for claim in self._of(candidate)):
                continue
            try:
                held = _bind(candidate)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                raise _explain(candidate, error) from error
            self._add(_Claim(owner=owner, port=candidate, held=held))
            self._next_free[port.protocol] = number + 1
            return candidate
        raise PortTaken(f"Bind for {port.host_ip}:0 failed: all ports are allocated")

    def _candidates(self, protocol: str) -> Iterator[int]:
        """Yield the host's ephemeral ports, from the one after that given last."""
        first, last = _port_range()
        start = self._next_free.get(protocol, first)
        if not first <= start <= last:
            start = first
        yield from range(start, last + 1)
        yield from range(first, start)

    def _check_table(self, port: PublishedPort) -> None:
        if any(conflicts(port, claim.port) for claim in self._of(port)):
            raise PortTaken(f"Bind for {port.host_ip}:{port.host_port} failed: port is already allocated")

    def _of(self, port: PublishedPort) -> list[_Claim]:
        return self._claims.get((port.protocol, port.host_port), [])

    def _add(self, claim: _Claim) -> None:
        self._claims.setdefault((claim.port.protocol, claim.port.host_port), []).append(claim)

    def _drop(self, owner: str, port: PublishedPort) -> None:
        key = (port.protocol, port.host_port)
        kept = []
        for claim in self._claims.get(key, []):
            if (claim.owner, claim.port) == (owner, port):
                if claim.held is not None:
                    claim.held.close()
            else:
                kept.append(claim)
        if kept:
            self._claims[key] = kept
        else:
            self._claims.pop(key, None)


def _bind(port: PublishedPort) -> socket.socket | None:
    """Bind a socket to the port; None for a protocol that has no sockets here."""
    kind = _SOCKET_TYPES.get(port.protocol)
    if kind is None:
        return None
    with contextlib.ExitStack() as undo:
        held = undo.enter_context(socket.socket(socket.AF_INET, kind))
        if kind == socket.SOCK_STREAM:
            # Connections of an earlier server that linger in TIME_WAIT do not count; listeners do. And we
            # listen, since two sockets with SO_REUSEADDR may share a port as long as none of them does.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((str(port.host_ip), port.host_port))
        if kind == socket.SOCK_STREAM:
            held.listen(0)
        undo.pop_all()
    return held


def _bind_or_explain(port: PublishedPort) -> socket.socket | None:
    try:
        return _bind(port)
    except OSError as error:
        raise _explain(port, error) from error


def _explain(port: PublishedPort, error: OSError) -> PortTaken | InvalidParameter:
    """Word a failed bind as Go's net package does, which Docker's users know."""
    reason = os.strerror(error.errno or 0).lower()
    text = f"listen {port.protocol}4 {port.host_ip}:{port.host_port}: bind: {reason}"
    if error.errno == errno.EADDRNOTAVAIL:
        return InvalidParameter(text)
    return PortTaken(text)


def _port_range() -> tuple[int, int]:
    try:
        first, last = _PORT_RANGE.read_text().split()
    except (OSError, ValueError):
        return _DEFAULT_RANGE
    return int(first), int(last)

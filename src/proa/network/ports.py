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
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from pathlib import Path

from proa.model.errors import Internal, InvalidParameter
from proa.model.network import PublishedPort

_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_DEFAULT_RANGE = (32768, 60999)
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
    if one.host_ip.version != other.host_ip.version:
        return False
    return one.host_ip == other.host_ip or one.host_ip.is_unspecified or other.host_ip.is_unspecified


class PortTable:
    """The claims of all containers, by owner (a container id)."""

    def __init__(self) -> None:
        self._claims: dict[tuple[str, int], list[_Claim]] = {}
        self._next_free: dict[str, int] = {}

    def claim(
        self, owner: str, ports: Sequence[PublishedPort], *, versions: Collection[int] = (4,)
    ) -> tuple[PublishedPort, ...]:
        """Take all of the ports, choosing those with number 0 or a range, or none.

        :param versions: of IP that the owner has. A port on any address is one of each, with
            one number.
        :raises PortTaken: one is taken; the message begins with ``Bind for`` or ``listen``.
        :raises InvalidParameter: the protocol is unknown, or the host does not have the address.
        """
        chosen: list[PublishedPort] = []
        try:
            for port in ports:
                chosen += self._claim_one(owner, port, versions)
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

    def _claim_one(
        self, owner: str, port: PublishedPort, versions: Collection[int]
    ) -> tuple[PublishedPort, ...]:
        if port.protocol not in (*_SOCKET_TYPES, "sctp"):
            raise InvalidParameter(f"invalid port protocol: {port.protocol}")
        plain = replace(port, last_host_port=0, any_address=False)
        twins = [plain]
        if port.any_address and 6 in versions:
            twins.append(replace(plain, host_ip=IPv6Address(0)))
        if port.any_address and 4 not in versions:
            del twins[0]
        if port.host_port != 0 and port.last_host_port <= port.host_port:
            for twin in twins:
                self._check_table(twin)
            return self._hold(owner, twins)
        for number in self._candidates(port):
            candidates = [replace(twin, host_port=number) for twin in twins]
            if any(conflicts(one, claim.port) for one in candidates for claim in self._of(one)):
                continue
            try:
                held = self._hold(owner, candidates)
            except PortTaken:
                continue
            if port.host_port == 0:
                self._next_free[port.protocol] = number + 1
            return held
        numbers = f"{port.host_port}-{port.last_host_port}" if port.host_port else "0"
        raise PortTaken(f"Bind for {port.host_ip}:{numbers} failed: all ports are allocated")

    def _hold(self, owner: str, ports: Sequence[PublishedPort]) -> tuple[PublishedPort, ...]:
        """Bind sockets to all of these ports, or to none. Raises as ``claim``."""
        with contextlib.ExitStack() as undo:
            for port in ports:
                self._add(_Claim(owner=owner, port=port, held=_bind_or_explain(port)))
                undo.callback(self._drop, owner, port)
            undo.pop_all()
        return tuple(ports)

    def _candidates(self, port: PublishedPort) -> Iterator[int]:
        """Yield the ports of a range; without one the host's ephemeral ports, from the one after that given
        last."""
        if port.host_port != 0:
            yield from range(port.host_port, port.last_host_port + 1)
            return
        first, last = _port_range()
        start = self._next_free.get(port.protocol, first)
        if not first <= start <= last:
            start = first
        yield from range(start, last + 1)
        yield from range(first, start)

    def _check_table(self, port: PublishedPort) -> None:
        if any(conflicts(port, claim.port) for claim in self._of(port)):
            raise PortTaken(f"Bind for {_written(port)} failed: port is already allocated")

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
        family = socket.AF_INET if port.host_ip.version == 4 else socket.AF_INET6
        held = undo.enter_context(socket.socket(family, kind))
        if family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
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
    text = f"listen {port.protocol}{port.host_ip.version} {_written(port)}: bind: {reason}"
    if error.errno == errno.EADDRNOTAVAIL:
        return InvalidParameter(text)
    return PortTaken(text)


def _written(port: PublishedPort) -> str:
    host = str(port.host_ip) if port.host_ip.version == 4 else f"[{port.host_ip}]"
    return f"{host}:{port.host_port}"


def _port_range() -> tuple[int, int]:
    try:
        first, last = _PORT_RANGE.read_text().split()
    except (OSError, ValueError):
        return _DEFAULT_RANGE
    return int(first), int(last)

# SPDX-License-Identifier: Apache-2.0
"""Where the daemon listens: unix sockets, TCP with mutual TLS, sockets that systemd hands over.

TCP without TLS is root for whoever can connect, so it is opened on loopback only, and guarded against web
pages (``proa.api.guard``).

Source: dockerd, "Daemon socket option"; sd_listen_fds(3).
"""

from __future__ import annotations

import grp
import ipaddress
import os
import socket
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from proa.api.server import BACKLOG, Listener, open_unix_listener
from proa.model.errors import InvalidParameter, Unavailable

_FIRST_FD = 3  # SD_LISTEN_FDS_START
_PORT, _TLS_PORT = 2375, 2376


def check_host(host: str, *, tls: bool) -> None:
    """Raise InvalidParameter when a host cannot be listened on: as soon as it is read, before anything."""
    scheme, separator, rest = host.partition("://")
    if scheme == "unix" and rest.startswith("/"):
        return
    if scheme == "fd" and separator:
        return
    if scheme == "tcp" and separator:
        address, _ = _tcp_address(host, tls=tls)
        _check_exposure(address, tls=tls)
        return
    raise InvalidParameter(f"cannot listen on {host}: use unix:///path, tcp://ADDRESS:PORT or fd://")


async def open_listeners(host: str, *, group: str, tls: ssl.SSLContext | None) -> list[Listener]:
    """Listen on one ``--host``; only fd:// makes several. Raises InvalidParameter, Unavailable."""
    check_host(host, tls=tls is not None)
    scheme, _, rest = host.partition("://")
    if scheme == "fd":
        return [_secured(inherited, tls) for inherited in _inherited_sockets(rest)]
    if scheme == "tcp":
        return [_secured(_open_tcp(host, tls=tls is not None), tls)]
    try:
        gid: int | None = grp.getgrnam(group).gr_gid
    except KeyError:
        gid = None  # no such group: the socket is root's alone
    return [Listener(socket=await open_unix_listener(Path(rest), mode=0o660, gid=gid))]


def _tcp_address(host: str, *, tls: bool) -> tuple[str, int]:
    """Return address and port. Raises InvalidParameter."""
    try:
        parts = urlsplit(host)
        port = parts.port
    except ValueError as error:
        raise InvalidParameter(f"cannot listen on {host}: {error}") from error
    if parts.path not in ("", "/") or parts.query or parts.username is not None:
        raise InvalidParameter(f"cannot listen on {host}: tcp://ADDRESS:PORT has no more parts")
    name = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname or ""
    try:
        address = ipaddress.ip_address(name)
    except ValueError as error:
        raise InvalidParameter(
            f'cannot listen on {host}: "{name}" is not an address; 0.0.0.0 means all of IPv4, [::] all'
        ) from error
    if port is None:
        port = _TLS_PORT if tls else _PORT
    return str(address), port


def _check_exposure(address: str, *, tls: bool) -> None:
    if not tls and not ipaddress.ip_address(address).is_loopback:
        raise InvalidParameter(
            f"refusing to listen on {address} without TLS: whoever connects would be root on this host; "
            "use --tlsverify with --tlscacert, --tlscert and --tlskey, or listen on 127.0.0.1"
        )


def _open_tcp(host: str, *, tls: bool) -> socket.socket:
    address, port = _tcp_address(host, tls=tls)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise Unavailable(f"cannot listen on {host}: {error.strerror}") from error
    return listening


def _secured(listening: socket.socket, tls: ssl.SSLContext | None) -> Listener:
    """Choose what clients of a socket have to show. Raises InvalidParameter when it stands open to all."""
    if listening.family == socket.AF_UNIX:
        return Listener(socket=listening)
    if tls is None:
        address: str = listening.getsockname()[0]
        _check_exposure(address, tls=False)
    return Listener(socket=listening, tls=tls, guarded=tls is None)


def _inherited_sockets(chosen: str) -> list[socket.socket]:
    """Return the sockets that the service manager passed: all, or the one named or numbered.

    Raises InvalidParameter when there is none.
    """
    count = int(os.environ.get("LISTEN_FDS", "0")) if os.environ.get("LISTEN_PID") == str(os.getpid()) else 0
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found: list[socket.socket] = []
    for index in range(count):
        fd = _FIRST_FD + index
        name = names[index] if index < len(names) else ""
        if chosen in ("", "*", name, str(fd)):
            os.set_inheritable(fd, False)
            inherited = socket.socket(fileno=fd)
            inherited.setblocking(False)
            found.append(inherited)
    if not found:
        raise InvalidParameter(
            f"no socket was passed for fd://{chosen}: start the daemon by a systemd socket unit"
        )
    return found

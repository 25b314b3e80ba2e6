# SPDX-License-Identifier: Apache-2.0
"""Listening sockets and the connections that come in on them.

The protocol of a connection is chosen by its first bytes: HTTP/1.1 today. HTTP/2 in clear text announces
itself with a fixed preface, and is served by adding its connection class to ``_serve_connection`` (decision
0003).

Source: unix(7); RFC 9113, section 3.4 (the preface).
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import TaskStatus

from proa.api.channel import Channel, SocketChannel
from proa.api.connection import IDLE_S, Connection, Dispatch
from proa.api.guard import LoopbackGuard
from proa.api.tls import TlsChannel
from proa.model.errors import InvalidParameter, Unavailable

log = logging.getLogger(__name__)

BACKLOG = 512
MAX_CONNECTIONS = 4096  # of a listener; each costs a descriptor and some KiB; beyond, clients wait
MAX_PATH_BYTES = 107  # sockaddr_un.sun_path, without its final zero
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HTTP2_REFUSAL = b"HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_PLAIN_REFUSAL = (
    b"HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
)

_PASSING = frozenset({errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A listening socket, and what its clients have to show.

    :ivar tls: they speak TLS, with a certificate.
    :ivar guarded: they must not be web pages; see ``proa.api.guard``.
    """

    socket: socket.socket
    tls: ssl.SSLContext | None = None
    guarded: bool = False


async def open_unix_listener(path: Path, *, mode: int = 0o660, gid: int | None = None) -> socket.socket:
    """Listen on a path; a socket file that nobody listens on is replaced.

    The file never exists with a wider mode than asked. Raises Unavailable when another process listens there,
    InvalidParameter when the path is too long or is something else.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise InvalidParameter(f"socket path {path} is longer than {MAX_PATH_BYTES} bytes")
    _remove_stale(path)
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        # Linux gives the file the mode of the unbound socket (less the umask), so there is no moment at
        # which the default mode is visible and no process-wide umask to change.
        os.fchmod(listening.fileno(), mode & 0o600)
        listening.bind(str(path))
        if gid is not None:
            os.chown(path, -1, gid)
        path.chmod(mode)
        listening.listen(BACKLOG)
        return listening
    except BaseException:
        listening.close()
        raise


async def serve(
    dispatch: Dispatch,
    listeners: Sequence[Listener],
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; the listeners are closed then, and connections cut."""
    async with anyio.create_task_group() as group:
        for listener in listeners:
            chosen = LoopbackGuard(dispatch) if listener.guarded else dispatch
            group.start_soon(_accept, listener, chosen)
        task_status.started()


async def _accept(listener: Listener, dispatch: Dispatch) -> None:
    limit = anyio.CapacityLimiter(MAX_CONNECTIONS)  # one each: strangers on a port cannot lock root out
    with listener.socket:
        async with anyio.create_task_group() as connections:
            while True:
                token = object()
                await limit.acquire_on_behalf_of(token)
                try:
                    accepted = await _accept_one(listener.socket)
                except BaseException:
                    limit.release_on_behalf_of(token)
                    raise
                connections.start_soon(_serve_client, accepted, listener.tls, dispatch, limit, token)


async def _accept_one(listener: socket.socket) -> socket.socket:
    """Accept, and outlive what passes: clients that give up, and a lack of descriptors."""
    while True:
        try:
            return listener.accept()[0]
        except BlockingIOError:
            await anyio.wait_readable(listener)
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            log.warning("cannot accept a connection: %s", error)
            await anyio.sleep(0.5)  # the backlog keeps the client; retrying at once would only burn time


async def _serve_client(
    accepted: socket.socket,
    tls: ssl.SSLContext | None,
    dispatch: Dispatch,
    limit: anyio.CapacityLimiter,
    token: object,
) -> None:
    try:
        with SocketChannel(accepted) as channel:
            if accepted.family != socket.AF_UNIX:
                _set_tcp_options(accepted)
            if tls is None:
                await _serve_connection(channel, dispatch)
                return
            if (encrypted := await _agree(channel, tls)) is not None:
                await _serve_connection(encrypted, dispatch)
    except anyio.BrokenResourceError:
        pass
    except Exception:
        log.exception("a connection failed")
    finally:
        limit.release_on_behalf_of(token)


async def _agree(channel: SocketChannel, tls: ssl.SSLContext) -> TlsChannel | None:
    """Return the encrypted channel, None when the client has been refused."""
    encrypted = TlsChannel(channel, tls)
    try:
        await encrypted.handshake()
    except ssl.SSLError as error:
        log.warning("a client of the TLS port was refused: %s", error)
        if error.reason == "HTTP_REQUEST":
            await channel.send(_PLAIN_REFUSAL)
    except TimeoutError:
        log.warning("a client of the TLS port did not speak in time")
    else:
        return encrypted
    return None


async def _serve_connection(channel: Channel, dispatch: Dispatch) -> None:
    first = await _first_bytes(channel)
    if first.startswith(HTTP2_PREFACE):
        await channel.send(_HTTP2_REFUSAL)
    elif first:
        await Connection(channel, dispatch).run(first)


def _set_tcp_options(connected: socket.socket) -> None:
    """Send small answers at once, and notice within two minutes that a silent client has left."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6)


async def _first_bytes(channel: Channel) -> bytes:
    """Read until it is clear whether they are the preface of HTTP/2; b"" when nothing comes."""
    first = b""
    with anyio.move_on_after(IDLE_S):
        while len(first) < len(HTTP2_PREFACE) and HTTP2_PREFACE.startswith(first):
            data = await channel.receive()
            if not data:
                break
            first += data
    return first


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InvalidParameter(f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise Unavailable(f"another process listens on {path}")

# SPDX-License-Identifier: Apache-2.0
"""Sends lines to a syslog server, with Docker's options and in its words.

The standard library's SysLogHandler knows neither TLS nor the three formats, stamps lines with the time of
sending and blocks; a format is one line here, so there is little to take from it.

Source: RFC 3164; RFC 5424, section 6; RFC 5425, section 4.3; Docker documentation, "Syslog logging driver".
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import anyio
from anyio.abc import ByteStream, ConnectedUDPSocket, ConnectedUNIXDatagramSocket

from proa.model.errors import InvalidParameter
from proa.shipping.lines import Line, Source

OPTIONS = frozenset(
    {
        *("syslog-address", "syslog-facility", "syslog-format"),
        *("syslog-tls-ca-cert", "syslog-tls-cert", "syslog-tls-key", "syslog-tls-skip-verify"),
    }
)
LOCAL_SOCKETS = ("/dev/log", "/var/run/syslog", "/var/run/log")
DEFAULT_PORT = 514
TIMEOUT_S = 10.0
_MESSAGE_MAX_BYTES = 60_000  # a UDP datagram's payload is below 65,508 bytes
_INFO, _ERROR = 6, 3  # severities
_FACILITIES = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news"),
    *("uucp", "cron", "authpriv", "ftp"),
)
_NUMBERS = {
    **{name: number for number, name in enumerate(_FACILITIES)},
    **{f"local{number}": 16 + number for number in range(8)},
}
_FORMATS = ("", "rfc3164", "rfc5424", "rfc5424micro")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where and how.

    :ivar scheme: udp, tcp, tcp+tls, unix, unixgram, or "" for the socket of this host.
    :ivar format: "" (short), rfc3164, rfc5424, rfc5424micro.
    """

    scheme: str = ""
    host: str = ""
    port: int = 0
    path: str = ""
    facility: int = 3
    format: str = ""
    ca_cert: str = ""
    cert: str = ""
    key: str = ""
    skip_verify: bool = False


def parse_settings(options: Mapping[str, str]) -> Settings:
    """Read ``--log-opt``. Raises InvalidParameter."""
    scheme, host, port, path = _parse_address(options.get("syslog-address", ""))
    facility = options.get("syslog-facility") or "daemon"
    number = _NUMBERS.get(facility, int(facility) if facility.isascii() and facility.isdigit() else -1)
    if not 0 <= number <= 23:
        raise InvalidParameter(f"invalid syslog facility: {facility}")
    format = options.get("syslog-format", "")
    if format not in _FORMATS:
        raise InvalidParameter(f"Invalid syslog format: {format}")
    cert, key = options.get("syslog-tls-cert", ""), options.get("syslog-tls-key", "")
    if bool(cert) != bool(key):
        raise InvalidParameter("syslog-tls-cert and syslog-tls-key must be given together")
    return Settings(
        scheme=scheme,
        host=host,
        port=port,
        path=path,
        facility=number,
        format=format,
        ca_cert=options.get("syslog-tls-ca-cert", ""),
        cert=cert,
        key=key,
        skip_verify=options.get("syslog-tls-skip-verify", "") not in ("", "0", "false", "False"),
    )


def _parse_address(text: str) -> tuple[str, str, int, str]:
    if not text:
        return "", "", 0, ""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise InvalidParameter(f"invalid syslog-address {text!r}: {error}") from error
    if parts.scheme in ("unix", "unixgram"):
        if not parts.path.startswith("/"):
            raise InvalidParameter(f"invalid syslog-address {text!r}: it has no path")
        return parts.scheme, "", 0, parts.path
    if parts.scheme not in ("udp", "tcp", "tcp+tls"):
        raise InvalidParameter(f"unsupported scheme: '{parts.scheme}'")
    if not parts.hostname:
        raise InvalidParameter(f"invalid syslog-address {text!r}: it has no host")
    return parts.scheme, parts.hostname, port or DEFAULT_PORT, ""


def render(line: Line, source: Source, settings: Settings, *, hostname: str, pid: int) -> bytes:
    """Return one message, without framing. Pure but for the time zone of the host."""
    priority = settings.facility * 8 + (_ERROR if line.is_error else _INFO)
    at = datetime.fromtimestamp(line.at_ns // 1_000_000_000).astimezone()
    if settings.format.startswith("rfc5424"):
        zone = f"{at:%z}"
        zone = f"{zone[:3]}:{zone[3:]}" if zone.strip("+-0") else "Z"
        micro = f".{line.at_ns // 1000 % 1_000_000:06d}" if settings.format == "rfc5424micro" else ""
        stamp = f"{at:%Y-%m-%dT%H:%M:%S}{micro}{zone}"
        head = f"<{priority}>1 {stamp} {hostname} {source.tag} {pid} {source.tag} - "
    else:
        # Not strftime's %b: that is in the language of the host.
        stamp = f"{_MONTHS[at.month - 1]} {at.day:2d} {at:%H:%M:%S}"
        named = f"{hostname} " if settings.format == "rfc3164" else ""
        head = f"<{priority}>{stamp} {named}{source.tag}[{pid}]: "
    return head.encode() + line.text[:_MESSAGE_MAX_BYTES]


class Syslog:
    """A destination. Made per container: the tag is its own."""

    def __init__(self, settings: Settings, source: Source) -> None:
        self._settings = settings
        self._source = source
        self._hostname = socket.gethostname()
        self._datagrams: ConnectedUDPSocket | ConnectedUNIXDatagramSocket | None = None
        self._stream: ByteStream | None = None

    async def open(self) -> None:
        await self.aclose()
        settings = self._settings
        try:
            with anyio.fail_after(TIMEOUT_S):
                if settings.scheme == "udp":
                    self._datagrams = await anyio.create_connected_udp_socket(settings.host, settings.port)
                elif settings.scheme == "tcp":
                    self._stream = await anyio.connect_tcp(settings.host, settings.port)
                elif settings.scheme == "tcp+tls":
                    self._stream = await anyio.connect_tcp(
                        settings.host, settings.port, ssl_context=self._tls(), tls_standard_compatible=False
                    )
                else:
                    await self._open_local()
        except TimeoutError as error:
            raise OSError(f"dial {self._place()}: no connection within {TIMEOUT_S:g} s") from error
        except ssl.SSLError as error:
            raise OSError(f"tls: {error.reason or error}") from error
        except OSError as error:
            raise OSError(f"dial {self._place()}: {_reason(error)}") from error

    async def send(self, lines: Sequence[Line]) -> None:
        messages = [
            render(line, self._source, self._settings, hostname=self._hostname, pid=os.getpid())
            for line in lines
        ]
        try:
            with anyio.fail_after(TIMEOUT_S):
                if self._datagrams is not None:
                    for message in messages:
                        await self._datagrams.send(message + b"\n")
                elif self._stream is not None:
                    await self._stream.send(b"".join(map(self._frame, messages)))
                else:
                    raise OSError("not connected")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise OSError(str(error.__cause__ or "the connection was closed")) from error
        except TimeoutError as error:
            raise OSError(f"nothing was taken within {TIMEOUT_S:g} s") from error

    async def aclose(self) -> None:
        opened, self._datagrams, self._stream = self._datagrams or self._stream, None, None
        if opened is not None:
            with contextlib.suppress(OSError, anyio.BrokenResourceError), anyio.move_on_after(1, shield=True):
                await opened.aclose()

    def _place(self) -> str:
        settings = self._settings
        if settings.host:
            return f"{settings.scheme} {settings.host}:{settings.port}"
        return f"unix {settings.path or LOCAL_SOCKETS[0]}"

    async def _open_local(self) -> None:
        """Connect to a socket of this host, whichever of the two kinds it is."""
        settings = self._settings
        places = [settings.path] if settings.path else [path for path in LOCAL_SOCKETS if Path(path).exists()]
        if not places:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if settings.scheme != "unix":
            try:
                self._datagrams = await anyio.create_connected_unix_datagram_socket(remote_path=places[0])
                return
            except OSError:
                if settings.scheme == "unixgram":
                    raise
        self._stream = await anyio.connect_unix(places[0])

    def _tls(self) -> ssl.SSLContext:
        settings = self._settings
        context = ssl.create_default_context(cafile=settings.ca_cert or None)
        if settings.cert:
            context.load_cert_chain(settings.cert, settings.key)
        if settings.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _frame(self, message: bytes) -> bytes:
        message += b"\n"
        if self._settings.scheme == "tcp+tls" and self._settings.format.startswith("rfc5424"):
            return f"{len(message)} ".encode() + message  # RFC 5425: octets are counted
        return message


def _reason(error: BaseException) -> str:
    """Return what lies behind anyio's "all connection attempts failed"."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, OSError):
        error = cause
    if isinstance(error, OSError) and error.errno and not isinstance(error, socket.gaierror):
        return f"connect: {os.strerror(error.errno).lower()}"  # asyncio puts the address into strerror
    return str(error)

# SPDX-License-Identifier: Apache-2.0
"""A TLS connection as a socket whose two directions end independently, usable by two threads.

``ssl.SSLSocket`` cannot end one direction alone (its ``shutdown`` drops TLS and goes on in clear text), which
is how ``proa exec -i`` says that no input follows. The protocol runs in memory under a lock, and the threads
wait on the socket outside it.

Source: RFC 8446, section 6.1; SSL_shutdown(3ssl).
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import threading

from proa.client.endpoint import TlsFiles
from proa.client.errors import ConnectionFailed

_RECORDS_BYTES = 64 * 1024


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Read the files. Raises OSError (ssl.SSLError is one) when one is missing or is no certificate."""
    for path in (files.ca, files.certificate, files.key):
        if path is not None and not path.is_file():
            raise FileNotFoundError(errno.ENOENT, f"{path} does not exist")
    context = ssl.create_default_context(cafile=files.ca)
    if not files.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if files.certificate is not None:
        context.load_cert_chain(files.certificate, files.key)
    return context


class TlsSocket:
    """The part of socket.socket's interface that the client needs, over a connected socket that it owns."""

    def __init__(self, connected: socket.socket, context: ssl.SSLContext, server_name: str) -> None:
        """Agree with the server. Raises ConnectionFailed when its certificate is not good, OSError."""
        self._socket = connected
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self._protocol = threading.Lock()  # inside self._sending, when both are held
        self._sending = threading.Lock()
        self._server_name = server_name
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            except ssl.SSLError as error:
                raise ConnectionFailed(server_name, _reason(error)) from error
            else:
                break
        self._flush()

    def recv(self, size: int) -> bytes:
        """Return what has come, b"" at the end of the server's direction.

        Raises ConnectionFailed when the server refuses us (TLS 1.3 shows that at the first read), OSError.
        """
        while True:
            with self._protocol:
                try:
                    return self._tls.read(size)
                except ssl.SSLWantReadError:
                    pass
                except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                    return b""
                except ssl.SSLError as error:
                    raise ConnectionFailed(self._server_name, _reason(error)) from error
            self._flush()
            self._fill()

    def sendall(self, data: bytes, flags: int = 0) -> None:
        """Send all of it; ``flags`` are for callers that know a plain socket only. Raises OSError."""
        view = memoryview(data)
        for start in range(0, len(view), _RECORDS_BYTES):
            with self._protocol:
                self._tls.write(view[start : start + _RECORDS_BYTES])
            self._flush()

    def shutdown(self, how: int) -> None:
        """End our direction (SHUT_WR), or cut both (SHUT_RDWR). Raises OSError."""
        with self._protocol, contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        self._flush()
        if how != socket.SHUT_WR:
            self._socket.shutdown(how)

    def settimeout(self, timeout_s: float | None) -> None:
        self._socket.settimeout(timeout_s)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def _fill(self) -> None:
        data = self._socket.recv(_RECORDS_BYTES)
        with self._protocol:
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()

    def _flush(self) -> None:
        """Send what is encrypted, in order."""
        with self._sending:
            with self._protocol:
                data = self._outgoing.read()
            if data:
                self._socket.sendall(data, socket.MSG_NOSIGNAL)


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the daemon's certificate is not good: {error.verify_message}"
    reason = (error.reason or str(error)).lower().replace("_", " ")
    return f"TLS: {reason}"

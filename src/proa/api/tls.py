# SPDX-License-Identifier: Apache-2.0
"""TLS on a channel: both sides show a certificate, and each direction still ends by itself.

The protocol runs in memory (``ssl.MemoryBIO``), this module moves the bytes. An end of input is TLS's own
``close_notify``, which leaves the other direction open: attach and exec need that, and neither asyncio's nor
anyio's TLS streams offer it (both answer a ``close_notify`` by closing).

Source: RFC 8446, section 6.1; SSL_shutdown(3ssl); dockerd, "Protect the Docker daemon socket".
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

import anyio

from proa.api.channel import READ_BYTES, SocketChannel
from proa.model.errors import InvalidParameter

HANDSHAKE_S = 10.0  # two round trips and the client's own arithmetic
_RECORDS_BYTES = 64 * 1024  # encrypted at once; bounds what a slow reader makes us hold


def server_context(*, ca: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a context that demands a certificate which ``ca`` has signed. Raises InvalidParameter."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # a resumed session would have to be checked against the certificate again
    context.set_alpn_protocols(["http/1.1"])
    for path in (ca, certificate, key):
        if not path.is_file():
            raise InvalidParameter(f"could not load TLS material: {path} does not exist")
    try:
        context.load_verify_locations(cafile=ca)
    except (ssl.SSLError, OSError) as error:
        raise InvalidParameter(f"could not read the CA certificate {ca}: {error}") from error
    try:
        # A callback in place of a prompt on the daemon's terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise InvalidParameter(f"could not load the key pair {certificate}, {key}: {error}") from error
    return context


class TlsChannel:
    """A ``proa.api.channel.Channel`` on a socket channel, which its owner closes."""

    def __init__(self, channel: SocketChannel, context: ssl.SSLContext) -> None:
        self._channel = channel
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._unsent = bytearray()
        self._sending = anyio.Lock()
        self._ended = False  # the client has ended its direction, by TLS or by closing

    async def handshake(self) -> None:
        """Agree with the client. Raises ssl.SSLError when it shows no good certificate, TimeoutError."""
        with anyio.fail_after(HANDSHAKE_S):
            while True:
                try:
                    self._tls.do_handshake()
                except ssl.SSLWantReadError:
                    await self._flush()
                    await self._fill()
                except ssl.SSLError:
                    await self._flush()  # the alert that tells the client why
                    raise
                else:
                    await self._flush()
                    return

    async def receive(self) -> bytes:
        while not self._ended:
            try:
                data = self._tls.read(READ_BYTES)
            except ssl.SSLWantReadError:
                try:
                    await self._flush()  # the protocol's own answers, such as a new key
                except anyio.BrokenResourceError:
                    self._ended = True
                    break
                await self._fill()
            except (ssl.SSLZeroReturnError, ssl.SSLError):
                self._ended = True  # broken: as a reset, whoever writes next will see it
            else:
                self._ended = not data
                return data
        return b""

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        for start in range(0, len(view), _RECORDS_BYTES):
            try:
                self._tls.write(view[start : start + _RECORDS_BYTES])
            except ssl.SSLError as error:
                raise anyio.BrokenResourceError from error
            await self._flush()

    async def send_eof(self) -> None:
        with suppress(ssl.SSLError):  # our end is written; that theirs has not come is no failure
            self._tls.unwrap()
        await self._flush()

    def is_gone(self) -> bool:
        """After its ``close_notify`` a client that ends TCP's direction too has left."""
        return self._channel.is_gone() or (self._ended and self._channel.has_ended())

    async def _fill(self) -> None:
        if data := await self._channel.receive():
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        """Send all that is encrypted, in order; what a cancelled call has left goes first the next time."""
        async with self._sending:
            while True:
                self._unsent += self._outgoing.read()
                if not self._unsent:
                    return
                sent = await self._channel.send_some(bytes(self._unsent))
                del self._unsent[:sent]

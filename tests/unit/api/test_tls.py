# SPDX-License-Identifier: Apache-2.0
"""TLS connections: who is let in, and that each direction ends by itself. The client is Python's own TLS."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from proa.api.channel import SocketChannel
from proa.api.tls import TlsChannel, server_context
from proa.client.tls import TlsSocket
from proa.model.errors import InvalidParameter
from tests.support.certificates import make_authority, make_certificate

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("ca", "other-ca"):
        make_authority(folder / name)
    make_certificate(folder / "ca", folder / "server", "server", addresses="DNS:proa.test")
    make_certificate(folder / "ca", folder / "client", "client")
    make_certificate(folder / "other-ca", folder / "stranger", "stranger")
    return folder


def context(folder: Path) -> ssl.SSLContext:
    return server_context(ca=folder / "ca.pem", certificate=folder / "cert.pem", key=folder / "key.pem")


def client_context(certificates: Path, name: str | None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=certificates / "ca" / "ca.pem")
    if name is not None:
        made.load_cert_chain(certificates / name / "cert.pem", certificates / name / "key.pem")
    return made


@dataclass
class Pair:
    """Both ends of one connection."""

    channel: TlsChannel
    client: TlsSocket


@asynccontextmanager
async def connected(certificates: Path, name: str | None = "client") -> AsyncIterator[Pair]:
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    clients: list[TlsSocket] = []

    def connect() -> None:
        clients.append(TlsSocket(ours, client_context(certificates, name), "proa.test"))

    with SocketChannel(theirs) as plain, ours:
        channel = TlsChannel(plain, context(certificates / "server"))
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, connect)
            await channel.handshake()
        yield Pair(channel, clients[0])


async def test_bytes_go_both_ways(certificates: Path) -> None:
    async with connected(certificates) as pair:
        pair.client.sendall(b"question")
        assert await pair.channel.receive() == b"question"
        await pair.channel.send(b"answer")
        assert pair.client.recv(100) == b"answer"


async def test_much_data(certificates: Path) -> None:
    data = bytes(range(256)) * 4096
    got = bytearray()
    async with connected(certificates) as pair:

        def read() -> None:
            while len(got) < len(data):
                got.extend(pair.client.recv(100_000))

        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, read)
            await pair.channel.send(data)
    assert bytes(got) == data


async def test_the_end_of_input_leaves_the_output_open(certificates: Path) -> None:
    async with connected(certificates) as pair:
        pair.client.sendall(b"all")
        pair.client.shutdown(socket.SHUT_WR)
        assert await pair.channel.receive() == b"all"
        assert await pair.channel.receive() == b""
        assert not pair.channel.is_gone()
        await pair.channel.send(b"more")
        assert pair.client.recv(100) == b"more"
        await pair.channel.send_eof()
        assert pair.client.recv(100) == b""


async def test_the_end_of_output_leaves_the_input_open(certificates: Path) -> None:
    async with connected(certificates) as pair:
        await pair.channel.send(b"last")
        await pair.channel.send_eof()
        assert (pair.client.recv(100), pair.client.recv(100)) == (b"last", b"")
        pair.client.sendall(b"still here")
        assert await pair.channel.receive() == b"still here"


@pytest.mark.parametrize("polite", [True, False])
async def test_a_client_that_left_is_missed(certificates: Path, polite: bool) -> None:
    async with connected(certificates) as pair:
        if polite:
            pair.client.shutdown(socket.SHUT_WR)
        pair.client.close()
        assert await pair.channel.receive() == b""
        assert pair.channel.is_gone()
        with pytest.raises(anyio.BrokenResourceError):
            for _ in range(3):
                await pair.channel.send(b"x" * 100_000)


async def test_a_cancelled_send_breaks_nothing(certificates: Path) -> None:
    data = b"x" * 2_000_000
    async with connected(certificates) as pair:
        with anyio.move_on_after(0.01):
            await pair.channel.send(data)  # nobody reads: the socket fills up
        got = bytearray()

        def read() -> None:
            while not got.endswith(b"end"):
                got.extend(pair.client.recv(100_000))

        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, read)
            await pair.channel.send(b"end")
        assert set(got[:-3]) == {ord("x")}


@pytest.mark.parametrize("name", [None, "stranger"])
async def test_who_shows_no_good_certificate_is_refused(certificates: Path, name: str | None) -> None:
    with pytest.raises(ExceptionGroup) as refused:
        async with connected(certificates, name) as pair:
            pair.client.recv(1)
    assert refused.group_contains(ssl.SSLError)


async def test_noise_is_refused(certificates: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, SocketChannel(theirs) as plain:
        ours.sendall(b"\x00" * 100)
        with pytest.raises(ssl.SSLError):
            await TlsChannel(plain, context(certificates / "server")).handshake()


def test_what_is_missing_is_named(certificates: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match=r"nowhere/ca\.pem does not exist"):
        context(tmp_path / "nowhere")
    (tmp_path / "junk").write_text("no certificate")
    server = certificates / "server"
    with pytest.raises(InvalidParameter, match="could not read the CA certificate"):
        server_context(ca=tmp_path / "junk", certificate=server / "cert.pem", key=server / "key.pem")
    with pytest.raises(InvalidParameter, match="could not load the key pair"):
        server_context(
            ca=server / "ca.pem", certificate=server / "cert.pem", key=certificates / "client" / "key.pem"
        )

# SPDX-License-Identifier: Apache-2.0
"""Where the daemon agrees to listen."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path

import pytest

from proa.daemon import listening
from proa.daemon.config import parse_config
from proa.daemon.listening import check_host, open_listeners
from proa.model.errors import InvalidParameter, Unavailable

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "host",
    ["unix:///x", "fd://", "tcp://127.0.0.1:1", "tcp://localhost", "tcp://[::1]:2375", "tcp://127.9.9.9"],
)
def test_without_tls(host: str) -> None:
    check_host(host, tls=False)


@pytest.mark.parametrize("host", ["tcp://0.0.0.0:2376", "tcp://[::]", "tcp://10.0.0.1", "tcp://127.0.0.1"])
def test_with_tls(host: str) -> None:
    check_host(host, tls=True)


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("tcp://0.0.0.0:2375", "refusing to listen on 0.0.0.0 without TLS"),
        ("tcp://[::]", "refusing to listen on :: without TLS"),
        ("tcp://10.0.0.1", "refusing to listen on 10.0.0.1 without TLS"),
        ("tcp://[::ffff:10.0.0.1]", "without TLS"),
        ("tcp://", "is not an address"),
        ("tcp://example.org:2375", '"example.org" is not an address'),
        ("tcp://127.0.0.1:port", "cannot listen on tcp://127.0.0.1:port"),
        ("tcp://127.0.0.1:70000", "cannot listen on tcp://127.0.0.1:70000"),
        ("tcp://127.0.0.1:1/path", "has no more parts"),
        ("unix://relative", "use unix:///path"),
        ("http://127.0.0.1", "use unix:///path"),
        ("", "use unix:///path"),
    ],
)
def test_what_is_refused(host: str, message: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        check_host(host, tls=False)
    assert message in refused.value.message


def test_the_command_line_refuses_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(["--host", "unix:///x", "--host", "tcp://0.0.0.0:2375"])
    assert "refusing to listen on 0.0.0.0 without TLS" in capsys.readouterr().err


def test_any_tls_option_means_all_of_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    tls = parse_config(["--tlscacert", "/etc/ca.pem", "--host", "tcp://0.0.0.0"]).tls
    assert tls is not None
    assert (tls.ca, tls.key) == (Path("/etc/ca.pem"), tmp_path / "key.pem")
    assert parse_config([]).tls is None


async def test_loopback_without_tls_is_guarded() -> None:
    (listener,) = await open_listeners("tcp://127.0.0.1:0", group="", tls=None)
    with listener.socket:
        assert (listener.tls, listener.guarded) == (None, True)
        port = listener.socket.getsockname()[1]
        with pytest.raises(Unavailable, match="Address already in use"):
            await open_listeners(f"tcp://127.0.0.1:{port}", group="", tls=None)


async def test_tls_is_not_guarded() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (listener,) = await open_listeners("tcp://127.0.0.1:0", group="", tls=context)
    with listener.socket:
        assert (listener.tls, listener.guarded) == (context, False)


async def test_inherited_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as tcp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        fd = os.dup(tcp.fileno())
        monkeypatch.setattr(listening, "_FIRST_FD", fd)
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", "1")
        monkeypatch.setenv("LISTEN_FDNAMES", "proa.socket")
        with pytest.raises(InvalidParameter, match="no socket was passed for fd://other"):
            await open_listeners("fd://other", group="", tls=None)
        (listener,) = await open_listeners("fd://proa.socket", group="", tls=None)
        with listener.socket:
            assert listener.guarded
            assert listener.socket.getsockname() == tcp.getsockname()


async def test_no_inherited_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))  # meant for another process
    monkeypatch.setenv("LISTEN_FDS", "1")
    with pytest.raises(InvalidParameter, match="systemd socket unit"):
        await open_listeners("fd://", group="", tls=None)

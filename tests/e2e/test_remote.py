# SPDX-License-Identifier: Apache-2.0
"""The daemon on TCP: with mutual TLS for clients elsewhere, without it for this host's programs alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proa.client.client import Client
from proa.client.endpoint import Endpoint
from proa.client.errors import ApiError
from proa.wire import routes
from proa.wire.system import Info
from tests.support.certificates import make_authority, make_certificate
from tests.support.daemon import DOCKER, PROA, Daemon, purge

TIMEOUT_S = 30.0
NUMBERS = "".join(f"{number}\n" for number in range(50_000))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Remote:
    """A daemon on TCP with TLS, and clients with or without a certificate of its authority."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"tcp://127.0.0.1:{free_port()}"
        make_authority(folder / "ca")
        make_certificate(folder / "ca", folder / "server", "server", addresses="IP:127.0.0.1")
        make_certificate(folder / "ca", folder / "client", "client")
        make_authority(folder / "other-ca")
        make_certificate(folder / "other-ca", folder / "stranger", "stranger")
        (folder / "stranger" / "ca.pem").write_bytes((folder / "ca" / "ca.pem").read_bytes())
        options = ["--host", self.url, "--tlsverify", "--tlscacert", str(folder / "server" / "ca.pem")]
        options += ["--tlscert", str(folder / "server" / "cert.pem")]
        self.daemon = Daemon(options=[*options, "--tlskey", str(folder / "server" / "key.pem")])

    def run(
        self, program: str, *arguments: str, stdin: str = "", who: str = "client", tls: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a client of the TCP port, with the certificates of ``who``."""
        env = {**os.environ, "DOCKER_CERT_PATH": str(self.folder / who), "DOCKER_CONFIG": str(self.folder)}
        env |= {"DOCKER_TLS_VERIFY": "1"} if tls else {}
        env.pop("DOCKER_HOST", None)
        return subprocess.run(
            [program, *arguments], input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S, env=env
        )


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    remote = Remote(tmp_path_factory.mktemp("remote"))
    remote.daemon.start()
    try:
        remote.daemon.load_busybox()
        remote.daemon.docker("run", "-d", "--name", "sleeper", "busybox", "sleep", "600")
        yield remote
    finally:
        remote.daemon.clean()


@pytest.fixture(params=[DOCKER, str(PROA)], ids=["docker", "proa"])
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_run_with_input_and_output(remote: Remote, program: str) -> None:
    done = remote.run(program, "-H", remote.url, "run", "--rm", "-i", "busybox", "cat", stdin=NUMBERS)
    assert (done.returncode, done.stdout) == (0, NUMBERS), done.stderr


def test_exec_ends_with_its_input(remote: Remote, program: str) -> None:
    done = remote.run(program, "-H", remote.url, "exec", "-i", "sleeper", "wc", "-l", stdin=NUMBERS)
    assert (done.returncode, done.stdout.strip()) == (0, "50000"), done.stderr


def test_exit_statuses(remote: Remote, program: str) -> None:
    done = remote.run(program, "-H", remote.url, "run", "--rm", "busybox", "sh", "-c", "echo no >&2; exit 7")
    assert (done.returncode, done.stderr) == (7, "no\n")


def test_certificates_as_options(remote: Remote, program: str) -> None:
    files = remote.folder / "client"
    options = ["--tlsverify", "--tlscacert", str(files / "ca.pem"), "--tlscert", str(files / "cert.pem")]
    options += ["--tlskey", str(files / "key.pem")]
    done = remote.run(program, "-H", remote.url, *options, "ps", "--format", "{{.Names}}", tls=False)
    assert (done.returncode, done.stdout) == (0, "sleeper\n"), done.stderr


def test_a_docker_context(remote: Remote) -> None:
    files = remote.folder / "client"
    endpoint = f"host={remote.url},ca={files}/ca.pem,cert={files}/cert.pem,key={files}/key.pem"
    made = remote.run(DOCKER, "context", "create", "far", "--docker", endpoint, tls=False)
    assert made.returncode == 0, made.stderr
    for program in (DOCKER, str(PROA)):
        done = remote.run(program, "--context", "far", "ps", "-q", "--no-trunc", tls=False)
        assert (done.returncode, len(done.stdout)) == (0, 65), done.stderr
    done = remote.run(str(PROA), "--context", "near", "ps", tls=False)
    assert "no such docker context" in done.stderr


@pytest.mark.parametrize("who", ["stranger", "server/nothing"])
def test_strangers_are_refused(remote: Remote, program: str, who: str) -> None:
    (remote.folder / "server" / "nothing").mkdir(exist_ok=True)
    ca = str(remote.folder / "ca" / "ca.pem")
    done = remote.run(program, "-H", remote.url, "--tlscacert", ca, "ps", who=who)
    assert done.returncode == 1
    assert "certificate" in done.stderr or "unknown ca" in done.stderr


def test_clear_text_is_refused(remote: Remote, program: str) -> None:
    done = remote.run(program, "-H", remote.url, "ps", tls=False)
    assert done.returncode == 1
    assert "Client sent an HTTP request to an HTTPS server" in done.stderr


def test_a_stranger_daemon_is_refused(remote: Remote) -> None:
    other_ca = str(remote.folder / "other-ca" / "ca.pem")
    done = remote.run(str(PROA), "-H", remote.url, "--tlscacert", other_ca, "--tlsverify", "ps")
    assert done.returncode == 1
    assert "the daemon's certificate is not good" in done.stderr


# --- without TLS ---


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a daemon whose one socket, on loopback, was made by another: fd://, as systemd starts it."""
    folder = tmp_path_factory.mktemp("local")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        url = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        script = 'exec 3<&"$1"; shift; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'
        command = [sys.executable, "-m", "proa.daemon", "--host", "fd://"]
        command += ["--data-root", str(folder / "d"), "--exec-root", str(folder / "x")]
        fd = listening.fileno()
        process = subprocess.Popen(["bash", "-c", script, "sh", str(fd), *command], pass_fds=[fd])
    try:
        yield url
    finally:
        process.terminate()
        process.wait(30)
        purge(folder / "d", folder / "x")


def test_a_socket_of_systemd(local: str) -> None:
    with Client(local) as client:
        assert client.call(routes.INFO, returns=Info).os_type == "linux"
    done = subprocess.run(
        [DOCKER, "-H", local, "version"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_web_page_is_refused(local: str) -> None:
    _, _, port = local.rpartition(":")
    for page in (
        f"Host: evil.example:{port}",
        f"Host: 127.0.0.1:{port}\r\nOrigin: http://evil.example",
        f"Host: localhost:{port}\r\nSec-Fetch-Site: cross-site",
    ):
        with socket.create_connection(("127.0.0.1", int(port)), TIMEOUT_S) as browser:
            browser.sendall(
                f"POST /containers/create HTTP/1.1\r\n{page}\r\nConnection: close\r\n\r\n".encode()
            )
            answer = b"".join(iter(lambda: browser.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 403 "), answer


def test_our_client_names_the_host_it_calls(local: str) -> None:
    _, _, port = local.rpartition(":")
    with Client(Endpoint(host=f"tcp://localhost:{port}")) as client, pytest.raises(ApiError) as refused:
        client.do(routes.CONTAINER_START, id="nobody")
    assert refused.value.status == 404


def test_an_open_port_is_not_opened(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "proa.daemon", "--host", "tcp://0.0.0.0:0", "--data-root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 2
    assert "refusing to listen on 0.0.0.0 without TLS" in done.stderr
    assert list(tmp_path.iterdir()) == []

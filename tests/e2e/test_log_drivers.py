# SPDX-License-Identifier: Apache-2.0
"""Log drivers that ship lines, with servers on this machine."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from proa.shipping import journald
from tests.support.daemon import Daemon

PATIENCE_S = 60.0
COUNT = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done"


class Server:
    """Collects what is sent to a socket, line by line."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._stopped = False
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._serve)
        listening.settimeout(0.2)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stopped:
            try:
                if self._listening.type == socket.SOCK_DGRAM:
                    self.lines += self._listening.recv(65536).decode().splitlines()
                    continue
                connection, _ = self._listening.accept()
            except TimeoutError:
                continue
            connection.settimeout(0.2)
            with connection:
                self._read(connection)

    def _read(self, connection: socket.socket) -> None:
        rest = ""
        while not self._stopped:
            try:
                data = connection.recv(65536)
            except TimeoutError:
                continue
            if not data:
                return
            *lines, rest = (rest + data.decode()).split("\n")
            self.lines += lines

    def wait_for(self, text: str) -> list[str]:
        deadline = time.monotonic() + PATIENCE_S
        while not any(text in line for line in self.lines):
            assert time.monotonic() < deadline, f"{text!r} did not come: {self.lines[-5:]}"
            time.sleep(0.02)
        return list(self.lines)

    def stop(self) -> None:
        self._stopped = True
        self._thread.join()
        self._listening.close()


@contextmanager
def serving(kind: str, folder: Path, port: int = 0) -> Iterator[tuple[Server, str]]:
    """A server, and its syslog-address."""
    stream = socket.SOCK_STREAM if kind in ("tcp", "unix") else socket.SOCK_DGRAM
    listening = socket.socket(socket.AF_INET if kind in ("tcp", "udp") else socket.AF_UNIX, stream)
    if kind in ("tcp", "udp"):
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        address = f"{kind}://127.0.0.1:{listening.getsockname()[1]}"
    else:
        listening.bind(str(folder / "socket"))
        address = f"{kind}://{folder / 'socket'}"
    if stream == socket.SOCK_STREAM:
        listening.listen()
    server = Server(listening)
    try:
        yield server, address
    finally:
        server.stop()


@pytest.mark.parametrize("kind", ["tcp", "udp", "unix", "unixgram"])
def test_syslog(daemon: Daemon, name: str, kind: str, tmp_path: Path) -> None:
    with serving(kind, tmp_path) as (server, address):
        daemon.docker("run", "--rm", "--name", name, "--log-driver", "syslog", "--log-opt",
                      f"syslog-address={address}", "--log-opt", "tag={{.ImageName}}/{{.Name}}",
                      "--log-opt", "syslog-facility=local0", "--log-opt", "syslog-format=rfc5424micro",
                      "busybox", "sh", "-c", "echo out; echo err >&2; echo end")  # fmt: skip
        lines = server.wait_for("- end")
    (out,) = (line for line in lines if line.endswith("- out"))
    assert out.startswith("<134>1 20")
    assert f" busybox/{name} " in out
    (err,) = (line for line in lines if line.endswith("- err"))
    assert err.startswith("<131>1 20")


def test_nothing_is_left_out(daemon: Daemon, name: str, hull: str, tmp_path: Path) -> None:
    """The daemon is killed, the server goes away and comes back."""
    with serving("tcp", tmp_path) as (server, address):
        daemon.docker("run", "-d", "--name", name, "--isolation", hull, "--log-driver", "syslog",
                      "--log-opt", f"syslog-address={address}", "busybox", "sh", "-c", COUNT)  # fmt: skip
        lines = server.wait_for("]: 3")
    daemon.stop(signal.SIGKILL)
    time.sleep(1)
    daemon.start()
    with serving("tcp", tmp_path, int(address.rpartition(":")[2])) as (server, _):
        seen = daemon.docker("logs", "--tail", "1", name).out.strip()
        lines += server.wait_for(f"]: {seen}")
        daemon.docker("rm", "-f", name)
    numbers = [int(line.rpartition(" ")[2]) for line in lines]
    assert sorted(set(numbers))[: int(seen) + 1] == list(range(int(seen) + 1))
    assert len(numbers) < 2 * len(set(numbers)), "all was sent twice"


def test_a_server_that_is_not_there(daemon: Daemon, name: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        done = daemon.docker("run", "--name", name, "--log-driver", "syslog", "--log-opt",
                             f"syslog-address={address}", "busybox", "true", check=False)  # fmt: skip
    assert done.status == 125
    assert "failed to initialize logging driver" in done.err
    assert "refused" in done.err
    assert daemon.docker("inspect", "-f", "{{.State.Status}}", name).out == "created\n"


def test_words(daemon: Daemon, name: str) -> None:
    for options, sentence in (
        (("--log-opt", "colour=red"), "unknown log opt 'colour' for syslog log driver"),
        (("--log-opt", "syslog-address=ftp://x"), "unsupported scheme: 'ftp'"),
        (("--log-opt", "syslog-facility=x"), "invalid syslog facility: x"),
    ):
        command = ("create", "--name", name, "--log-driver", "syslog", *options, "busybox")
        done = daemon.docker(*command, check=False)
        assert (done.status, sentence in done.err) == (1, True), done.err
    assert "syslog" in daemon.docker("info", "-f", "{{.Plugins.Log}}").out


@pytest.mark.skipif(journald.is_present(), reason="this host's own journal would get the lines")
def test_journald(daemon: Daemon, name: str) -> None:
    run = ("run", "--rm", "--name", name, "--log-driver", "journald", "busybox", "echo", "hi")
    done = daemon.docker(*run, check=False)
    assert (done.status, "journald is not enabled on this host" in done.err) == (125, True), done.err
    made = [
        parent for parent in (journald.SOCKET.parent, journald.SOCKET.parent.parent) if not parent.exists()
    ]
    journald.SOCKET.parent.mkdir(parents=True, exist_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(str(journald.SOCKET))
    server = Server(listening)
    try:
        assert "journald" in daemon.docker("info", "-f", "{{.Plugins.Log}}").out
        assert daemon.docker(*run).out == "hi\n"
        lines = server.wait_for("MESSAGE=hi")
    finally:
        server.stop()
        journald.SOCKET.unlink()
        for parent in made:
            parent.rmdir()
    assert f"CONTAINER_NAME={name}" in lines
    assert "PRIORITY=6" in lines

# SPDX-License-Identifier: Apache-2.0
"""Bad input: the status and the sentence that a docker user knows, and nothing is left behind."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.daemon import DOCKER, LIB, Daemon

pytestmark = pytest.mark.usefixtures("unchanged")


class Raw(http.client.HTTPConnection):
    """HTTP on the daemon's socket."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__("proa", timeout=30)
        self._path = str(daemon.socket)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self._path)


def call(
    daemon: Daemon, method: str, path: str, body: bytes | str | None = None, kind: str = "application/json"
) -> tuple[int, str]:
    """Return the status and the message (or the body) of one request."""
    raw = Raw(daemon)
    raw.request(method, path, body, {"Content-Type": kind} if body is not None else {})
    response = raw.getresponse()
    text = response.read().decode()
    raw.close()
    try:
        return response.status, str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return response.status, text


@contextmanager
def listening() -> Iterator[int]:
    """A port of the host that is taken."""
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        yield taken.getsockname()[1]


class TestRun:
    """docker run ends with 125 when the daemon is at fault, before anything has run."""

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["localhost:1/nope"], 'Get "https://localhost:1/v2/": dial tcp localhost:1:'),
            (["Nope"], "must be lowercase"),
            (
                ["--name", "a b", "busybox"],
                "Invalid container name (a b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed",
            ),
            (["-m", "1m", "busybox"], "Minimum memory limit allowed is 6MB"),
            (["--cpus", "999", "busybox"], "range of CPUs is from 0.01 to"),
            (["--cpuset-cpus", "999", "busybox"], "Requested CPUs are not available"),
            (["-v", "/a:/", "busybox"], "invalid specification: destination can't be '/'"),
            (["-v", "a:b", "busybox"], "mount path must be absolute"),
            (["-v", "!:/b", "busybox"], "includes invalid characters for a local volume name"),
            (
                ["--mount", "type=bind,src=/no/where,dst=/x", "busybox"],
                'invalid mount config for type "bind": bind source path does not exist: /no/where',
            ),
            (["-v", "/etc:/x", "--tmpfs", "/x", "busybox"], "Duplicate mount point: /x"),
            (["--network", "nope", "busybox"], "network nope not found"),
            (["--network", "container:nope", "busybox"], "No such container: nope"),
            (["--runtime", "nope", "busybox"], "unknown or invalid runtime name: nope"),
            (["--isolation", "hyperv", "busybox"], 'invalid isolation: "hyperv"'),
            (["--ip", "1.2.3", "busybox"], "invalid IP"),
            (["-w", "relative", "busybox"], "working directory 'relative' is invalid"),
            (["--log-driver", "nope", "busybox"], "no log driver named 'nope' is registered"),
            (["--stop-signal", "NOPE", "busybox"], "invalid signal: NOPE"),
            (["--volumes-from", "nope", "busybox"], "No such container: nope"),
            (["--cap-add", "NOPE", "busybox"], 'invalid CapAdd: unknown capability: "CAP_NOPE"'),
            (["--ulimit", "nope=1", "busybox"], "invalid ulimit type: nope"),
            (["--security-opt", "nope=1", "busybox"], "invalid --security-opt"),
        ],
    )
    def test_refused(self, daemon: Daemon, arguments: list[str], sentence: str) -> None:
        result = daemon.docker("run", "--rm", *arguments, "true", check=False)
        assert (result.status, result.out) == (125, ""), result.err
        assert sentence in result.err

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["--pid", "host"], "HostConfig.PidMode is not supported with runtime vm"),
            (["--network", "host"], "NetworkMode host is not supported with runtime vm"),
            (["--device", "/dev/null"], "HostConfig.Devices is not supported with runtime vm"),
            (["--runtime", "crun"], "conflicting options: isolation vm and runtime crun"),
        ],
    )
    def test_what_a_vm_cannot_do(self, daemon: Daemon, arguments: list[str], sentence: str) -> None:
        result = daemon.docker("run", "--rm", "--isolation", "vm", *arguments, "busybox", check=False)
        assert (result.status, result.out) == (125, "")
        assert sentence in result.err

    @pytest.mark.parametrize(("program", "status"), [("nope", 127), ("/etc/passwd", 126), ("/etc", 126)])
    def test_a_program_that_cannot_run(self, daemon: Daemon, hull: str, program: str, status: int) -> None:
        result = daemon.docker("run", "--rm", "--isolation", hull, "busybox", program, check=False)
        assert (result.status, result.out) == (status, "")
        assert program in result.err

    def test_an_unknown_user(self, daemon: Daemon, hull: str) -> None:
        result = daemon.docker(
            "run", "--rm", "--isolation", hull, "-u", "nobody-i-know", "busybox", "true", check=False
        )
        assert result.status != 0
        assert "nobody-i-know" in result.err

    def test_a_second_one_of_the_name(self, daemon: Daemon, name: str) -> None:
        first = daemon.docker("create", "--name", name, "busybox").out.strip()
        result = daemon.docker("run", "--name", name, "-v", "/data", "busybox", "true", check=False)
        assert result.status == 125
        assert (
            f'Conflict. The container name "/{name}" is already in use by container "{first}". '
            "You have to remove (or rename) that container to be able to reuse that name." in result.err
        )
        daemon.docker("rm", name)

    def test_a_port_of_another_container(self, daemon: Daemon, hull: str, name: str) -> None:
        daemon.docker("run", "-d", "--name", name, "-p", "127.0.0.1::80", "busybox", "sleep", "600")
        port = daemon.docker("port", name, "80").out.strip().rpartition(":")[2]
        result = daemon.docker(
            "run", "--rm", "--isolation", hull, "-p", f"127.0.0.1:{port}:80", "busybox", "true", check=False
        )
        assert result.status == 125
        assert f"Bind for 127.0.0.1:{port} failed: port is already allocated" in result.err
        daemon.docker("rm", "-f", name)

    def test_a_port_of_the_host(self, daemon: Daemon, hull: str) -> None:
        with listening() as port:
            result = daemon.docker(
                "run", "--rm", "--isolation", hull, "-p", f"{port}:80", "busybox", "true", check=False
            )
        assert result.status == 125
        assert "address already in use" in result.err or "port is already allocated" in result.err


class TestObjects:
    def test_that_are_not_there(self, daemon: Daemon) -> None:
        for command, sentence in (
            (["start", "nope"], "No such container: nope"),
            (["stop", "nope"], "No such container: nope"),
            (["kill", "nope"], "No such container: nope"),
            (["rm", "nope"], "No such container: nope"),
            (["logs", "nope"], "No such container: nope"),
            (["exec", "nope", "true"], "No such container: nope"),
            (["rmi", "nope"], "No such image: nope"),
            (["save", "nope"], "No such image: nope"),
            (["tag", "nope", "b"], "No such image: nope"),
            (["volume", "rm", "nope"], "get nope: no such volume"),
            (["network", "rm", "nope"], "network nope not found"),
        ):
            result = daemon.docker(*command, check=False)
            assert result.status == 1, command
            assert sentence in result.err, command
        result = daemon.docker("inspect", "nope", check=False)
        assert (result.status, result.err) == (1, "Error: No such object: nope\n")

    def test_that_are_in_use(self, daemon: Daemon, name: str) -> None:
        daemon.docker("network", "create", name)
        daemon.docker(
            "run", "-d", "--name", name, "--network", name, "-v", f"{name}:/d", "busybox", "sleep", "600"
        )
        for command, sentence in (
            (["rm", name], f'cannot remove container "/{name}": container is running'),
            (["volume", "rm", name], f"remove {name}: volume is in use"),
            (["network", "rm", name], "has active endpoints"),
            (["rmi", "busybox"], "conflict: unable to remove repository reference"),
            (["rename", name, "a b"], "Invalid container name (a b)"),
            (["kill", "-s", "NOPE", name], "invalid signal: NOPE"),
            (["update", "-m", "1m", name], "Minimum memory limit allowed is 6MB"),
            (["exec", "-w", "relative", name, "true"], "must be an absolute path"),
            (["unpause", name], "is not paused"),
            (["top", name, "--nope"], "ps"),
        ):
            result = daemon.docker(*command, check=False)
            assert result.status == 1, (command, result)
            assert sentence in result.err, (command, result)
        daemon.docker("rm", "-f", name)
        daemon.docker("volume", "rm", name)
        daemon.docker("network", "rm", name)

    def test_that_cannot_be_made(self, daemon: Daemon) -> None:
        for command, sentence in (
            (["volume", "create", "a b"], "includes invalid characters for a local volume name"),
            (["volume", "create", "-d", "nope", "vv"], 'plugin "nope" not found'),
            (["network", "create", "bridge"], "operation is not permitted on predefined bridge network"),
            (["network", "create", "-d", "nope", "nn"], "could not find plugin nope in v1 plugin registry"),
            (["network", "create", "--subnet", "1.2.3.4/33", "nn"], "invalid"),
            (["network", "rm", "bridge"], "bridge is a pre-defined network and cannot be removed"),
        ):
            result = daemon.docker(*command, check=False)
            assert result.status == 1, (command, result)
            assert sentence in result.err, (command, result)


class TestArchives:
    def broken(self, tmp_path: Path) -> Iterator[tuple[str, bytes]]:
        whole = (LIB / "busybox.tar").read_bytes()
        yield "empty", b""
        yield "garbage", b"this is no archive" * 100
        yield "cut", whole[: len(whole) // 2]
        yield "gzip of nothing", b"\x1f\x8b\x08\x00garbage"
        other = tmp_path / "other.tar"
        with tarfile.open(other, "w") as tar:
            tar.add("/etc/passwd", "file")
        yield "no image", other.read_bytes()

    def test_load(self, daemon: Daemon, tmp_path: Path) -> None:
        for what, data in self.broken(tmp_path):
            done = subprocess.run(
                [DOCKER, "--host", daemon.host, "load"], input=data, capture_output=True, timeout=60
            )
            assert done.returncode == 1, (what, done)
            assert done.stderr, what
            assert b"Loaded image" not in done.stdout, what

    def test_import(self, daemon: Daemon) -> None:
        done = subprocess.run(
            [DOCKER, "--host", daemon.host, "import", "-", "broken"],
            input=b"this is no archive" * 1000,
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert done.stderr

    def test_a_client_that_leaves_in_the_middle(self, daemon: Daemon) -> None:
        data = (LIB / "busybox.tar").read_bytes()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(daemon.socket))
            head = f"POST /images/load HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
            client.sendall(head.encode() + data[: len(data) // 2])


class TestHttp:
    @pytest.mark.parametrize(
        ("body", "sentence"),
        [
            (b"", "config cannot be empty in order to create a container"),
            (b"{", "invalid JSON"),
            (b"[]", "invalid JSON"),
            (b'{"Image": 5}', "Image"),
            (b'{"Image": "busybox", "HostConfig": {"Memory": "much"}}', "Memory"),
            (b'{"Image": "busybox"}garbage', "invalid JSON"),
            (b'{"Image": "busybox", "Env": ["=x"]}', "invalid environment variable: =x"),
            (b'{"Image": "busybox", "HostConfig": {"RestartPolicy": {"Name": "x"}}}', "unknown policy 'x'"),
            (b'{"Image": "\xff"}', ""),
            (
                b'{"Image": "busybox", "HostConfig": {"Memory": 99999999999999999999999}}',
                "cannot unmarshal number",
            ),
            (b"[" * 100_000, ""),
        ],
    )
    def test_bodies(self, daemon: Daemon, body: bytes, sentence: str) -> None:
        status, message = call(daemon, "POST", "/v1.51/containers/create", body)
        assert status == 400, message
        assert sentence.lower() in message.lower()

    def test_another_content_type(self, daemon: Daemon) -> None:
        status, message = call(daemon, "POST", "/containers/create", b"{}", "text/plain")
        assert status in (400, 415)
        assert message

    @pytest.mark.parametrize(
        ("method", "path", "status", "sentence"),
        [
            ("GET", "/nope", 404, "page not found"),
            ("GET", "/v1.51/nope", 404, "page not found"),
            (
                "GET",
                "/v1.99/version",
                400,
                "client version 1.99 is too new. Maximum",
            ),
            ("GET", "/v1.1/version", 400, "client version 1.1 is too old. Minimum supported API version is"),
            ("GET", "/containers/json?filters=nope", 400, ""),
            ("GET", "/containers/json?filters=%7B%22nope%22%3A%5B%22x%22%5D%7D", 400, "invalid filter"),
            ("GET", "/containers/json?limit=many", 400, ""),
            ("POST", "/containers/nope/wait?condition=soon", 400, 'invalid condition: "soon"'),
            ("GET", "/containers/%2e%2e%2f%2e%2e/json", 404, "No such container"),
            ("GET", "/containers/nope/logs", 404, "No such container: nope"),
            ("GET", "/events?until=soon", 400, ""),
            ("GET", "/events?filters=%7B%22nope%22%3A%5B%22x%22%5D%7D", 400, "invalid filter"),
        ],
    )
    def test_paths(self, daemon: Daemon, method: str, path: str, status: int, sentence: str) -> None:
        found, message = call(daemon, method, path)
        assert (found, sentence in message) == (status, True), (found, message)

    def test_what_is_no_http(self, daemon: Daemon) -> None:
        for data in (b"\x00\x01\x02garbage\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"A" * 300_000):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(10)
                client.connect(str(daemon.socket))
                try:
                    client.sendall(data)
                    client.shutdown(socket.SHUT_WR)
                    answer = client.recv(65536)
                except (BrokenPipeError, ConnectionResetError):
                    continue  # refused before all was sent
                assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer[:100]
        assert call(daemon, "GET", "/_ping") == (200, "OK")


class TestSocket:
    def test_a_dead_one(self, daemon: Daemon, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "dead"))
        address = f"unix://{tmp_path}/dead"
        result = daemon.proa("--host", address, "ps", check=False)
        assert (result.status, result.out) == (1, "")
        assert "Is the proa daemon running?" in result.err
        done = subprocess.run([DOCKER, "--host", address, "ps"], capture_output=True, timeout=30)
        assert done.returncode == 1
        assert b"Is the docker daemon running?" in done.stderr

    def test_a_second_daemon_on_the_same_root(self, daemon: Daemon, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "proa.daemon", "--host", f"unix://{tmp_path}/s"]
        roots = ["--data-root", str(daemon.data_root), "--exec-root", str(daemon.exec_root)]
        done = subprocess.run([*command, *roots], capture_output=True, text=True, timeout=30)
        assert done.returncode == 1
        assert "another proa daemon" in done.stderr
        assert call(daemon, "GET", "/_ping") == (200, "OK")

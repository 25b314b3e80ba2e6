# SPDX-License-Identifier: Apache-2.0
"""Files of containers when archives are hostile, clients leave, and the daemon dies in the middle."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import socket
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import hostile
from tests.support.daemon import Daemon
from tests.support.hostile import CASES
from tests.support.images import docker_files, make_layer, make_tar

PATIENCE_S = 20.0


class Raw(http.client.HTTPConnection):
    """HTTP on the daemon's socket."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__("proa", timeout=30)
        self._path = str(daemon.socket)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self._path)


def send(daemon: Daemon, method: str, path: str, body: bytes) -> tuple[int, str]:
    raw = Raw(daemon)
    try:
        raw.request(method, path, body, {"Content-Type": "application/x-tar"})
        response = raw.getresponse()
        return response.status, response.read().decode()
    finally:
        raw.close()


def wait_until(holds: Callable[[], bool], what: str, daemon: Daemon) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"{what}\n{daemon.log()}"
        time.sleep(0.05)


def children(daemon: Daemon) -> list[str]:
    """The file programs that a daemon has running."""
    assert daemon.process is not None
    found = []
    for directory in Path("/proc").iterdir():
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
            parent = (directory / "stat").read_text().rpartition(")")[2].split()[1]
        except (OSError, IndexError):
            continue
        if any(b"storage.files.program" in word for word in words) and int(parent) == daemon.process.pid:
            found.append(directory.name)
    return found


def command_line(pid: str) -> bytes:
    """Of a program; nothing when it has ended, reaped or not."""
    try:
        return Path("/proc", pid, "cmdline").read_bytes()
    except OSError:
        return b""


def mounted(daemon: Daemon, name: str) -> bool:
    identifier = daemon.docker("inspect", "-f", "{{.Id}}", name).out.strip()
    return f"/rootfs/{identifier}" in Path("/proc/self/mountinfo").read_text()


class TestHostileArchives:
    @pytest.mark.usefixtures("unchanged")
    def test_put(self, daemon: Daemon, name: str) -> None:
        daemon.docker("run", "-d", "--name", name, "busybox", "sleep", "1000")
        some = CASES[::4]  # tests/integration/storage drives them all
        daemon.docker("exec", name, "mkdir", *(f"/{case.name}" for case in some))
        for case in some:
            path = f"/containers/{name}/archive?path=/{case.name}"
            status, text = send(daemon, "PUT", path, hostile.archive(case))
            assert status == (200 if case.put else 400), (case.name, text)
        assert not Path("/tmp/pwned").exists()
        assert daemon.docker("exec", name, "true").status == 0
        daemon.docker("rm", "-f", name)

    @pytest.mark.usefixtures("unchanged")
    def test_import(self, daemon: Daemon) -> None:
        for number, case in enumerate(CASES):
            path = f"/images/create?fromSrc=-&repo=hostile&tag={case.name}"
            status, text = send(daemon, "POST", path, hostile.archive(case))
            assert status == (200 if case.layer else 400), (case.name, text)
            if case.layer and number % 4 == 0:
                daemon.docker("create", "--name", f"h-{case.name}", f"hostile:{case.name}", "x")
                daemon.docker("export", f"h-{case.name}")
                daemon.docker("rm", f"h-{case.name}")
        daemon.docker("rmi", *(f"hostile:{case.name}" for case in CASES if case.layer))
        assert not Path("/tmp/pwned").exists()

    @pytest.mark.usefixtures("unchanged")
    def test_load(self, daemon: Daemon) -> None:
        """As the layer of an image, below one that is sound, and as what should be the archive itself."""
        taken = []
        for case in CASES:
            layers = [make_layer("sound"), hostile.archive(case)]
            archive = make_tar(docker_files(layers, (f"hostile:{case.name}",)))
            status, text = send(daemon, "POST", "/images/load", archive)
            assert status == (200 if case.layer else 400), (case.name, text)
            taken += [f"hostile:{case.name}"] if case.layer else []
        daemon.docker("rmi", *taken)
        for case in CASES[::4]:
            status, text = send(daemon, "POST", "/images/load", hostile.archive(case))
            assert status == 400, (case.name, text)
            assert json.loads(text)["message"]
        assert not Path("/tmp/pwned").exists()


@pytest.fixture
def stopped(daemon: Daemon, name: str) -> str:
    """A container that does not run, with a file that takes a while to read."""
    daemon.docker("run", "--name", name, "busybox", "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=64")
    return name


@pytest.fixture
def reading(daemon: Daemon, stopped: str) -> Iterator[Raw]:
    """A client that has begun to read and stalls."""
    raw = Raw(daemon)
    raw.request("GET", f"/containers/{stopped}/archive?path=/big")
    response = raw.getresponse()
    assert response.read(1000)
    assert mounted(daemon, stopped)
    yield raw
    raw.close()


class TestClientsAndDaemonsThatLeave:
    def test_a_client_leaves(self, daemon: Daemon, stopped: str, reading: Raw) -> None:
        assert len(children(daemon)) == 1
        assert reading.sock is not None
        reading.sock.shutdown(socket.SHUT_RDWR)
        reading.close()
        wait_until(lambda: not children(daemon), "the program goes on", daemon)
        wait_until(lambda: not mounted(daemon, stopped), "it is still mounted", daemon)

    def test_an_upload_is_cut(self, daemon: Daemon, stopped: str) -> None:
        raw = Raw(daemon)
        raw.putrequest("PUT", f"/containers/{stopped}/archive?path=/")
        raw.putheader("Content-Length", "1000000")
        raw.endheaders()
        raw.send(bytes(500))
        wait_until(lambda: len(children(daemon)) == 1, "no program", daemon)
        raw.close()
        wait_until(lambda: not children(daemon), "the program goes on", daemon)
        wait_until(lambda: not mounted(daemon, stopped), "it is still mounted", daemon)

    def test_it_is_started_and_ends_meanwhile(self, daemon: Daemon, stopped: str, reading: Raw) -> None:
        daemon.docker("start", "-a", stopped)
        assert mounted(daemon, stopped), "one mount for the reader and for what runs"
        daemon.docker("rm", stopped)

    def test_the_daemon_is_killed_while_one_reads(self, daemon: Daemon, stopped: str, reading: Raw) -> None:
        (program,) = children(daemon)
        daemon.restart(signal.SIGKILL)
        wait_until(lambda: not command_line(program), "the program goes on", daemon)
        wait_until(lambda: not mounted(daemon, stopped), "it is still mounted", daemon)
        daemon.docker("start", "-a", stopped)

    def test_the_daemon_is_killed_in_a_commit(self, daemon: Daemon, name: str) -> None:
        script = "dd if=/dev/zero of=/big bs=1M count=200 2>/dev/null; touch /ready; sleep 1000"
        daemon.docker("run", "-d", "--name", name, "busybox", "sh", "-c", script)
        wait_until(
            lambda: daemon.docker("exec", name, "test", "-e", "/ready", check=False).status == 0,
            "it does not begin",
            daemon,
        )
        before = daemon.docker("images", "-aq").out
        raw = Raw(daemon)
        raw.request("POST", f"/commit?container={name}&repo=half")
        wait_until(lambda: bool(children(daemon)), "no commit", daemon)
        for child in children(daemon):  # the daemon dies before it has an answer
            os.kill(int(child), signal.SIGSTOP)
        daemon.restart(signal.SIGKILL)
        raw.close()
        status = daemon.docker("inspect", "-f", "{{.State.Status}}", name).out
        assert status == "running\n", "a pause of the commit's own is undone"
        assert daemon.docker("exec", name, "echo", "thawed").out == "thawed\n"
        assert daemon.docker("images", "-aq").out == before
        assert list((daemon.data_root / "blobs" / "ingest").iterdir()) == []
        daemon.docker("commit", name, f"{name}:whole")
        daemon.docker("rmi", f"{name}:whole")


def test_a_name_in_an_archive_is_no_terminal_control(daemon: Daemon, name: str) -> None:
    """What a container is called by a stranger is printed by the docker CLI."""
    daemon.docker("create", "--name", name, "busybox")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../\x1b[2J\x07evil"))
    status, text = send(daemon, "PUT", f"/containers/{name}/archive?path=/", out.getvalue())
    assert status == 400
    assert "\x1b" not in json.loads(text)["message"]

# SPDX-License-Identifier: Apache-2.0
"""testcontainers-python, with a reaper that clears up after a test process that died.

The reaper (reaper.c) speaks Ryuk's protocol, because Ryuk's own image cannot be pulled where these tests run:
it is a container on the network called ``bridge`` with the daemon's socket mounted.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.daemon import Daemon

pytestmark = pytest.mark.client(f"testcontainers-python {version('testcontainers')}")

REAPER = "test-reaper:1"
HEADER = """
import sys, time
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network
from testcontainers.core.waiting_utils import wait_for_logs
"""


@pytest.fixture(scope="module")
def reaper(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image of the reaper, made of one static program."""
    program = tmp_path_factory.mktemp("reaper") / "reaper"
    source = Path(__file__).with_name("reaper.c")
    compiled = ["musl-gcc", "-static", "-O1", "-Wall", "-Werror", "-o", str(program), str(source)]
    subprocess.run(compiled, check=True, timeout=60)
    archive = program.with_suffix(".tar")
    with tarfile.open(archive, "w") as tar:
        tar.add(program, "reaper")
        for folder in ("var", "var/run", "tmp"):
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member, io.BytesIO())
    daemon.docker("import", "--change", 'CMD ["/reaper"]', str(archive), REAPER)
    return REAPER


@pytest.fixture
def script(daemon: Daemon, docker_host: str, reaper: str) -> Iterator[subprocess.Popen[str]]:
    """Start a user's script; it is ended with the test."""
    env = {
        **os.environ,
        "RYUK_CONTAINER_IMAGE": reaper,
        "RYUK_RECONNECTION_TIMEOUT": "1s",
        "TESTCONTAINERS_DOCKER_SOCKET_OVERRIDE": str(daemon.socket),
        "TC_POOLING_INTERVAL": "0.1",
        "TESTCONTAINERS_CONNECTION_MODE": "docker_host",  # CI is itself in a container at times
    }
    started = subprocess.Popen(
        [sys.executable, "-c", "import sys; exec(sys.stdin.read())"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    yield started
    started.kill()
    started.wait(10)


def ours(daemon: Daemon) -> list[str]:
    """Return what testcontainers has made and what is still there."""
    label = "label=org.testcontainers"
    found = daemon.docker("ps", "-a", "--filter", label, "--format", "{{.Names}}").out.split()
    found += daemon.docker("network", "ls", "-q", "--filter", label).out.split()
    return found


def wait_until_gone(daemon: Daemon) -> None:
    deadline = time.monotonic() + 30
    while left := ours(daemon):
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.1)


def test_ordinary_use(daemon: Daemon, script: subprocess.Popen[str]) -> None:
    """containers, networks, logs, ports, exec; Ryuk's protocol: connected on bridge, gone at the end"""
    out, err = script.communicate(
        HEADER
        + """
with Network() as network:
    program = "echo ready; while :; do echo hi | nc -l -p 80; done"
    made = DockerContainer("busybox").with_command(["sh", "-c", program])
    made = made.with_exposed_ports(80).with_network(network).with_network_aliases("web").with_env("A", "b")
    with made as container:
        wait_for_logs(container, "ready")
        print(container.exec(["sh", "-c", "echo $A"]).output)
        print(int(container.get_exposed_port(80)) > 0, container.get_container_host_ip())
        print(b"ready" in container.get_logs()[0])
""",
        timeout=90,
    )
    assert out.splitlines() == ["b'b\\n'", "True localhost", "True"], err
    wait_until_gone(daemon)


def test_a_killed_process_is_cleared_up(daemon: Daemon, script: subprocess.Popen[str]) -> None:
    """Ryuk's protocol: what a killed process has left is removed through the mounted socket"""
    assert script.stdin is not None
    assert script.stdout is not None
    script.stdin.write(
        HEADER
        + """
network = Network().create()
container = DockerContainer("busybox").with_command(["sleep", "600"]).with_network(network).start()
print("running", flush=True)
time.sleep(600)
"""
    )
    script.stdin.close()
    assert script.stdout.readline() == "running\n", script.stderr and script.stderr.read()
    assert len(ours(daemon)) >= 2
    script.send_signal(signal.SIGKILL)
    wait_until_gone(daemon)

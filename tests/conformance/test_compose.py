# SPDX-License-Identifier: Apache-2.0
"""docker-compose 1.29 (Python, Debian 12) and Compose v2 (Go, Debian 13) on one project."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.conftest import CLIENTS, first_bytes, run
from tests.support.daemon import Daemon

PROJECT = """
version: "2.4"
services:
  web:
    image: busybox
    command: ["sh", "-c", "echo started $$WORD; while :; do echo served | nc -l -p 80; done"]
    environment: {WORD: "${WORD:-hello}"}
    ports: ["80"]
    volumes: ["data:/data", "./:/here:ro"]
    networks: {front: {aliases: [www]}, back: {}}
    labels: {role: web}
    stop_grace_period: 1s
    mem_limit: 64m
  client:
    image: busybox
    command: ["sh", "-c", "nslookup www && exec sleep 600"]
    depends_on: [web]
    networks: [front]
    init: true
    stop_grace_period: 1s
volumes: {data: {}}
networks: {front: {}, back: {}}
"""

Compose = Callable[..., str]


V1 = pytest.param("docker-compose", marks=pytest.mark.client("docker-compose 1.29"), id="v1")
V2 = pytest.param(str(CLIENTS / "docker-compose-v2"), marks=pytest.mark.client("Compose 2.26"), id="v2")


@pytest.fixture(params=[V1, V2])
def program(request: pytest.FixtureRequest) -> str:
    assert shutil.which(request.param), f"{request.param} is missing: setup/clients.sh"
    return str(request.param)


@pytest.fixture
def compose(program: str, docker_host: str, tmp_path: Path, daemon: Daemon) -> Iterator[Compose]:
    """Run compose on the project of this test, which is taken down afterwards and leaves nothing."""
    project = f"p{uuid.uuid4().hex[:8]}"
    file = tmp_path / "docker-compose.yml"
    file.write_text(PROJECT)

    def call(*arguments: str, check: bool = True) -> str:
        if program != "docker-compose":
            file.write_text(file.read_text().replace('version: "2.4"\n', ""))  # v2 warns of it each time
        return run(program, "-f", "docker-compose.yml", "-p", project, *arguments, cwd=tmp_path, check=check)

    yield call
    call("down", "-v", "-t", "0", "--remove-orphans")
    label = f"label=com.docker.compose.project={project}"
    for listing in (("ps", "-aq"), ("volume", "ls", "-q"), ("network", "ls", "-q")):
        assert daemon.docker(*listing, "--filter", label).out == ""


def test_up(compose: Compose) -> None:
    """up, ps, port, logs, names and aliases, down"""
    compose("up", "-d")
    listed = compose("ps")
    assert len(re.findall(r"web.1.*Up|client.1.*Up", listed)) == 2, listed
    port = compose("port", "web", "80").strip().rpartition(":")[2]
    assert first_bytes(int(port)) == b"served\n"
    assert "started hello" in compose("logs", "web")
    assert "Up" in compose("ps", "client")


def test_exec_and_run(compose: Compose) -> None:
    """exec, run"""
    compose("up", "-d", "web")
    assert compose("exec", "-T", "web", "sh", "-c", "echo $WORD; ls /here") == "hello\ndocker-compose.yml\n"
    assert "once" in compose("run", "--rm", "-T", "client", "echo", "once")
    assert "web" in compose("run", "--rm", "-T", "--no-deps", "-e", "A=web", "client", "sh", "-c", "echo $A")
    assert "no such" not in compose("exec", "-T", "web", "sh", "-c", "exit 7", check=False).lower()


def test_life(compose: Compose) -> None:
    """stop, start, restart, pause, kill, top, rm"""
    compose("up", "-d")
    compose("restart", "-t", "0", "web")
    assert "nc -l" in compose("top")
    compose("pause", "web")
    compose("unpause", "web")
    compose("stop", "-t", "1")
    compose("start")
    compose("kill", "web")
    compose("rm", "-f", "-s", "web")
    assert "web" not in compose("ps", "-q", "web")


def test_recreate(compose: Compose, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """up again: unchanged is kept, changed is recreated with its volume"""
    compose("up", "-d", "web")
    compose("exec", "-T", "web", "sh", "-c", "echo kept >/data/x")
    first = compose("ps", "-q", "web")
    compose("up", "-d", "web")
    assert compose("ps", "-q", "web") == first
    monkeypatch.setenv("WORD", "changed")
    compose("up", "-d", "web")
    assert compose("ps", "-q", "web") != first
    assert compose("exec", "-T", "web", "sh", "-c", "echo $WORD; cat /data/x") == "changed\nkept\n"


def test_scale(compose: Compose) -> None:
    """scale"""
    compose("up", "-d", "--scale", "client=3")
    assert len(compose("ps", "-q", "client").split()) == 3
    compose("up", "-d", "--scale", "client=1")
    assert len(compose("ps", "-q", "client").split()) == 1


def test_foreground(compose: Compose, tmp_path: Path) -> None:
    """up in the foreground: output, exit code of a service"""
    (tmp_path / "docker-compose.yml").write_text(
        'version: "2.4"\nservices:\n  one:\n    image: busybox\n    command: sh -c "echo working; exit 5"\n'
    )
    output = compose("up", "--exit-code-from", "one", check=False)
    assert "working" in output
    assert "exited with code 5" in output


def test_images(compose: Compose) -> None:
    """images, config, pull of what is there"""
    compose("up", "-d", "web")
    assert "busybox" in compose("images")
    assert "busybox" in compose("config")


BUILT = """
version: "2.4"
services:
  one:
    build: {context: ., args: {A: built}}
    image: composed:1
"""


def test_build(compose: Compose, tmp_path: Path) -> None:
    """build and up --build"""
    (tmp_path / "Dockerfile").write_text('FROM busybox\nARG A=b\nRUN echo $A >/x\nCMD ["cat", "/x"]\n')
    (tmp_path / "docker-compose.yml").write_text(BUILT)
    compose("build")
    assert "built" in compose("up", "--build", "--exit-code-from", "one")


HEALTHY = """
version: "2.4"
services:
  one:
    image: busybox
    command: sh -c "touch /ok; exec sleep 600"
    healthcheck: {test: ["CMD", "test", "-f", "/ok"], interval: 1s, retries: 20}
    stop_grace_period: 1s
  two:
    image: busybox
    command: echo second
    depends_on: {one: {condition: service_healthy}}
"""


def test_healthy(compose: Compose, tmp_path: Path) -> None:
    """depends_on a healthy service"""
    (tmp_path / "docker-compose.yml").write_text(HEALTHY)
    compose("up", "-d")
    assert "healthy" in compose("ps")


@pytest.mark.parametrize("program", [V2], indirect=True)  # 1.29 has no such command
def test_cp(compose: Compose, tmp_path: Path) -> None:
    """cp"""
    compose("up", "-d", "web")
    (tmp_path / "file").write_text("copied\n")
    compose("cp", "file", "web:/tmp/file")
    assert compose("exec", "-T", "web", "cat", "/tmp/file") == "copied\n"

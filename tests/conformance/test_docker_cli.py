# SPDX-License-Identifier: Apache-2.0
"""The docker command. tests/e2e uses it for everything; here is what the compatibility table says of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.conformance.conftest import first_bytes
from tests.support.daemon import DOCKER, Daemon

VERSION = subprocess.run([DOCKER, "--version"], capture_output=True, text=True).stdout.split()[2].rstrip(",")

pytestmark = pytest.mark.client(f"docker CLI {VERSION}")


@pytest.fixture
def sleeper(daemon: Daemon, name: str) -> str:
    daemon.docker("run", "-d", "--name", name, "--label", f"t={name}", "busybox", "sleep", "600")
    return name


def test_run(daemon: Daemon) -> None:
    """run: output, input, exit status"""
    done = daemon.docker("run", "--rm", "-i", "busybox", "sh", "-c", "cat; exit 3", stdin="in\n", check=False)
    assert (done.status, done.out) == (3, "in\n")


def test_life(daemon: Daemon, sleeper: str) -> None:
    """stop, start, restart, pause, kill, rename, update, wait, rm"""
    for verb in (("pause",), ("unpause",), ("restart", "-t", "0"), ("update", "-m", "64m"), ("kill",)):
        daemon.docker(*verb, sleeper)
    assert daemon.docker("wait", sleeper).out == "137\n"
    daemon.docker("start", sleeper)
    daemon.docker("stop", "-t", "0", sleeper)


def test_looking(daemon: Daemon, sleeper: str) -> None:
    """ps, inspect, logs, top, stats, port, events, info, system df"""
    assert sleeper in daemon.docker("ps", "--filter", f"label=t={sleeper}").out
    assert json.loads(daemon.docker("inspect", sleeper).out)[0]["State"]["Running"]
    assert "sleep 600" in daemon.docker("top", sleeper).out
    assert sleeper in daemon.docker("stats", "--no-stream", sleeper).out
    daemon.docker("logs", sleeper)
    events = daemon.docker(
        "events", "--since", "10m", "--until", "0s", "--filter", f"container={sleeper}"
    ).out
    assert " start " in events
    daemon.docker("info")
    daemon.docker("system", "df", "-v")


def test_exec(daemon: Daemon, sleeper: str) -> None:
    """exec"""
    assert (
        daemon.docker("exec", "-i", "-e", "A=b", sleeper, "sh", "-c", "cat; echo $A", stdin="in\n").out
        == "in\nb\n"
    )


def test_images(daemon: Daemon, tmp_path: Path) -> None:
    """images, tag, history, save, load, import, rmi"""
    daemon.docker("tag", "busybox", "cli-test:1")
    assert "cli-test" in daemon.docker("images").out
    daemon.docker("history", "cli-test:1")
    daemon.docker("save", "-o", str(tmp_path / "x.tar"), "cli-test:1")
    daemon.docker("rmi", "cli-test:1")
    assert "cli-test:1" in daemon.docker("load", "-i", str(tmp_path / "x.tar")).out
    daemon.docker("rmi", "cli-test:1")


def test_volumes(daemon: Daemon, name: str) -> None:
    """volumes and mounts"""
    mount = ["--mount", f"type=volume,src={name},dst=/data", "-v", "/etc:/host-etc:ro", "--tmpfs", "/scratch"]
    daemon.docker("run", "--rm", *mount, "busybox", "sh", "-c", "echo kept >/data/x; touch /scratch/y")
    assert daemon.docker("run", "--rm", "-v", f"{name}:/data:ro", "busybox", "cat", "/data/x").out == "kept\n"
    daemon.docker("volume", "rm", name)


def test_networks(daemon: Daemon, name: str) -> None:
    """networks, names, published ports"""
    daemon.docker("network", "create", name)
    program = "while :; do echo served | nc -l -p 80; done"
    daemon.docker("run", "-d", "--name", name, "--network", name, "-p", "80", "busybox", "sh", "-c", program)
    port = daemon.docker("port", name, "80").out.split()[0].rpartition(":")[2]
    assert first_bytes(int(port)) == b"served\n"
    assert daemon.docker("run", "--rm", "--network", name, "busybox", "nslookup", name).status == 0
    daemon.docker("rm", "-f", name)
    daemon.docker("network", "rm", name)


def test_connect(daemon: Daemon, sleeper: str) -> None:
    """network connect and disconnect of a running container"""
    daemon.docker("network", "create", sleeper)
    try:
        daemon.docker("network", "connect", sleeper, sleeper)
        daemon.docker("network", "disconnect", sleeper, sleeper)
    finally:
        daemon.docker("network", "rm", sleeper)


def test_cp(daemon: Daemon, sleeper: str, tmp_path: Path) -> None:
    """cp"""
    (tmp_path / "x").write_text("copied\n")
    daemon.docker("cp", str(tmp_path / "x"), f"{sleeper}:/tmp/x")
    assert daemon.docker("exec", sleeper, "cat", "/tmp/x").out == "copied\n"
    daemon.docker("cp", f"{sleeper}:/tmp/x", str(tmp_path / "y"))


def test_commit(daemon: Daemon, sleeper: str, tmp_path: Path) -> None:
    """diff, commit, export"""
    daemon.docker("exec", sleeper, "touch", "/new")
    assert "A /new" in daemon.docker("diff", sleeper).out
    daemon.docker("commit", sleeper, "cli-commit")
    daemon.docker("export", "-o", str(tmp_path / "x.tar"), sleeper)
    daemon.docker("rmi", "cli-commit")


def test_build(daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """build (the classic builder)"""
    monkeypatch.setenv("DOCKER_BUILDKIT", "0")
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo built >/x\n")
    daemon.docker("build", "-t", "cli-build", str(tmp_path))
    assert daemon.docker("run", "--rm", "cli-build", "cat", "/x").out == "built\n"
    daemon.docker("rmi", "cli-build")


def test_health(daemon: Daemon, name: str) -> None:
    """health checks"""
    options = ["--health-cmd", "true", "--health-interval", "1s", "--name", name]
    daemon.docker("run", "-d", *options, "busybox", "sleep", "600")
    daemon.docker("exec", name, "sleep", "2")
    assert daemon.docker("inspect", "-f", "{{.State.Health.Status}}", name).out == "healthy\n"


def test_swarm_and_plugins(daemon: Daemon) -> None:
    """swarm and plugins are told to be absent"""
    done = daemon.docker("service", "ls", check=False)
    assert "This node is not a swarm manager." in done.err
    assert "not part of a swarm" in daemon.docker("swarm", "leave", check=False).err
    assert len(daemon.docker("plugin", "ls").out.splitlines()) == 1

# SPDX-License-Identifier: Apache-2.0
"""A Debian that is imported as an image: booted by systemd, and as a machine that carries an engine."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import DOCKER, LIB, PROA, Daemon, Result

ROOT = LIB / "test-machine.tar"
BOOT_S = 900.0
IMAGE = "debian-root"

pytestmark = pytest.mark.skipif(not ROOT.exists(), reason="make test-slow makes the root file system")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    daemon.start()
    try:
        daemon.docker("import", str(ROOT), IMAGE)
        yield daemon
    finally:
        daemon.clean()


def test_systemd_boots_from_an_image_to_ssh(daemon: Daemon, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    (tmp_path / "Dockerfile").write_text(
        f"FROM {IMAGE}\nCOPY --chmod=600 key.pub /root/.ssh/authorized_keys\n"
    )
    daemon.docker("build", "-q", "-t", "with-key", str(tmp_path))
    daemon.proa("vm", "create", "--name", "deb", "--from-image", "with-key", "-m", "512m", "--start")
    options = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes")
    deadline = time.monotonic() + BOOT_S
    address = daemon.proa("vm", "ls", "--format", "{{.Address}}").out.strip().partition("/")[0]
    while True:
        words = ["ssh", "-i", str(key), *options, "-o", "ConnectTimeout=10", f"root@{address}"]
        done = subprocess.run(
            [*words, "systemctl is-system-running --wait; id -u"], capture_output=True, text=True
        )
        if done.stdout.strip().endswith("0"):
            break
        assert time.monotonic() < deadline, daemon.proa("vm", "logs", "deb").out[-4000:]
        time.sleep(2)
    assert "login:" in daemon.proa("vm", "logs", "deb").out
    daemon.proa("vm", "stop", "-t", "300", "deb", timeout_s=320)
    assert (
        daemon.proa("vm", "inspect", "deb", "--format", "{{.Reason}}").out.strip() == "the guest powered off"
    )
    daemon.proa("vm", "rm", "deb")


def test_containers_run_in_a_machine(daemon: Daemon, tmp_path: Path) -> None:
    name = f"m{uuid.uuid4().hex[:8]}"
    env = {**daemon.env, "XDG_CONFIG_HOME": str(tmp_path), "DOCKER_CONFIG": str(tmp_path / "docker")}
    env = {key: value for key, value in env.items() if key != "DOCKER_HOST"}
    env["PATH"] = f"{Path(DOCKER).parent}:{os.environ['PATH']}"

    def run(*words: str, check: bool = True) -> Result:
        done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=BOOT_S)
        assert not check or done.returncode == 0, done.stderr
        return Result(status=done.returncode, out=done.stdout, err=done.stderr)

    def proa(*words: str, check: bool = True) -> Result:
        return run(str(PROA), "machine", *words, check=check)

    def inside(*words: str) -> str:
        return run(DOCKER, "--context", name, *words).out

    assert "cannot be built" in proa("init", "--image", "nothere", name, check=False).err
    proa("init", "--image", IMAGE, "--disk-size", "4g", "-m", "768m", "--now", name)
    try:
        assert "already" in proa("init", "--image", IMAGE, name, check=False).err
        assert f"/run/proa-machine/{name}/docker.sock" in proa("ls").out
        inside("load", "-i", str(LIB / "busybox.tar"))
        assert "Debian" in inside("run", "--rm", "busybox", "uname", "-v")
        inside(
            "run", "-d", "--name", "web", "-p", "127.0.0.1:18099:80", "busybox", "httpd", "-f", "-h", "/etc"
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen("http://127.0.0.1:18099/hostname", timeout=20) as answer:
                    assert answer.read().strip()
                    break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        daemon.restart()  # the machine, its socket and its ports go on
        assert "web" in inside("ps")
        assert proa("ssh", name, "id", "-u").out.strip() == "0"
        proa("stop", name)
        deadline = time.monotonic() + 60
        while Path(f"/run/proa-machine/{name}/docker.sock").exists():
            assert time.monotonic() < deadline, Path(f"/run/proa-machine/{name}/log").read_text()
            time.sleep(0.2)
        proa("start", name)
        assert "web" in inside("ps", "-a")  # its disk stays
    finally:
        proa("rm", "-f", name)
    assert name not in proa("ls").out
    assert not Path(f"/run/proa-machine/{name}").exists()
    assert daemon.proa("vm", "inspect", name, check=False).status == 1

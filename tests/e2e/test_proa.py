# SPDX-License-Identifier: Apache-2.0
"""The ``proa`` command against a real daemon: docker's names, output and exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.daemon import LIB, Daemon


def test_run_in_both_hulls(daemon: Daemon, hull: str) -> None:
    script = "cat; echo err >&2; exit 3"
    done = daemon.proa(
        "run", "--rm", "-i", "--isolation", hull, "busybox", "sh", "-c", script, stdin="in\n", check=False
    )
    assert (done.status, done.out, done.err) == (3, "in\n", "err\n")


def test_a_container_from_create_to_rm(daemon: Daemon, name: str) -> None:
    daemon.proa("create", "--name", name, "-e", "A=1", "busybox", "sh", "-c", "echo $A; sleep 600")
    assert daemon.proa("start", name).out == f"{name}\n"
    assert (
        daemon.proa("ps", "--filter", f"name={name}", "--format", "{{.Names}} {{.State}}").out
        == f"{name} running\n"
    )
    assert daemon.proa("exec", name, "echo", "hi").out == "hi\n"
    assert daemon.proa("exec", name, "sh", "-c", "exit 4", check=False).status == 4
    assert daemon.proa("logs", name).out == "1\n"
    assert "sleep 600" in daemon.proa("top", name).out
    assert daemon.proa("pause", name).out == f"{name}\n"
    assert daemon.proa("unpause", name).out == f"{name}\n"
    daemon.proa("update", "--memory", "64m", "--restart", "on-failure:3", name)
    shown = json.loads(daemon.proa("inspect", name).out)[0]
    assert shown["HostConfig"]["Memory"] == 64 << 20
    assert shown["HostConfig"]["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert name in daemon.proa("stats", "--no-stream", name).out
    daemon.proa("rename", name, f"{name}-2")
    daemon.proa("rename", f"{name}-2", name)
    assert daemon.proa("kill", name).out == f"{name}\n"
    assert daemon.proa("wait", name).out == "137\n"
    assert daemon.proa("rm", name).out == f"{name}\n"
    assert daemon.proa("inspect", name, check=False).status == 1


def test_images(daemon: Daemon, tmp_path: Path) -> None:
    archive = tmp_path / "saved.tar"
    daemon.proa("tag", "busybox", "t-proa:one")
    daemon.proa("save", "-o", str(archive), "t-proa:one")
    assert "Untagged: t-proa:one" in daemon.proa("rmi", "t-proa:one").out
    assert daemon.proa("load", "-i", str(archive)).out == "Loaded image: t-proa:one\n"
    assert daemon.proa("images", "--format", "{{.Repository}}:{{.Tag}}", "t-proa").out == "t-proa:one\n"
    assert "busybox-static" in daemon.proa("history", "--no-trunc", "t-proa:one").out
    daemon.proa("rmi", "t-proa:one")
    assert archive.stat().st_size > 0
    assert (LIB / "busybox.tar").exists()


def test_networks_volumes_and_system(daemon: Daemon, name: str) -> None:
    daemon.proa("network", "create", name)
    assert name in daemon.proa("network", "ls").out
    assert json.loads(daemon.proa("network", "inspect", name).out)[0]["Driver"] == "bridge"
    assert daemon.proa("network", "rm", name).out == f"{name}\n"
    assert daemon.proa("volume", "create", name).out == f"{name}\n"
    assert name in daemon.proa("volume", "ls", "-q").out
    assert daemon.proa("volume", "rm", name).out == f"{name}\n"
    info = daemon.proa("info").out
    assert "Storage Driver: erofs" in info
    assert "VM Acceleration: " in info
    assert "Images" in daemon.proa("system", "df").out
    assert "API version" in daemon.proa("version").out
    assert (
        daemon.proa("events", "--since", "10m", "--until", "0s", "--filter", f"volume={name}").out.count(name)
        >= 2
    )


def test_doctor_finds_nothing_missing(daemon: Daemon) -> None:
    done = daemon.proa("doctor")
    assert "Nothing is missing." in done.out
    assert "virtual machines run with" in done.out


def test_wrong_use(daemon: Daemon) -> None:
    assert daemon.proa("run", check=False).status == 125
    missing = daemon.proa("run", "nonesuch", check=False)
    assert missing.status == 125
    assert "Unable to find image 'nonesuch:latest' locally" in missing.err
    assert daemon.proa("run", "--rm", "busybox", "nonesuch", check=False).status == 127
    assert daemon.proa("run", "--rm", "busybox", "/etc/passwd", check=False).status == 126
    assert "No such container: nonesuch" in daemon.proa("stop", "nonesuch", check=False).err
    dead = daemon.proa("-H", "unix:///nonesuch.sock", "ps", check=False)
    assert dead.status == 1
    assert "Is the proa daemon running?" in dead.err
    assert daemon.proa("fly", check=False).status == 125

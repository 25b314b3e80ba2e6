# SPDX-License-Identifier: Apache-2.0
"""The root file system, volumes, binds and tmpfs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.daemon import Daemon


def shell(daemon: Daemon, *arguments: str) -> list[str]:
    *options, script = arguments
    return daemon.docker("run", "--rm", *options, "busybox", "sh", "-c", script).out.splitlines()


@pytest.mark.sample
def test_binds_live(daemon: Daemon, name: str, tmp_path: Path) -> None:
    """binds are live both ways, with owners and modes"""
    daemon.docker("run", "-d", "--name", name, "-v", f"{tmp_path}:/d", "busybox", "sleep", "1000")
    (tmp_path / "out").write_text("one")
    daemon.docker("exec", name, "sh", "-c", "cat /d/out; echo in >/d/in; chown 7:8 /d/in; chmod 640 /d/in")
    found = (tmp_path / "in").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (7, 8, 0o640)
    (tmp_path / "out").write_text("two")
    (tmp_path / "in").unlink()
    assert daemon.docker("exec", name, "sh", "-c", "cat /d/out; echo; ls /d").out.split() == ["two", "out"]


def test_bind_missing(daemon: Daemon) -> None:
    """--mount of a source that does not exist is refused"""
    mount = "type=bind,source=/nonesuch/x,target=/d"
    done = daemon.docker("run", "--rm", "--mount", mount, "busybox", "true", check=False)
    assert "bind source path does not exist: /nonesuch/x" in done.err
    assert done.status == 125


def test_volumes(daemon: Daemon, name: str) -> None:
    """volumes: named, anonymous, copied up, read-only, of another container"""
    daemon.docker(
        "run",
        "--name",
        name,
        "-v",
        f"{name}:/etc",
        "-v",
        "/anonymous",
        "busybox",
        "touch",
        "/etc/new",
        "/anonymous/a",
    )
    try:
        assert shell(daemon, "--volumes-from", name, "ls /etc/passwd /etc/new /anonymous/a | wc -l") == ["3"]
        assert shell(daemon, "-v", f"{name}:/d:ro", "touch /d/x 2>/dev/null || echo refused") == ["refused"]
        nocopy = f"type=volume,source={name}2,target=/etc,volume-nocopy"
        assert shell(daemon, "--mount", nocopy, "ls /etc/passwd 2>/dev/null | wc -l") == ["0"]
    finally:
        daemon.docker("rm", "-v", name)
        daemon.docker("volume", "rm", name, f"{name}2")


def test_subpath(daemon: Daemon, name: str) -> None:
    """a path inside a volume"""
    shell(daemon, "-v", f"{name}:/d", "mkdir /d/sub; echo x >/d/sub/f")
    mount = f"type=volume,source={name},target=/d,volume-subpath=sub"
    try:
        assert shell(daemon, "--mount", mount, "cat /d/f") == ["x"]
    finally:
        daemon.docker("volume", "rm", name)


def test_tmpfs(daemon: Daemon) -> None:
    """tmpfs with options"""
    out = shell(
        daemon, "--tmpfs", "/t:size=1m,mode=1770,noexec,uid=5", "grep ' /t ' /proc/mounts; stat -c '%u %a' /t"
    )
    assert "noexec" in out[0] and "nosuid" in out[0] and "size=1024k" in out[0]
    assert out[1] == "5 1770"
    mount = "type=tmpfs,target=/t,tmpfs-size=2m,tmpfs-mode=0700"
    out = shell(daemon, "--mount", mount, "grep ' /t ' /proc/mounts; stat -c %a /t")
    assert "size=2048k" in out[0] and out[1] == "700"


def test_read_only(daemon: Daemon) -> None:
    """--read-only, with /dev/shm and a volume writable"""
    out = shell(
        daemon,
        "--read-only",
        "-v",
        "/v",
        "touch /x 2>/dev/null || echo refused; touch /dev/shm/a /v/a && echo fine",
    )
    assert out == ["refused", "fine"]


def test_links_and_special_files(daemon: Daemon, name: str) -> None:
    """links, pipes and times in a volume"""
    script = (
        "cd /d; mkfifo p; ln -s x l; echo a >f; ln f h; touch -d '2001-02-03 04:05:06' f; "
        "stat -c '%h %Y' h; ls -l p | cut -c1"
    )
    try:
        assert shell(daemon, "-v", f"{name}:/d", script) == ["2 981173106", "p"]
    finally:
        daemon.docker("volume", "rm", name)


@pytest.mark.parametrize("propagation", ["rprivate", "rslave", "rshared"])
def test_propagation(daemon: Daemon, tmp_path: Path, propagation: str) -> None:
    """propagation of mounts"""
    daemon.docker("run", "--rm", "-v", f"{tmp_path}:/d:{propagation}", "busybox", "true")


def test_diff(daemon: Daemon, name: str) -> None:
    """cp, diff, export and commit of a container that runs"""
    daemon.docker(
        "run", "-d", "--name", name, "busybox", "sh", "-c", "echo x >/new; rm /etc/group; sleep 1000"
    )
    daemon.docker("exec", name, "sh", "-c", "while test -e /etc/group; do sleep 0.1; done")
    assert daemon.docker("diff", name).out.split("\n")[:-1] == ["C /etc", "D /etc/group", "A /new"]
    daemon.docker("commit", name, f"{name}:1")
    assert daemon.docker("run", "--rm", f"{name}:1", "cat", "/new").out == "x\n"
    daemon.docker("rmi", f"{name}:1")

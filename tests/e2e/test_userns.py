# SPDX-License-Identifier: Apache-2.0
"""Containers in user namespaces, as their users and the host see them, with both runtimes.

The docker command knows no ``auto``: that is asked for with ours, ``--userns-remap`` with docker.
"""

from __future__ import annotations

import io
import json
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import DOCKER, Daemon
from tests.support.host_state import count_host_state

FIRST = 0x70000000  # of the default pool
REMAPPED = 300_000
# /etc as it is, but for the subordinate ids of "daemon", whom Debian always has; in a mount namespace of its
# own, so that the host's files stay as they are.
WITH_SUBORDINATE_IDS = f"""
mount -t tmpfs tmpfs /mnt && mkdir /mnt/upper /mnt/work &&
mount -t overlay overlay -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work /etc &&
echo daemon:{REMAPPED}:65536 > /etc/subuid && echo daemon:{REMAPPED}:65536 > /etc/subgid && exec "$@"
"""


def open_daemon(daemon: Daemon) -> Iterator[Daemon]:
    daemon.base.chmod(0o711)  # as /run is
    daemon.start()
    try:
        daemon.load_busybox()
        yield daemon
    finally:
        daemon.clean()


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    yield from open_daemon(Daemon())


@pytest.fixture(scope="module")
def remapped() -> Iterator[Daemon]:
    wrapper = ("unshare", "--mount", "--propagation", "private", "sh", "-c", WITH_SUBORDINATE_IDS, "sh")
    yield from open_daemon(Daemon(options=("--userns-remap", "daemon"), wrapper=wrapper))


@pytest.fixture(params=["crun", "runc"])
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def null_device_stays() -> Iterator[None]:
    yield
    assert Path("/dev/null").stat().st_uid == 0


def owner(path: Path) -> tuple[int, int]:
    return path.stat().st_uid, path.stat().st_gid


def tar_owners(daemon: Daemon, *command: str) -> dict[str, tuple[int, int]]:
    """Owners in a tar that a docker command writes."""
    done = subprocess.run([DOCKER, "--host", daemon.host, *command], capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as file:
        return {member.name: (member.uid, member.gid) for member in file}


def test_ids_inside_and_outside(daemon: Daemon, name: str, runtime: str, tmp_path: Path) -> None:
    plain, mapped = tmp_path / "plain", tmp_path / "mapped"
    for directory in (plain, mapped):
        directory.mkdir()
        (directory / "secret").write_text("of root\n")
    daemon.proa(
        *("run", "-d", "--runtime", runtime, "--name", name, "--userns", "auto:size=2000", "--tmpfs", "/tmp"),
        *("-v", f"{name}:/v", "-v", f"{plain}:/plain", "-v", f"{mapped}:/mapped:idmap"),
        *("--health-cmd", "true", "busybox", "sleep", "1000"),
    )
    try:
        inside = daemon.docker(
            *("exec", name, "sh", "-ec"),
            "cat /proc/self/uid_map; "
            "stat -c '%u:%g' / /bin/sh /plain/secret /mapped/secret /etc/hosts /dev/pts;"
            "touch /v/new /file /tmp/t; chown 5:6 /v/new /file /tmp/t; touch /mapped/new;"
            "! sh -c 'echo x > /plain/secret' 2>/dev/null; ! touch /plain/new 2>/dev/null;"
            "! chmod 777 /plain/secret 2>/dev/null; ! mknod /tmp/null c 1 3 2>/dev/null",
        ).out.split()
        first, size = int(inside[1]), int(inside[2])
        assert (inside[0], size) == ("0", 2000)
        assert first >= FIRST
        assert inside[3:] == ["0:0", "0:0", "65534:65534", "0:0", "0:0", "0:0"]
        pid = json.loads(daemon.docker("inspect", name).out)[0]["State"]["Pid"]
        assert owner(Path(f"/proc/{pid}")) == (first, first)
        assert owner(daemon.data_root / "volumes" / name / "_data" / "new") == (5, 6)
        assert owner(mapped / "new") == (0, 0)
        assert (plain / "secret").read_text() == "of root\n"
        assert [path.name for path in plain.iterdir()] == ["secret"]
        seen = daemon.docker("run", "--rm", "-v", f"{name}:/v", "busybox", "stat", "-c", "%u:%g", "/v/new")
        assert seen.out == "5:6\n"
        assert (
            daemon.docker("exec", "-u", "33", name, "sh", "-c", "id -u; echo x > /dev/stderr").out == "33\n"
        )
        assert "pts" in daemon.docker("exec", "-t", name, "tty").out
        assert "sleep 1000" in daemon.docker("top", name).out
        assert daemon.docker("stats", "--no-stream", "--format", "{{.PIDs}}", name).out == "1\n"
    finally:
        daemon.docker("rm", "-f", "-v", name)
        daemon.docker("volume", "rm", "-f", name)


def test_files_go_in_and_out_with_the_ids_inside(daemon: Daemon, name: str, tmp_path: Path) -> None:
    daemon.proa(
        "run", "-d", "--name", name, "--userns", "auto", "-v", "/anonymous", "busybox", "sleep", "1000"
    )
    daemon.docker(
        "exec", name, "sh", "-c", "echo x > /file; touch /anonymous/file; chown 7:8 /file /anonymous/file"
    )
    source = tmp_path / "copied"
    source.touch()
    daemon.docker("cp", str(source), f"{name}:/anonymous")
    for _ in ("running", "stopped"):
        assert tar_owners(daemon, "cp", f"{name}:/file", "-") == {"file": (7, 8)}
        assert tar_owners(daemon, "cp", f"{name}:/anonymous/.", "-")["./file"] == (7, 8)
        assert tar_owners(daemon, "cp", f"{name}:/anonymous/copied", "-") == {"copied": (0, 0)}
        exported = tar_owners(daemon, "export", name)
        assert exported["file"] == (7, 8)
        assert exported["bin/sh"] == (0, 0)
        assert "A /file" in daemon.docker("diff", name).out
        daemon.docker("stop", "-t", "0", name)
    daemon.docker("commit", name, "t-userns")
    try:
        for options in (("--userns", "host"), ("--userns", "auto")):
            seen = daemon.proa("run", "--rm", *options, "t-userns", "stat", "-c", "%u:%g", "/file", "/bin/sh")
            assert seen.out.split() == ["7:8", "0:0"]
    finally:
        daemon.docker("rmi", "t-userns")


def test_a_range_outlives_the_daemon(daemon: Daemon, name: str) -> None:
    daemon.proa("run", "-d", "--name", name, "--userns", "auto", "busybox", "sleep", "1000")
    before = daemon.docker("exec", name, "cat", "/proc/self/uid_map").out
    daemon.restart(signal.SIGKILL)
    assert daemon.docker("exec", name, "cat", "/proc/self/uid_map").out == before
    other = daemon.proa("run", "--rm", "--userns", "auto", "busybox", "cat", "/proc/self/uid_map").out
    assert other.split()[1] != before.split()[1]
    daemon.docker("restart", "-t", "0", name)
    assert daemon.docker("exec", name, "cat", "/proc/self/uid_map").out == before
    daemon.docker("rm", "-f", name)
    again = daemon.proa("run", "--rm", "--userns", "auto", "busybox", "cat", "/proc/self/uid_map").out
    assert again == before


def test_networks(daemon: Daemon, name: str, runtime: str) -> None:
    daemon.docker("network", "create", name)
    try:
        daemon.proa(
            *("run", "-d", "--runtime", runtime, "--name", name, "--userns", "auto", "-p", "127.0.0.1::80"),
            *(
                "--cap-add",
                "NET_ADMIN",
                "busybox",
                "sh",
                "-c",
                "mkdir /w; echo hello > /w/index.html; httpd -fh /w",
            ),
        )
        port = daemon.docker("port", name, "80").out.rpartition(":")[2].strip()
        fetched = daemon.docker(
            "run", "--rm", "--network", "host", "busybox", "sh", "-c",
            f"for i in 1 2 3 4 5 6 7 8 9; do wget -qO- 127.0.0.1:{port} && break; sleep 1; done",
        )  # fmt: skip
        assert fetched.out == "hello\n"
        daemon.docker("network", "connect", name, name)
        inside = daemon.docker(
            "exec", name, "sh", "-ec",
            "ip link show eth1; ping -c 1 127.0.0.1 >/dev/null; ip link set lo mtu 1400; "
            "cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
        )  # fmt: skip
        assert inside.out.endswith("\n0\n")
    finally:
        daemon.docker("rm", "-f", name)
        daemon.docker("network", "rm", name)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--userns", "keep-id"), "invalid user namespace mode: keep-id: use host, auto or auto:size=N"),
        (("--userns", "auto:size=1"), "a size is from 6 to"),
        (("--userns", "auto", "--privileged"), "privileged mode is incompatible with user namespaces"),
        (("--userns", "auto", "--isolation", "vm"), "HostConfig.UsernsMode is not supported with runtime vm"),
        (
            ("--userns", "auto", "-v", "/proc:/p:idmap"),
            "cannot map the ids of /proc: proc cannot be idmapped",
        ),
    ],
)
def test_refusals(daemon: Daemon, name: str, arguments: tuple[str, ...], sentence: str) -> None:
    done = daemon.proa("run", "--name", name, *arguments, "busybox", "true", check=False)
    assert done.status != 0
    assert sentence in done.err


def test_nothing_is_left(daemon: Daemon) -> None:
    assert daemon.process is not None

    def rounds() -> dict[str, int]:
        for _ in range(3):
            daemon.proa("run", "--rm", "--userns", "auto", "-v", "/v", "busybox", "true")
        return dict(count_host_state(daemon.process.pid, daemon.exec_root, daemon.data_root))  # type: ignore[union-attr]

    rounds()
    time.sleep(1)
    before = rounds()
    deadline = time.monotonic() + 20
    while True:
        after = rounds()
        more = {key: (before[key], after[key]) for key in before if after[key] > before[key]}
        if not more:
            break
        assert time.monotonic() < deadline, more
        time.sleep(0.5)
    assert list((daemon.exec_root / "userns").iterdir()) == []


def test_remap_is_for_all_but_those_that_opt_out(remapped: Daemon, runtime: str, tmp_path: Path) -> None:
    options = ("run", "--rm", "--runtime", runtime)
    made = tmp_path / "made"
    script = "cat /proc/self/uid_map; stat -c %u:%g /made /"
    seen = remapped.docker(*options, "-v", f"{made}:/made", "busybox", "sh", "-c", script).out.split()
    assert seen == ["0", str(REMAPPED), "65536", "0:0", "0:0"]
    assert owner(made) == (REMAPPED, REMAPPED)
    out = remapped.docker(
        *options, "--userns", "host", "--privileged", "busybox", "cat", "/proc/self/uid_map"
    ).out
    assert out.split() == ["0", "0", "4294967295"]
    done = remapped.docker(*options, "--privileged", "busybox", "true", check=False)
    assert "privileged mode is incompatible with user namespaces.  You must run the container" in done.err
    assert "name=userns" in remapped.docker("info", "--format", "{{.SecurityOptions}}").out


def test_remapped_containers_share_namespaces(remapped: Daemon, runtime: str) -> None:
    name = f"t-userns-{runtime}"
    remapped.docker("run", "-d", "--name", name, "--runtime", runtime, "busybox", "sleep", "1000")
    try:
        joins = [f"--{kind}=container:{name}" for kind in ("network", "pid", "ipc")]
        seen = remapped.docker(
            "run", "--rm", "--runtime", runtime, *joins, "busybox", "sh", "-c", "ps; ip addr"
        ).out
        assert "sleep 1000" in seen
        assert "eth0" in seen
    finally:
        remapped.docker("rm", "-f", name)


def test_a_user_without_subordinate_ids(tmp_path: Path) -> None:
    daemon = Daemon(options=("--userns-remap", "nobody"))
    try:
        with pytest.raises(AssertionError, match='no subuid ranges found for user "nobody" in /etc/subuid'):
            daemon.start()
    finally:
        daemon.clean()

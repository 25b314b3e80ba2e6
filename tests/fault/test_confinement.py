# SPDX-License-Identifier: Apache-2.0
"""QEMU as a guest would find it that has broken out of it: nothing to be, and nothing to open."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import LIB, Daemon

GUEST = LIB / "test-guest"
# Run with QEMU's user in QEMU's place in the tree. Prints what it could open, or connect to.
INTRUDER = """
import os, socket, sys
for path in sys.stdin.read().splitlines():
    for flags in (os.O_RDONLY, os.O_WRONLY):
        try:
            os.close(os.open(path, flags | os.O_NONBLOCK))
            print("opened", path)
        except OSError:
            pass
    link = socket.socket(socket.AF_UNIX)
    try:
        link.connect(path)
        print("connected", path)
    except OSError:
        pass
    link.close()
"""
# The same from QEMU's root directory.
ROOTED = f"""
import os, socket, sys
uid = int(sys.argv[2])
os.chroot(f"/proc/{{sys.argv[1]}}/root")
os.chdir("/")
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
{INTRUDER}
"""


@pytest.fixture(scope="module")
def pids(daemon: Daemon) -> Iterator[dict[str, int]]:
    """A container of the VM hull and a full machine; their QEMUs."""
    name = f"f-{uuid.uuid4().hex[:8]}"
    daemon.base.chmod(0o711)  # as what is above the real roots: all may pass
    run = ("run", "-d", "--name", name, "--isolation", "vm", "-v", "/data", "busybox", "sleep", "600")
    daemon.docker(*run)
    options = ("--headless", "--memory", "64m", "--network", "none", "--disk", "16m", "--start")
    kernel = ("--kernel", str(GUEST / "vmlinuz"), "--initrd", str(GUEST / "initrd"))
    daemon.proa("vm", "create", "--name", name, *options, *kernel)
    try:
        yield {
            "container": json.loads(daemon.docker("inspect", name).out)[0]["State"]["Pid"],
            "machine": json.loads(daemon.proa("vm", "inspect", name).out)[0]["Pid"],
        }
    finally:
        daemon.docker("rm", "-f", "-v", name, check=False)
        daemon.proa("vm", "rm", "-f", name, check=False)
        daemon.base.chmod(0o700)


def status_of(task: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in (task / "status").read_text().splitlines())
    return {key: value.strip() for key, _, value in lines}


@pytest.mark.parametrize("kind", ["container", "machine"])
def test_it_is_nobody(pids: dict[str, int], kind: str) -> None:
    """Every thread: a user that nobody else is, no capability, no way to any, a filter on its calls."""
    for task in Path(f"/proc/{pids[kind]}/task").iterdir():
        status = status_of(task)
        ids = {*status["Uid"].split(), *status["Gid"].split(), *status["Groups"].split()}
        assert len(ids) == 1
        assert int(ids.pop()) >= 0x7000_0000
        assert {status[key].strip("0") for key in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {""}
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    others = {kind: status_of(Path(f"/proc/{pid}"))["Uid"] for kind, pid in pids.items()}
    assert len(set(others.values())) == len(others)


@pytest.mark.parametrize("kind", ["container", "machine"])
def test_it_has_only_its_own_open(daemon: Daemon, pids: dict[str, int], kind: str) -> None:
    pid = pids[kind]
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(fd)  # noqa: PTH115  # may be no path
        if not target.startswith("/") or target in ("/dev/null", "/dev/net/tun", "/dev/kvm"):
            continue
        own = ("qemu.log", "console.log")
        assert target in words or target.endswith(own), target  # named on its command line
        assert str(daemon.base) in target or str(GUEST) in target, target


@pytest.mark.parametrize("kind", ["container", "machine"])
def test_there_is_nothing_to_open(daemon: Daemon, pids: dict[str, int], kind: str) -> None:
    """All that the engine has, by name: a thief that knows each path of every layer, disk and socket."""
    uid = status_of(Path(f"/proc/{pids[kind]}"))["Uid"].split()[0]
    roots = (daemon.data_root, daemon.exec_root)
    paths = [str(path) for root in roots for path in root.rglob("*") if path.is_socket() or path.is_file()]
    paths.append(str(daemon.socket))
    assert any(path.endswith(".erofs") for path in paths)
    assert any(path.endswith("/monitor") for path in paths)
    assert any(path.endswith("/mem") for path in paths)
    become = ("setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", "--no-new-privs")
    done = subprocess.run(
        [*become, "--inh-caps=-all", "--bounding-set=-all", "/usr/bin/python3", "-c", INTRUDER],
        input="\n".join(paths),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = {line.partition(" ")[2] for line in done.stdout.splitlines()}
    harmless = {str(daemon.data_root / "engine-id")}  # every client is told it
    assert found <= harmless


@pytest.mark.parametrize("kind", ["container", "machine"])
def test_it_sees_no_file_system(daemon: Daemon, pids: dict[str, int], kind: str) -> None:
    """In its own root directory not even the names are there."""
    uid = status_of(Path(f"/proc/{pids[kind]}"))["Uid"].split()[0]
    paths = ("/", ".", "..", "/etc/passwd", "/proc/1/environ", "/monitor", "/dev/kvm", str(daemon.socket))
    done = subprocess.run(
        ["/usr/bin/python3", "-c", ROOTED, str(pids[kind]), uid],
        input="\n".join(paths),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

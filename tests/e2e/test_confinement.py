# SPDX-License-Identifier: Apache-2.0
"""What a guest that has taken over its QEMU would find: looked at from outside, and tried from inside."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon

# Run as that process would run code: in its root directory, with its ids, without capabilities.
ATTEMPT = """
import os, sys
pid, uid = int(sys.argv[1]), int(sys.argv[2])
os.chroot(f"/proc/{pid}/root")
os.chdir("/")
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
found = []
for name in ("/", ".", "..", "/etc/passwd", "/proc/1/environ", *sys.argv[3:]):
    for flags in (os.O_RDONLY, os.O_WRONLY):
        try:
            os.close(os.open(name, flags))
            found.append(name)
        except OSError:
            pass
    try:
        found += os.listdir(name)
    except OSError:
        pass
print(found)
"""


@pytest.fixture(scope="module")
def guests(daemon: Daemon) -> Iterator[dict[str, int]]:
    """The QEMUs of a container and of a full machine, by what they serve."""
    daemon.docker("run", "-d", "--name", "confined", "--isolation", "vm", "busybox", "sleep", "1000")
    daemon.proa("vm", "create", "--name", "confined", "--headless", "-m", "64m", "--disk", "8m", "--start")
    container = daemon.docker("inspect", "-f", "{{.State.Pid}}", "confined").out
    machine = daemon.proa("vm", "inspect", "-f", "{{.Pid}}", "confined").out
    yield {"container": int(container), "machine": int(machine)}
    daemon.docker("rm", "-f", "confined")
    daemon.proa("vm", "rm", "-f", "confined")


@pytest.mark.parametrize("kind", ["container", "machine"])
def test_a_qemu_has_no_rights(daemon: Daemon, guests: dict[str, int], kind: str) -> None:
    proc = Path(f"/proc/{guests[kind]}")
    status = dict(
        line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line
    )
    ids = set(status["Uid"].split() + status["Gid"].split())
    assert len(ids) == 1 and int(ids.pop()) >= 0x7000_0000
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["Seccomp"] == "2"
    assert status["Groups"].split() in ([], [status["Gid"].split()[0]])


@pytest.mark.parametrize("kind", ["container", "machine"])
def test_a_qemu_has_nothing_to_open(daemon: Daemon, guests: dict[str, int], kind: str) -> None:
    pid = guests[kind]
    uid = Path(f"/proc/{pid}").joinpath("status").read_text().partition("Uid:\t")[2].split()[0]
    host = [str(path) for root in (daemon.data_root, daemon.exec_root) for path in root.rglob("*")]
    tried = subprocess.run(
        [sys.executable, "-I", "-c", ATTEMPT, str(pid), uid, *host[:5000]],
        capture_output=True,
        text=True,
        check=True,
    )
    assert tried.stdout == "[]\n"


@pytest.mark.parametrize("kind", ["container", "machine"])
def test_a_qemu_has_open_what_is_its_own(daemon: Daemon, guests: dict[str, int], kind: str) -> None:
    """Of the data root only its own disks, layers, firmware and logs; nothing of another one's."""
    others = {"container": "machine", "machine": "container"}
    opened, foreign = (_files(guests[one]) for one in (kind, others[kind]))
    assert opened
    shared = {path for path in opened & foreign if not path.startswith(("/dev/", "anon_inode:"))}
    assert not shared
    roots = (str(daemon.data_root), str(daemon.exec_root))
    strangers = {path for path in opened if not path.startswith((*roots, "/dev/", "anon_inode:", "/memfd:"))}
    assert not strangers


def _files(pid: int) -> set[str]:
    """Return what a process has open, without pipes and sockets, which have no names."""
    links = [str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()]
    return {link for link in links if not link.startswith(("socket:", "pipe:"))}

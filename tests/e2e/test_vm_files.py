# SPDX-License-Identifier: Apache-2.0
"""``docker cp``, ``diff``, ``export`` and ``commit`` of a virtual machine give what they give of a container.

One of each, which do the same, for the whole module; first running, then ended.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.daemon import DOCKER, Daemon

SCRIPT = (
    "mkdir -p /d/sub; echo 1 >/d/f; ln -s /d /l; ln -s ../../x /d/out; ln /d/f /d/sub/g; chown 7:8 /d/f;"
    "chmod 4711 /d/f; mkfifo /d/p; mknod /d/n c 1 3; rm /bin/watch; rm -r /root; mkdir /root;"
    "echo 2 >/root/new; echo v >/v/inside;"
    "dd if=/dev/zero of=/d/holes bs=1 count=1 seek=20M 2>/dev/null; dd if=/bin/busybox of=/d/big 2>/dev/null;"
    "touch -h -d @1234567 /d/* /d/sub/* /d/sub /d /l /root/* /root /bin; touch /tmp/ready; sleep 1000"
)


@dataclass
class Pair:
    daemon: Daemon
    container: str = "vmf-container"
    vm: str = "vmf-vm"

    def both(self, run: Sequence[str]) -> tuple[str, str]:
        """What a command, with NAME for the container, says of either."""
        said = []
        for name in (self.container, self.vm):
            done = self.daemon.docker(*(word.replace("NAME", name) for word in run), check=False)
            # The client says in its log how far it came with what nobody wanted to read.
            err = "".join(line for line in done.err.splitlines(True) if "level=error" not in line)
            said.append(f"{done.status} {done.out} {err}".replace(name, "NAME"))
        return said[0], said[1]

    def tars(self, *run: str) -> tuple[list[object], list[object]]:
        """The members of the archives that a command writes."""
        found = []
        for name in (self.container, self.vm):
            command = [DOCKER, "--host", self.daemon.host, *(word.replace("NAME", name) for word in run)]
            done = subprocess.run(command, capture_output=True, check=True, timeout=60, env=self.daemon.env)
            found.append(_members(done.stdout))
        return found[0], found[1]


def _members(archive: bytes) -> list[object]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return [
            (
                one.name,
                one.type,
                one.mode,
                one.uid,
                one.gid,
                one.size,
                one.linkname,
                one.devmajor,
                one.devminor,
            )
            + ((one.mtime,) if one.name.startswith(("d", "./d", "l", "root")) else ())
            for one in tar.getmembers()
        ]


@pytest.fixture(scope="module")
def pair(daemon: Daemon) -> Iterator[Pair]:
    pair = Pair(daemon)
    for name, hull in ((pair.container, "container"), (pair.vm, "vm")):
        daemon.docker(
            "run", "-d", "--name", name, "--isolation", hull, "-v", f"{name}:/v", "--tmpfs", "/t",
            "busybox", "sh", "-c", SCRIPT,
        )  # fmt: skip
    deadline = time.monotonic() + 60
    for name in (pair.container, pair.vm):
        while daemon.docker("exec", name, "test", "-e", "/tmp/ready", check=False).status != 0:
            assert time.monotonic() < deadline, daemon.log()
    yield pair
    daemon.docker("rm", "-f", "-v", pair.container, pair.vm, check=False)
    daemon.docker("volume", "rm", "-f", pair.container, pair.vm, check=False)


@pytest.fixture(scope="module", params=["running", "ended"])
def state(pair: Pair, request: pytest.FixtureRequest) -> str:
    if request.param == "ended":
        for name in (pair.container, pair.vm):
            pair.daemon.docker("exec", name, "touch", "-d", "@1234567", "/d", "/root")
        pair.daemon.docker("kill", pair.container, pair.vm)
        pair.daemon.docker("wait", pair.container, pair.vm)
    return str(request.param)


@pytest.mark.usefixtures("state")
class TestSame:
    def test_archives(self, pair: Pair, state: str) -> None:
        more = ("/d/.", "/d/f", "/l", "/l/", "/root/new") if state == "running" else ()
        for path in ("/d", "/v", *more):
            container, vm = pair.tars("cp", f"NAME:{path}", "-")
            assert vm == container, path

    def test_export(self, pair: Pair) -> None:
        container, vm = pair.tars("export", "NAME")
        ours = ("d", "l", "root", "bin", "usr")  # in /etc lie mount points
        assert [one for one in vm if one[0].split("/")[0] in ours] == [  # type: ignore[index]
            one
            for one in container
            if one[0].split("/")[0] in ours  # type: ignore[index]
        ]

    def test_diff(self, pair: Pair) -> None:
        container, vm = pair.both(["diff", "NAME"])
        assert vm == container
        assert "\nA /d/sub/g\n" in vm
        assert "\nD /bin/watch\n" in vm

    def test_refusals(self, pair: Pair, state: str) -> None:
        if state == "ended":  # the same code, and a machine for each
            return
        for run in (["cp", "NAME:/nope", "-"], ["cp", "NAME:/d/f/x", "-"], ["cp", __file__, "NAME:/nope/x"],
                    ["cp", __file__, "NAME:/d/f/"]):  # fmt: skip
            container, vm = pair.both(run)
            assert vm == container, run

    def test_in(self, pair: Pair, tmp_path: Path, state: str) -> None:
        source = tmp_path / state
        (source / "deep").mkdir(parents=True)
        (source / "deep" / "f").write_text("3\n" * 100_000)
        (source / "link").symlink_to("deep/f")
        os.link(source / "deep" / "f", source / "hard")
        with (source / "holes").open("wb") as file:
            file.truncate(5 << 20)
        os.chown(source / "deep" / "f", 12, 34)
        (source / "deep" / "f").chmod(0o4750)
        os.utime(source / "deep" / "f", (0, 1_500_000_000))
        for target in ("/l", "/v"):
            container, vm = pair.both(["cp", str(source), f"NAME:{target}"])
            assert (container, vm[:2]) == (vm, "0 "), target
        container_tar, vm_tar = pair.tars("cp", f"NAME:/d/{state}", "-")
        assert vm_tar == container_tar
        assert len(vm_tar) == 6

    def test_commit(self, pair: Pair, state: str) -> None:
        image = f"vmf-{state}"
        pair.daemon.docker("commit", "-c", "CMD cat /d/sub/g", pair.vm, image)
        try:
            assert pair.daemon.docker("run", "--rm", image).out == "1\n"
            out = pair.daemon.docker("run", "--rm", image, "sh", "-c", "ls /root /bin/watch 2>&1 || true").out
            assert out.splitlines() == ["ls: /bin/watch: No such file or directory", "/root:", "new"]
        finally:
            pair.daemon.docker("rmi", "-f", image)


def test_what_was_copied_before_the_first_start(daemon: Daemon, name: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("here\n")
    daemon.docker("create", "--isolation", "vm", "--name", name, "busybox", "cat", "/f")
    daemon.docker("cp", str(tmp_path / "f"), f"{name}:/f")
    assert daemon.docker("start", "-a", name).out == "here\n"
    assert daemon.docker("diff", name).out == "A /f\n"

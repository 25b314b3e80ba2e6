# SPDX-License-Identifier: Apache-2.0
"""``docker cp``, ``diff``, ``export`` and ``commit``, as their users know them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import DOCKER, Daemon


@pytest.fixture(params=["docker", "proa"])
def client(daemon: Daemon, request: pytest.FixtureRequest) -> str:
    """The same test with both command lines."""
    return str(request.param)


def use(daemon: Daemon, client: str, *arguments: str, **options: object) -> str:
    return getattr(daemon, client)(*arguments, **options).out  # type: ignore[no-any-return]


def tar_of(daemon: Daemon, *arguments: str) -> tarfile.TarFile:
    """What a command writes to its standard output, as an archive."""
    command = [DOCKER, "--host", daemon.host, *arguments]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60, env=daemon.env)
    return tarfile.open(fileobj=io.BytesIO(done.stdout))


@pytest.fixture
def running(daemon: Daemon, name: str) -> str:
    """A container that has changed something and goes on."""
    script = (
        "mkdir -p /d/sub; echo 1 >/d/f; ln -s /d /l; ln /d/f /d/sub/g; chown 7:8 /d/f; chmod 4711 /d/f;"
        "rm /bin/watch; rm -r /root; mkdir /root; echo 2 >/root/new; chmod 700 /var; touch /ready; sleep 1000"
    )
    daemon.docker("run", "-d", "--name", name, "busybox", "sh", "-c", script)
    wait_for(daemon, name, "/ready")
    return name


def wait_for(daemon: Daemon, name: str, path: str) -> None:
    deadline = time.monotonic() + 30
    while daemon.docker("exec", name, "test", "-e", path, check=False).status != 0:
        assert time.monotonic() < deadline, daemon.log()


class TestCopy:
    def test_out(self, daemon: Daemon, running: str, client: str, tmp_path: Path) -> None:
        use(daemon, client, "cp", f"{running}:/d", str(tmp_path / "new"))
        use(daemon, client, "cp", "-L", f"{running}:/l", str(tmp_path))
        use(daemon, client, "cp", f"{running}:/d/f", str(tmp_path / "file"))
        assert (tmp_path / "new" / "sub" / "g").read_text() == "1\n"
        assert (tmp_path / "new" / "f").stat().st_nlink == 2
        assert (tmp_path / "l" / "f").read_text() == "1\n"
        assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o4711

    def test_in(self, daemon: Daemon, running: str, client: str, tmp_path: Path) -> None:
        source = tmp_path / "source"
        (source / "deep").mkdir(parents=True)
        (source / "deep" / "f").write_text("3\n")
        (source / "link").symlink_to("deep/f")
        os.chown(source / "deep" / "f", 12, 34)
        os.utime(source / "deep" / "f", (0, 1_500_000_000))
        use(daemon, client, "cp", str(source), f"{running}:/l")
        use(daemon, client, "cp", f"{source}/.", f"{running}:/into")
        out = daemon.docker("exec", running, "sh", "-c",
                            "cat /d/source/link; stat -c '%u:%g %Y' /into/deep/f").out  # fmt: skip
        assert out.splitlines() == ["3", "12:34 1500000000"]

    def test_as_the_containers_user(self, daemon: Daemon, name: str, client: str, tmp_path: Path) -> None:
        (tmp_path / "f").touch()
        os.chown(tmp_path / "f", 12, 34)
        daemon.docker("run", "-d", "--name", name, "-u", "nobody", "busybox", "sleep", "1000")
        use(daemon, client, "cp", "-a", str(tmp_path / "f"), f"{name}:/tmp/f")
        assert daemon.docker("exec", name, "stat", "-c", "%u:%g", "/tmp/f").out == "65534:65534\n"

    def test_stopped_and_never_started(self, daemon: Daemon, name: str, client: str, tmp_path: Path) -> None:
        (tmp_path / "f").write_text("4\n")
        (tmp_path / "bind").mkdir()
        daemon.docker("create", "--name", name, "-v", f"{name}:/data", "-v", f"{tmp_path}/bind:/bind:ro",
                      "busybox", "cat", "/f", "/data/f")  # fmt: skip
        try:
            use(daemon, client, "cp", str(tmp_path / "f"), f"{name}:/")
            use(daemon, client, "cp", str(tmp_path / "f"), f"{name}:/data")
            refused = getattr(daemon, client)("cp", str(tmp_path / "f"), f"{name}:/bind", check=False)
            assert "mounted volume is marked read-only" in refused.err
            assert daemon.docker("start", "-a", name).out == "4\n4\n"
            assert [one.name for one in tar_of(daemon, "cp", f"{name}:/data", "-")] == ["data", "data/f"]
            assert list((tmp_path / "bind").iterdir()) == []
            mounts = Path("/proc/self/mountinfo").read_text()
            assert str(daemon.exec_root / "rootfs") not in mounts or _gone(daemon.exec_root / "rootfs", name)
        finally:
            daemon.docker("rm", "-f", name)
            daemon.docker("volume", "rm", name)

    def test_what_is_mounted_is_seen(self, daemon: Daemon, name: str, tmp_path: Path) -> None:
        daemon.docker("run", "-d", "--name", name, "--read-only", "--tmpfs", "/t", "-h", "boat", "busybox",
                      "sh", "-c", "echo 5 >/t/f; sleep 1000")  # fmt: skip
        wait_for(daemon, name, "/t/f")
        (tmp_path / "f").write_text("6\n")
        with tar_of(daemon, "cp", f"{name}:/etc/hostname", "-") as tar:
            file = tar.extractfile("hostname")
            assert file is not None and file.read() == b"boat\n"
        daemon.docker("cp", str(tmp_path / "f"), f"{name}:/t/g")
        assert daemon.docker("exec", name, "cat", "/t/f", "/t/g").out == "5\n6\n"
        refused = daemon.docker("cp", str(tmp_path / "f"), f"{name}:/", check=False)
        assert "container rootfs is marked read-only" in refused.err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("cp", "{}:/nope", "."), "Could not find the file /nope in container {}"),
            (("cp", "nope-x:/d", "."), "No such container: nope-x"),
            (("cp", "{}:/proc/cpuinfo", "-"), "kernel file system"),
            (("cp", "/etc/passwd", "{}:/no/where/x"), "Could not find the file /no/where in container {}"),
            (("cp", "/etc", "{}:/d/f"), "cannot copy directory"),
            (("cp", "/etc/passwd", "{}:/new/"), "no such directory"),
            (("cp", "{}:/d", "{}:/e"), "copying between containers is not supported"),
            (("cp", "/a", "/b"), "must specify at least one container source"),
        ],
    )
    def test_errors(
        self, daemon: Daemon, running: str, client: str, arguments: tuple[str, ...], message: str
    ) -> None:
        words = [word.replace("{}", running) for word in arguments]
        result = getattr(daemon, client)(*words, check=False)
        assert result.status == 1
        assert message.replace("{}", running) in result.err


def _gone(directory: Path, name: str) -> bool:
    """Unmounting goes on behind the answer."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not any(name in path.name for path in directory.iterdir()):
            return True
    return False


class TestRaces:
    """A process inside swaps a directory for a link to a path of the host while files are copied."""

    @pytest.fixture
    def swapping(self, daemon: Daemon, name: str, tmp_path: Path) -> Iterator[Path]:
        victim = tmp_path / "victim"
        victim.mkdir()
        (victim / "secret").write_text("of the host")
        script = (
            "mkdir -p /w/d/d; echo 1 >/w/d/d/f; touch /ready;"
            f"while :; do mv /w/d /w/e; ln -s {victim} /w/d; rm /w/d; mv /w/e /w/d;"
            f"mv /w/d/d /w/d/e; ln -s {victim} /w/d/d; rm /w/d/d; mv /w/d/e /w/d/d; done"
        )
        daemon.docker("run", "-d", "--name", name, "busybox", "sh", "-c", script)
        wait_for(daemon, name, "/ready")
        yield victim
        assert [path.name for path in victim.iterdir()] == ["secret"]
        assert (victim / "secret").read_text() == "of the host"

    def test_out_and_in(self, daemon: Daemon, name: str, swapping: Path, tmp_path: Path) -> None:
        source = tmp_path / "source"
        (source / "d" / "d").mkdir(parents=True)
        for number in range(20):
            (source / "d" / "d" / f"new{number}").write_text("x")
        for _ in range(3):
            for path in ("/w", "/w/d", "/w/d/d/f"):
                command = [DOCKER, "--host", daemon.host, "cp", f"{name}:{path}", "-"]
                done = subprocess.run(command, capture_output=True, check=False, timeout=60, env=daemon.env)
                assert b"secret" not in done.stdout
                assert b"of the host" not in done.stdout
            daemon.docker("cp", f"{source}/.", f"{name}:/w", check=False)
            daemon.docker("cp", f"{source}/d/d/.", f"{name}:/w/d/d", check=False)


class TestChanges:
    def test_diff(self, daemon: Daemon, running: str, client: str) -> None:
        assert use(daemon, client, "diff", running).splitlines() == [
            "C /bin",
            "D /bin/watch",
            "A /d",
            "A /d/f",
            "A /d/sub",
            "A /d/sub/g",
            "A /l",
            "A /ready",
            "C /root",
            "A /root/new",
            "C /var",
        ]

    def test_a_new_one_has_none(self, daemon: Daemon, name: str, client: str) -> None:
        daemon.docker("run", "--name", name, "busybox", "true")
        assert use(daemon, client, "diff", name) == ""

    def test_export(self, daemon: Daemon, running: str, client: str, tmp_path: Path) -> None:
        use(daemon, client, "export", "-o", str(tmp_path / "tar"), running)
        with tarfile.open(tmp_path / "tar") as tar:
            names = tar.getnames()
            assert "bin/watch" not in names
            assert {"d/f", "root/new", "bin/sh"} <= set(names)
            assert names == [one.name for one in tar_of(daemon, "export", running)]
            file = tar.getmember("d/f")
            assert (file.uid, file.gid, file.mode) == (7, 8, 0o4711)
        out = daemon.docker("import", str(tmp_path / "tar"), f"{running}:imported").out
        try:
            script = "ls /d; cat /root/new"
            out = daemon.docker("run", "--rm", f"{running}:imported", "sh", "-c", script).out
            assert out.split() == ["f", "sub", "2"]
        finally:
            daemon.docker("rmi", f"{running}:imported")


class TestCommit:
    @pytest.fixture
    def image(self, daemon: Daemon, name: str) -> Iterator[str]:
        yield f"{name}:made"
        daemon.docker("rmi", "-f", f"{name}:made", check=False)

    def test_runs_in_both_hulls(self, daemon: Daemon, running: str, client: str, image: str) -> None:
        script = "echo $A; cat /d/f /root/new; ls -d /bin/watch; stat -c '%u:%g %a' /d/f"
        made = use(
            daemon, client, "commit", "-m", "a comment", "-a", "somebody",
            "-c", f"CMD {json.dumps(['sh', '-c', script])}", "-c", "ENV A=b", running, image,
        )  # fmt: skip
        inspected = json.loads(daemon.docker("image", "inspect", image).out)[0]
        assert inspected["Id"] == made.strip()
        assert (inspected["Comment"], inspected["Author"]) == ("a comment", "somebody")
        assert len(inspected["RootFS"]["Layers"]) == 2
        history = daemon.docker("history", "--no-trunc", "--format", "{{.Comment}} {{.CreatedBy}}", image).out
        assert history.startswith("a comment sh -c mkdir -p /d/sub")
        for hull in ("container", "vm"):
            out = daemon.docker("run", "--rm", "--isolation", hull, image, check=False).out
            assert out.splitlines() == ["b", "1", "2", "7:8 4711"]
        assert daemon.docker("inspect", "-f", "{{.State.Status}}", running).out == "running\n"

    def test_saved_and_loaded(self, daemon: Daemon, running: str, image: str, tmp_path: Path) -> None:
        daemon.docker("commit", running, image)
        before = json.loads(daemon.docker("image", "inspect", image).out)[0]
        archive = tmp_path / "tar"
        daemon.docker("save", "-o", str(archive), image, "busybox")
        daemon.docker("rmi", image)
        assert f"Loaded image: {image}" in daemon.docker("load", "-i", str(archive)).out
        after = json.loads(daemon.docker("image", "inspect", image).out)[0]
        assert (after["Id"], after["RootFS"]) == (before["Id"], before["RootFS"])
        assert daemon.docker("run", "--rm", image, "cat", "/d/f").out == "1\n"
        # Other tools read both layouts of it.
        for layout in (f"docker-archive:{archive}:{image}", f"oci-archive:{archive}:made"):
            done = subprocess.run(
                ["skopeo", "--insecure-policy", "inspect", "--raw", "--config", layout],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["rootfs"]["diff_ids"] == before["RootFS"]["Layers"]

    def test_bad_requests(self, daemon: Daemon, running: str, client: str) -> None:
        for arguments, message in (
            (("-c", "RUN x", running), "RUN is not a valid change command"),
            ((running, "Upper"), "must be lowercase"),
            (("nope-x",), "No such container: nope-x"),
        ):
            result = getattr(daemon, client)("commit", *arguments, check=False)
            assert (result.status, message in result.err) == (1, True), result.err
        assert daemon.docker("inspect", "-f", "{{.State.Status}}", running).out == "running\n"

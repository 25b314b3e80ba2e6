# SPDX-License-Identifier: Apache-2.0
"""``proa snapshot`` as a user meets it: kept, gone on with, moved, and refused when it is not what it was."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.daemon import Daemon

PATIENCE_S = 60.0
COUNTER = "echo kept >/file; i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"
SNAPSHOT, SOURCE, BACK = "snap-a", "snap-source", "snap-back"


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@dataclass
class Saved:
    daemon: Daemon
    archive: Path

    def counts(self, name: str) -> list[int]:
        return [int(line) for line in self.daemon.docker("logs", name).out.split()]

    def names(self) -> list[str]:
        return self.daemon.proa("snapshot", "ls", "-q").out.split()


@pytest.fixture(scope="module")
def saved(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    saved = Saved(daemon, tmp_path_factory.mktemp("archive") / "a.tar")
    run = ("run", "-d", "--name", SOURCE, "--isolation", "vm", "-p", "127.0.0.1::80")
    daemon.docker(*run, "busybox", "sh", "-c", COUNTER)
    try:
        until(lambda: len(saved.counts(SOURCE)) > 4, "it counts")
        assert daemon.proa("snapshot", "create", SOURCE, SNAPSHOT).out == f"{SNAPSHOT}\n"
        daemon.proa("snapshot", "export", SNAPSHOT, "-o", str(saved.archive))
        yield saved
    finally:
        daemon.docker("rm", "-f", SOURCE, BACK, check=False)
        for name in saved.names():
            daemon.proa("snapshot", "rm", name, check=False)


def test_it_is_gone_on_with_after_everything_else_is_gone(saved: Saved) -> None:
    """The source has gone on and been changed meanwhile; the daemon and the template were replaced."""
    daemon = saved.daemon
    daemon.docker("exec", SOURCE, "sh", "-c", "echo later >/file")
    until(lambda: len(saved.counts(SOURCE)) > 12, "the source goes on")
    listed = json.loads(daemon.proa("snapshot", "ls", SOURCE, "--format", "json").out)
    assert (listed["Name"], listed["Container"], listed["Image"]) == (SNAPSHOT, SOURCE, "busybox")
    daemon.stop()
    for template in (daemon.data_root / "templates").iterdir():
        shutil.rmtree(template)
    daemon.start()
    assert "already in use" in daemon.proa("snapshot", "restore", SNAPSHOT, check=False).err
    identifier = daemon.proa("snapshot", "restore", SNAPSHOT, "--name", BACK).out.strip()
    assert daemon.docker("inspect", "-f", "{{.Id}} {{.State.Status}}", BACK).out == f"{identifier} running\n"
    until(lambda: len(saved.counts(BACK)) > 3, "it counts on")
    counts = saved.counts(BACK)
    assert counts[0] > 4
    assert counts == list(range(counts[0], counts[-1] + 1))
    assert daemon.docker("exec", BACK, "cat", "/file").out == "kept\n"
    assert daemon.docker("exec", SOURCE, "cat", "/file").out == "later\n"
    address = "{{.NetworkSettings.IPAddress}}"
    assert (
        daemon.docker("inspect", "-f", address, BACK).out
        != daemon.docker("inspect", "-f", address, SOURCE).out
    )
    random = {
        daemon.docker("exec", name, "sh", "-c", "head -c 16 /dev/urandom | md5sum").out
        for name in (SOURCE, BACK)
    }
    assert len(random) == 2
    daemon.docker("rm", "-f", BACK)


def test_an_archive_is_taken_in_whole_or_not_at_all(saved: Saved, tmp_path: Path) -> None:
    daemon = saved.daemon
    assert daemon.proa("snapshot", "import", str(saved.archive), "snap-b").out == "snap-b\n"
    daemon.proa("snapshot", "restore", "snap-b", "--name", BACK)
    until(lambda: len(saved.counts(BACK)) > 3, "it counts on")
    daemon.docker("rm", "-f", BACK)
    content = bytearray(saved.archive.read_bytes())
    content[len(content) // 2] ^= 1
    for name, broken in (("cut", content[:-5000]), ("changed", content), ("none", b"hello\n")):
        (tmp_path / name).write_bytes(broken)
        refused = daemon.proa("snapshot", "import", str(tmp_path / name), check=False)
        assert refused.status == 1
        assert "snapshot" in refused.err
    assert saved.names() == [SNAPSHOT, "snap-b"]
    refused = daemon.docker("rmi", "busybox", check=False)
    assert "is using its referenced image" in refused.err
    assert len(list((daemon.data_root / "snapshots").iterdir())) == 2


def test_what_is_not_what_it_was_does_not_go_on(saved: Saved) -> None:
    daemon = saved.daemon
    daemon.proa("snapshot", "import", str(saved.archive), "snap-c")
    directory = daemon.data_root / "snapshots" / "snap-c"
    description = json.loads((directory / "snapshot.json").read_text())
    description["machine"]["origin"]["qemu"] = "9.9"
    (directory / "snapshot.json").write_text(json.dumps(description))
    refused = daemon.proa("snapshot", "restore", "snap-c", "--name", BACK, check=False)
    assert "was made with QEMU 9.9, this host has" in refused.err
    with (directory / "pages").open("r+b") as pages:
        pages.write(b"X" * 100)
    refused = daemon.proa("snapshot", "restore", "snap-c", "--name", BACK, check=False)
    assert "damaged: pages is not what was saved" in refused.err
    assert daemon.docker("ps", "-aq", "--filter", f"name={BACK}").out == ""
    assert daemon.proa("snapshot", "rm", "snap-c", "nothing", check=False).err == (
        "Error response from daemon: No such snapshot: nothing\n"
    )

# SPDX-License-Identifier: Apache-2.0
"""conmon, crun and QEMU fail, stall or die on request: the user is told, and nothing is left behind.

The daemon finds programs of ours in front of the real ones. Each runs the real one, unless a file named after
one of its arguments says otherwise.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault.footprint import assert_unchanged, footprint_at_rest
from tests.support.daemon import Daemon

TOOLS = ("conmon", "crun", "qemu-system-x86_64")
FAIL = "echo 'out of luck' >&2; exit 1"
DIE = "kill -9 $$"
STALL = "sleep 1; exit 1"


class Broken:
    """Breaks the calls of a tool that have a certain argument ("any": every call)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def install(self) -> None:
        for tool in TOOLS:
            real = shutil.which(tool)
            script = self.directory / tool
            script.write_text(
                "#!/bin/sh\n"
                f'for word in any "$@"; do control="{self.directory}/{tool}-$word"\n'
                '  case "$word" in */*) continue;; esac\n'
                '  if [ -e "$control" ]; then . "$control"; fi\n'
                "done\n"
                f'exec {real} "$@"\n'
            )
            script.chmod(0o755)

    def when(self, tool: str, word: str, how: str) -> None:
        (self.directory / f"{tool}-{word}").write_text(how)

    def mend(self) -> None:
        for control in self.directory.glob("*-*"):
            if control.name not in TOOLS:
                control.unlink()


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Broken]]:
    broken = Broken(tmp_path_factory.mktemp("tools"))
    broken.directory.chmod(0o755)
    broken.install()
    daemon = Daemon(options=("--pool", "0"))  # a machine that waits needs no tool to start
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{broken.directory}:{path}"
    try:
        daemon.start()
    finally:
        os.environ["PATH"] = path
    try:
        daemon.load_busybox()
        for hull in ("container", "vm"):
            daemon.docker("run", "--rm", "--isolation", hull, "busybox", "true")
        yield daemon, broken
    finally:
        broken.mend()
        daemon.clean()


@pytest.fixture
def broken(wrapped: tuple[Daemon, Broken]) -> Iterator[Broken]:
    """All is mended after the test, and as it was before it."""
    daemon, broken = wrapped
    before = footprint_at_rest(daemon)
    yield broken
    broken.mend()
    assert_unchanged(daemon, before)


@pytest.fixture
def daemon(wrapped: tuple[Daemon, Broken]) -> Daemon:
    return wrapped[0]


@pytest.fixture
def name() -> str:
    return f"f-{uuid.uuid4().hex[:12]}"


def exited(daemon: Daemon, name: str) -> dict[str, object]:
    """The container's state once it has ended."""
    deadline = time.monotonic() + 30
    while True:
        state: dict[str, object] = json.loads(daemon.docker("inspect", name).out)[0]["State"]
        if state["Status"] == "exited":
            return state
        assert time.monotonic() < deadline, state
        time.sleep(0.05)


@pytest.mark.parametrize("how", [FAIL, DIE, STALL], ids=["fails", "dies", "stalls"])
@pytest.mark.parametrize(
    ("hull", "tool", "word"),
    [
        ("container", "conmon", "any"),
        ("container", "crun", "create"),
        ("vm", "qemu-system-x86_64", "any"),
    ],
)
def test_a_start(daemon: Daemon, broken: Broken, hull: str, tool: str, word: str, how: str) -> None:
    broken.when(tool, word, how)
    run = ("run", "--rm", "--isolation", hull, "-v", "/data", "busybox", "echo", "hi")
    result = daemon.docker(*run, check=False)
    assert (result.status, result.out) == (125, ""), result
    assert "Error response from daemon: " in result.err
    if how == FAIL:
        assert "out of luck" in result.err
    broken.mend()
    assert daemon.docker(*run).out == "hi\n"


def test_an_exec(daemon: Daemon, broken: Broken, name: str) -> None:
    daemon.docker("run", "-d", "--name", name, "busybox", "sleep", "600")
    for how in (FAIL, DIE):
        broken.when("crun", "exec", how)
        assert daemon.docker("exec", name, "true", check=False).status != 0
    broken.mend()
    assert daemon.docker("exec", name, "echo", "hi").out == "hi\n"
    daemon.docker("rm", "-f", name)


@pytest.mark.parametrize("word", ["kill", "delete"])
@pytest.mark.parametrize("how", [FAIL, DIE], ids=["fails", "dies"])
def test_an_end(daemon: Daemon, broken: Broken, name: str, word: str, how: str) -> None:
    daemon.docker(
        "run",
        "-d",
        "--name",
        name,
        "busybox",
        "sh",
        "-c",
        "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done",
    )
    while daemon.docker("logs", name).out != "ready\n":
        time.sleep(0.02)
    broken.when("crun", word, how)
    daemon.docker("stop", "-t", "5", name, check=False)
    broken.mend()
    daemon.docker("stop", "-t", "5", name)
    assert exited(daemon, name)["ExitCode"] == 5
    daemon.docker("start", name)
    daemon.docker("rm", "-f", name)


@pytest.mark.parametrize("hull", ["container", "vm"])
def test_a_supervisor_killed(daemon: Daemon, broken: Broken, name: str, hull: str) -> None:
    """Whoever keeps the exit status is gone: the container has ended, with the status of a kill."""
    identifier = daemon.docker(
        "run", "-d", "--name", name, "--isolation", hull, "busybox", "sleep", "600"
    ).out.strip()
    listed = subprocess.run(["ps", "-eo", "pid,args", "-ww"], capture_output=True, text=True, check=True)
    tool = "conmon" if hull == "container" else "qemu-system"
    (pid,) = [
        int(line.split()[0])
        for line in listed.stdout.splitlines()
        if identifier[:12] in line and tool in line.split()[1]
    ]
    os.kill(pid, signal.SIGKILL)
    state = exited(daemon, name)
    assert state["ExitCode"] == 137
    assert state["Error"]
    daemon.docker("start", name)
    assert daemon.docker("exec", name, "echo", "hi").out == "hi\n"
    daemon.docker("rm", "-f", name)


@pytest.mark.parametrize("hull", ["container", "vm"])
def test_the_first_process_killed_from_outside(daemon: Daemon, broken: Broken, name: str, hull: str) -> None:
    daemon.docker("run", "-d", "--name", name, "--isolation", hull, "busybox", "sleep", "600")
    pid = json.loads(daemon.docker("inspect", name).out)[0]["State"]["Pid"]
    os.kill(pid, signal.SIGKILL)
    assert exited(daemon, name)["ExitCode"] == 137
    daemon.docker("rm", name)

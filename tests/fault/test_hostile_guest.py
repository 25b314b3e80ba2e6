# SPDX-License-Identifier: Apache-2.0
"""Guests whose root does its worst: the engine answers, neighbours go on, and each can be removed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.daemon import Daemon

pytestmark = pytest.mark.usefixtures("unchanged")

PATIENCE_S = 60.0
GROWTH_BYTES = 64 * 1024 * 1024  # of the daemon; a flood that was kept would be hundreds of megabytes


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def resident_bytes(daemon: Daemon) -> int:
    assert daemon.process is not None
    pages = int(Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def run(daemon: Daemon, name: str, script: str, *options: str) -> str:
    command = ("run", "-d", "--name", name, "--isolation", "vm", *options, "busybox", "sh", "-c", script)
    return daemon.docker(*command).out.strip()


def test_floods_of_its_console(daemon: Daemon, name: str) -> None:
    """A privileged guest's console and its kernel's log, which go to the serial console."""
    before = resident_bytes(daemon)
    run(daemon, name, "yes flood >/dev/console & yes kmsg >/dev/kmsg & echo on; sleep 600", "--privileged")
    until(lambda: daemon.docker("logs", name).out == "on\n", "it floods")
    for _ in range(3):
        assert daemon.docker("run", "--rm", "busybox", "echo", "hi").out == "hi\n"
    assert resident_bytes(daemon) - before < GROWTH_BYTES
    daemon.docker("rm", "-f", name)


@pytest.mark.parametrize(
    "end", ["echo c >/proc/sysrq-trigger", "echo b >/proc/sysrq-trigger", "poweroff -f", "reboot -f"]
)
def test_the_end_of_its_kernel(daemon: Daemon, name: str, end: str) -> None:
    """A panic, a reset, power off, reboot: the container has ended, is started again, and is removed."""
    run(daemon, name, f"sleep 0.1; {end}; sleep 600", "--privileged")
    until(lambda: state(daemon, name)["Status"] == "exited", "it has ended")
    assert state(daemon, name)["ExitCode"] != 0
    assert "\x1b" not in str(state(daemon, name)["Error"])
    daemon.docker("rm", "-f", name)


def test_one_that_stands_still(daemon: Daemon, name: str) -> None:
    """QEMU is stopped from outside, as a guest would that holds all its processors: it is killed."""
    run(daemon, name, "sleep 600")
    os.kill(int(str(state(daemon, name)["Pid"])), signal.SIGSTOP)
    assert daemon.docker("ps").status == 0
    since = time.monotonic()
    daemon.docker("rm", "-f", name)
    assert time.monotonic() - since < PATIENCE_S


def state(daemon: Daemon, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(daemon.docker("inspect", name).out)[0]["State"]
    return found

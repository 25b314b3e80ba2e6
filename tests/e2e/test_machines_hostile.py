# SPDX-License-Identifier: Apache-2.0
"""Full machines when things go wrong: a guest floods its console, QEMU dies in the middle of something."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from proa.machines.console import BYTES_PER_S, LOG_BYTES
from tests.e2e.test_machines import LINUX, create, inspect, type_and_read, wait_for, wait_for_console
from tests.support.daemon import PROA, Daemon


@pytest.fixture
def machine(daemon: Daemon) -> Iterator[str]:
    name = f"m-{uuid.uuid4().hex[:8]}"
    yield name
    daemon.proa("vm", "rm", "-f", name, check=False)


def test_a_guest_that_floods_its_console(daemon: Daemon, machine: str) -> None:
    """The log is bounded, the daemon answers, and whoever looks can leave."""
    create(daemon, machine, *LINUX, "--network", "none", "--start")
    wait_for_console(daemon, machine, "guest: up")
    type_and_read(daemon, machine, f"busybox yes {'0123456789' * 4} & echo on\n", "0123456789")
    home = daemon.data_root / "machines" / inspect(daemon, machine)["Id"]
    wait_for(lambda: (home / "console.log.1").exists(), "the log is full")
    ticks, since = _cpu_ticks(daemon), time.monotonic()
    time.sleep(1)
    spent_s = (_cpu_ticks(daemon) - ticks) / os.sysconf("SC_CLK_TCK")
    assert spent_s < (time.monotonic() - since) / 2
    assert sum(path.stat().st_size for path in home.glob("console.log*")) <= 2 * LOG_BYTES + BYTES_PER_S
    assert daemon.docker("ps").status == 0
    type_and_read(daemon, machine, "", "0123456789")  # ctrl-] leaves while it floods
    daemon.proa("vm", "kill", machine)


@pytest.mark.parametrize(
    "command", [("snapshot", "create", "{}", "s"), ("fork", "{}", "{}-f"), ("stop", "{}"), ("rm", "-f", "{}")]
)
def test_a_qemu_that_dies_meanwhile(daemon: Daemon, machine: str, command: tuple[str, ...]) -> None:
    """The command ends, the machine can be started again or is gone, and a copy is whole or is not there."""
    create(daemon, machine, *LINUX, "--network", "none", "--disk", "64m", "--start")
    pid = inspect(daemon, machine)["Pid"]
    words = [str(PROA), "vm", *(word.format(machine) for word in command)]
    with subprocess.Popen(words, env=daemon.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as going:
        time.sleep(0.35)  # about when the daemon speaks with QEMU; before and after must do as well
        with_luck = _kill(pid)
        assert going.wait(60) in (0, 1), with_luck
        assert going.stderr is not None
        assert b"Traceback" not in going.stderr.read()
    assert "Traceback" not in daemon.log()
    if command[0] == "rm":
        wait_for(lambda: daemon.proa("vm", "inspect", machine, check=False).status == 1, "it is gone")
        return
    wait_for(lambda: inspect(daemon, machine)["State"] in ("crashed", "stopped"), "its end is noticed")
    daemon.proa("vm", "snapshot", "ls", machine)
    daemon.proa("vm", "start", machine)
    daemon.proa("vm", "rm", "-f", machine)
    if daemon.proa("vm", "inspect", f"{machine}-f", check=False).status == 0:
        daemon.proa("vm", "start", f"{machine}-f")
        daemon.proa("vm", "rm", "-f", f"{machine}-f")


def test_a_qemu_that_dies_at_its_start(daemon: Daemon, machine: str) -> None:
    create(daemon, machine, *LINUX, "--network", "none")
    words = [str(PROA), "vm", "start", machine]
    with subprocess.Popen(words, env=daemon.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as start:
        name = f"proa-machine-{machine}".encode()
        wait_for(lambda: _find(name) != 0, "QEMU is there")
        _kill(_find(name))
        assert start.wait(60) in (0, 1)
    wait_for(lambda: inspect(daemon, machine)["State"] in ("created", "crashed"), "it is off")
    daemon.proa("vm", "start", machine)


def _find(word: bytes) -> int:
    """The process that has a word on its command line; 0 when there is none."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if word in words:
            return int(path.parent.name)
    return 0


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _cpu_ticks(daemon: Daemon) -> int:
    assert daemon.process is not None
    fields = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])

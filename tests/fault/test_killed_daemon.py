# SPDX-License-Identifier: Apache-2.0
"""The daemon is killed with SIGKILL, in the middle of whatever: workloads go on, the next one finds them."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from proa.host.cgroup import find_cgroups
from tests.fault.conftest import HULLS
from tests.support.daemon import Daemon

pytestmark = pytest.mark.usefixtures("unchanged")

PATIENCE_S = 60.0
CHATTER = "trap 'echo term; exit 5' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"
# From the request on, in ms: before it is read, in each of the steps, and after.
MOMENTS_MS = {"container": (0, 20, 40, 80), "vm": (50, 200, 600)}


def state(daemon: Daemon, name: str) -> dict[str, Any]:  # Any: JSON
    found: dict[str, Any] = json.loads(daemon.docker("inspect", name).out)[0]["State"]
    return found


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def kill_during(daemon: Daemon, method: str, path: str, after_ms: int) -> None:
    """Send a request, and SIGKILL so many milliseconds later."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.socket))
        client.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        time.sleep(after_ms / 1000)
        daemon.stop(signal.SIGKILL)


def moments(hull: str) -> list[pytest.param]:  # type: ignore[valid-type]  # a function of pytest
    return [pytest.param(hull, moment, id=f"{hull}-{moment}ms") for moment in MOMENTS_MS[hull]]


def test_what_runs_goes_on_and_what_ends_is_known(daemon: Daemon, name: str) -> None:
    """Of both hulls: one goes on, one ends by itself meanwhile, one is killed, one with --rm ends."""
    for hull in HULLS:
        options = ("--isolation", hull, "busybox", "sh", "-c")
        daemon.docker("run", "-d", "--name", f"{name}-{hull}-on", "-p", "127.0.0.1::80", *options, CHATTER)
        daemon.docker("run", "-d", "--name", f"{name}-{hull}-end", *options, "sleep 2; echo late; exit 3")
        daemon.docker("run", "-d", "--rm", "--name", f"{name}-{hull}-rm", *options, "sleep 2")
        restarting = ("--restart", "always", *options, "sleep 2; echo again")
        daemon.docker("run", "-d", "--name", f"{name}-{hull}-always", *restarting)
    before = {hull: daemon.docker("inspect", f"{name}-{hull}-on").out for hull in HULLS}
    daemon.stop(signal.SIGKILL)
    time.sleep(4)
    daemon.start()
    for hull in HULLS:
        on, end = f"{name}-{hull}-on", f"{name}-{hull}-end"
        assert state(daemon, on)["Status"] == "running"
        assert (
            json.loads(before[hull])[0]["NetworkSettings"]["Ports"]
            == (json.loads(daemon.docker("inspect", on).out)[0]["NetworkSettings"]["Ports"])
        )
        lines = daemon.docker("logs", on).out.split()
        assert len(lines) > 20, "it wrote while no daemon was there"
        assert lines == [str(number) for number in range(1, len(lines) + 1)]
        assert daemon.docker("exec", on, "echo", "hi").out == "hi\n"
        until(lambda end=end: state(daemon, end)["Status"] == "exited", "its end is known")  # type: ignore[misc]
        assert state(daemon, end)["ExitCode"] == 3
        assert daemon.docker("logs", end).out == "late\n"
        gone = f"{name}-{hull}-rm"
        until(lambda gone=gone: daemon.docker("inspect", gone, check=False).status == 1, "--rm holds")  # type: ignore[misc]
        always = f"{name}-{hull}-always"
        until(
            lambda always=always: json.loads(daemon.docker("inspect", always).out)[0]["RestartCount"] >= 1,  # type: ignore[misc]
            "the restart policy holds",
        )
        daemon.docker("stop", on)
        assert state(daemon, on)["ExitCode"] == 5
        assert daemon.docker("logs", on).out.endswith("term\n")
        daemon.docker("rm", "-f", on, end, always)


def test_with_all_that_it_knew_of_what_ran(daemon: Daemon, name: str) -> None:
    """The exec root is lost without a reboot: no process and no cgroup is left of what ran."""
    daemon.docker("run", "-d", "--name", name, "busybox", "sleep", "600")
    daemon.docker(
        "run", "-d", "--name", f"{name}-pp", "--cgroup-parent", f"/{name}", "busybox", "sleep", "600"
    )
    daemon.stop(signal.SIGKILL)
    shutil.rmtree(daemon.exec_root / "oci")
    daemon.start()
    for one in (name, f"{name}-pp"):
        assert state(daemon, one)["ExitCode"] == 255
        container_id = daemon.docker("inspect", "-f", "{{.Id}}", one).out.strip()
        until(lambda: not find_cgroups(container_id), "its cgroup is gone")  # noqa: B023
        daemon.docker("start", one)
        daemon.docker("rm", "-f", one)
    for parent in find_cgroups(name):
        asyncio.run(parent.delete())


@pytest.mark.parametrize(("hull", "after_ms"), [one for hull in HULLS for one in moments(hull)])
def test_while_one_starts(daemon: Daemon, hull: str, after_ms: int, name: str) -> None:
    daemon.docker(
        "create", "--name", name, "--isolation", hull, "-v", "/data", "-p", "80", "busybox", "sleep", "600"
    )
    kill_during(daemon, "POST", f"/containers/{name}/start", after_ms)
    daemon.start()
    found = state(daemon, name)["Status"]
    assert found in ("created", "running")
    if found == "created":
        daemon.docker("start", name)
    assert daemon.docker("exec", name, "echo", "hi").out == "hi\n"
    daemon.docker("rm", "-f", "-v", name)


@pytest.mark.parametrize(("hull", "after_ms"), [one for hull in HULLS for one in moments(hull)[:2]])
def test_while_one_is_removed(daemon: Daemon, hull: str, after_ms: int, name: str) -> None:
    daemon.docker(
        "run", "-d", "--name", name, "--isolation", hull, "-v", "/data", "-p", "80", "busybox", "sleep", "600"
    )
    kill_during(daemon, "DELETE", f"/containers/{name}?force=1&v=1", after_ms)
    daemon.start()
    if daemon.docker("inspect", name, check=False).status == 0:
        assert state(daemon, name)["Status"] in ("running", "exited")
        daemon.docker("rm", "-f", "-v", name)
    # A removal finished by the next daemon does not know of the "v": docker's own volumes stay as well.
    daemon.docker("volume", "prune", "-f")


@pytest.mark.parametrize("hull", HULLS)
def test_while_one_ends(daemon: Daemon, hull: str, name: str) -> None:
    for after_ms in (0, 15):
        daemon.docker("run", "-d", "--rm", "--name", name, "--isolation", hull, "busybox", "sleep", "600")
        kill_during(daemon, "POST", f"/containers/{name}/kill", after_ms)
        daemon.start()
        if after_ms == 0 and daemon.docker("inspect", name, check=False).status == 0:
            daemon.docker("kill", name, check=False)  # the request was not read
        until(lambda: daemon.docker("inspect", name, check=False).status == 1, "--rm holds")


def test_while_an_image_is_loaded(daemon: Daemon, name: str) -> None:
    daemon.docker("tag", "busybox", name)
    daemon.docker("save", "-o", f"{daemon.base}/{name}.tar", name)
    daemon.docker("rmi", name)
    for after_ms in (0, 10, 30):
        loading = threading.Thread(
            target=lambda: daemon.docker("load", "-i", f"{daemon.base}/{name}.tar", check=False)
        )
        loading.start()
        time.sleep(0.05 + after_ms / 1000)
        daemon.stop(signal.SIGKILL)
        loading.join()
        daemon.start()
        daemon.docker("rmi", name, check=False)
    (daemon.base / f"{name}.tar").unlink()


def test_again_and_again(daemon: Daemon, name: str) -> None:
    daemon.docker("run", "-d", "--name", name, "busybox", "sh", "-c", CHATTER)
    pid = state(daemon, name)["Pid"]
    for _ in range(2):
        daemon.stop(signal.SIGKILL)
        daemon.start()
        assert (state(daemon, name)["Status"], state(daemon, name)["Pid"]) == ("running", pid)
    daemon.docker("rm", "-f", name)

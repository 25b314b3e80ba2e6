# SPDX-License-Identifier: Apache-2.0
"""The life of a container: states, restarts, health, logs, what survives."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.support.daemon import TIME_FACTOR, Daemon

FAST = ("--health-interval", "300ms", "--health-retries", "2", "--health-cmd", "test -e /ok")


def inspect(daemon: Daemon, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(daemon.docker("inspect", name).out)[0]
    return found


def until(ready: Any, what: str) -> None:
    deadline = time.monotonic() + 60 * TIME_FACTOR
    while not ready():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_pause(daemon: Daemon, name: str) -> None:
    """pause: exec and top are refused, stats go on, kill ends it"""
    daemon.docker("run", "-d", "--name", name, "busybox", "sleep", "1000")
    daemon.docker("pause", name)
    assert (
        "is paused, unpause the container before exec" in daemon.docker("exec", name, "true", check=False).err
    )
    assert "is already paused" in daemon.docker("pause", name, check=False).err
    daemon.docker("stats", "--no-stream", name)
    daemon.docker("unpause", name)
    assert "is not paused" in daemon.docker("unpause", name, check=False).err
    daemon.docker("pause", name)
    daemon.docker("kill", name)
    assert inspect(daemon, name)["State"]["ExitCode"] == 137


def test_restart_policy(daemon: Daemon, name: str) -> None:
    """restart policies: always, on-failure with a count, unless-stopped"""
    daemon.docker(
        "run", "-d", "--name", name, "--restart", "always", "busybox", "sh", "-c", "echo x; sleep 0.2"
    )
    until(lambda: inspect(daemon, name)["RestartCount"] >= 2, "not restarted")
    daemon.docker("stop", "-t", "0", name)
    assert inspect(daemon, name)["State"]["Status"] == "exited"


def test_health(daemon: Daemon, name: str) -> None:
    """health checks: starting, healthy, unhealthy"""
    daemon.docker("run", "-d", "--name", name, *FAST, "busybox", "sh", "-c", "touch /ok; sleep 1000")
    until(lambda: inspect(daemon, name)["State"]["Health"]["Status"] == "healthy", "not healthy")
    daemon.docker("exec", name, "rm", "/ok")
    until(lambda: inspect(daemon, name)["State"]["Health"]["Status"] == "unhealthy", "not unhealthy")


@pytest.mark.parametrize("action", ["kill", "stop", "restart"])
def test_health_on_failure(daemon: Daemon, name: str, action: str) -> None:
    """what follows a failed health check"""
    label = ("--label", f"io.proa.health-on-failure={action}", "--stop-timeout", "1")
    daemon.docker("run", "-d", "--name", name, *label, *FAST, "busybox", "sleep", "1000")
    started = inspect(daemon, name)["State"]["StartedAt"]

    def is_done() -> bool:
        state = inspect(daemon, name)["State"]
        return bool(state["StartedAt"] != started if action == "restart" else state["Status"] == "exited")

    until(is_done, f"no {action}")


def test_rename(daemon: Daemon, name: str) -> None:
    """rename, and the new name at work"""
    daemon.docker("run", "-d", "--name", f"{name}-old", "busybox", "sleep", "1000")
    daemon.docker("rename", f"{name}-old", name)
    assert daemon.docker("exec", name, "echo", "here").out == "here\n"


def test_restart_keeps_files(daemon: Daemon, name: str) -> None:
    """restart keeps what was written"""
    daemon.docker("run", "-d", "--name", name, "busybox", "sh", "-c", "echo x >>/f; wc -l </f; sleep 1000")
    until(lambda: "1" in daemon.docker("logs", name).out, "nothing written")
    daemon.docker("restart", "-t", "0", name)
    until(lambda: "2" in daemon.docker("logs", name).out, "lost")


@pytest.mark.parametrize("driver", ["json-file", "local", "none", "syslog", "journald"])
def test_log_drivers(daemon: Daemon, name: str, driver: str) -> None:
    """log drivers"""
    options = ("--log-opt", "syslog-address=udp://127.0.0.1:5514") if driver == "syslog" else ()
    done = daemon.docker(
        "run", "--name", name, "--log-driver", driver, *options, "busybox", "echo", "x", check=False
    )
    if driver == "journald" and done.status:
        pytest.skip("this host has no journal")
    assert done.out == "x\n", done.err
    assert daemon.docker("logs", name, check=False).status == (1 if driver == "none" else 0)


def test_events(daemon: Daemon, name: str) -> None:
    """events of a whole life, in order"""
    since = f"{time.time():.9f}"
    daemon.docker("run", "--rm", "--name", name, "busybox", "true")
    ask = ("--since", since, "--until", f"{time.time():.9f}", "--filter", f"container={name}")
    actions = daemon.docker(
        "events", *ask, "--filter", "type=container", "--format", "{{.Action}}"
    ).out.split()
    assert [one for one in actions if one != "attach"] == ["create", "start", "die", "destroy"]


def test_isolation_is_shown(daemon: Daemon, name: str) -> None:
    """the hull of one container is chosen against the daemon's default, and shown"""
    daemon.docker("create", "--name", name, "--isolation", "container", "busybox", "true")
    assert inspect(daemon, name)["HostConfig"]["Isolation"] == "container"
    assert daemon.docker("start", "-a", name).status == 0

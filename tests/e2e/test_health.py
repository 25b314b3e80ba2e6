# SPDX-License-Identifier: Apache-2.0
"""Health checks with the docker CLI, in both hulls."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.support.daemon import Daemon

PATIENCE_S = 60.0
FAST = ("--health-interval", "200ms", "--health-retries", "2")


def health(daemon: Daemon, name: str) -> dict[str, Any]:
    found = daemon.docker("inspect", "-f", "{{json .State.Health}}", name).out
    return json.loads(found) or {}


def wait_for(daemon: Daemon, name: str, status: str) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    while (now := health(daemon, name)).get("Status") != status:
        assert time.monotonic() < deadline, now
        time.sleep(0.05)
    return now


def test_from_starting_to_healthy_to_unhealthy(daemon: Daemon, hull: str, name: str) -> None:
    since = f"{time.time():.9f}"
    daemon.docker("run", "-d", "--name", name, "--isolation", hull, *FAST,
                  "--health-cmd", "echo seen; test -e /ok", "busybox", "sleep", "600")  # fmt: skip
    assert "(health: starting)" in daemon.docker("ps", "--filter", f"name={name}").out
    daemon.docker("exec", name, "touch", "/ok")
    wait_for(daemon, name, "healthy")
    assert "(healthy)" in daemon.docker("ps", "--filter", "health=healthy").out
    assert name not in daemon.docker("ps", "--filter", "health=unhealthy").out
    daemon.docker("exec", name, "rm", "/ok")
    now = wait_for(daemon, name, "unhealthy")
    assert now["FailingStreak"] >= 2
    assert now["Log"][-1]["ExitCode"] == 1
    assert now["Log"][-1]["Output"] == "seen\n"
    assert len(now["Log"]) <= 5
    events = daemon.docker(
        "events", "--since", since, "--until", f"{time.time():.9f}", "--filter", "event=health_status",
        "--filter", f"container={name}", "--format", "{{.Action}}",
    )  # fmt: skip
    assert events.out.splitlines() == ["health_status: healthy", "health_status: unhealthy"]


def test_a_check_that_hangs_is_killed(daemon: Daemon, hull: str, name: str) -> None:
    daemon.docker("run", "-d", "--name", name, "--isolation", hull, *FAST, "--health-timeout", "300ms",
                  "--health-cmd", "echo a; sleep 1234; echo b", "busybox", "sleep", "600")  # fmt: skip
    now = wait_for(daemon, name, "unhealthy")
    assert now["Log"][0]["ExitCode"] == -1
    assert now["Log"][0]["Output"].startswith("Health check exceeded timeout (300ms)")
    deadline = time.monotonic() + PATIENCE_S
    while daemon.docker("top", name).out.count("sleep 1234") > 1:  # that of the present check
        assert time.monotonic() < deadline


def test_what_follows_is_podmans_choice(daemon: Daemon, name: str) -> None:
    daemon.docker("run", "-d", "--name", name, *FAST, "--label", "io.proa.health-on-failure=stop", "--init",
                  "--health-cmd", "false", "busybox", "sleep", "600")  # fmt: skip
    daemon.docker("wait", name)
    daemon.docker("rm", name)
    daemon.proa("run", "-d", "--name", name, *FAST, "--health-on-failure", "kill", "--restart", "always",
                "--health-cmd", "false", "busybox", "sleep", "600")  # fmt: skip
    deadline = time.monotonic() + PATIENCE_S
    while int(daemon.docker("inspect", "-f", "{{.RestartCount}}", name).out) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_a_check(daemon: Daemon, name: str) -> None:
    daemon.docker("run", "-d", "--name", name, "--no-healthcheck", "busybox", "sleep", "600")
    assert health(daemon, name) == {}
    assert name in daemon.docker("ps", "--filter", "health=none", "--format", "{{.Names}}").out
    refused = daemon.docker("ps", "--filter", "health=fine", check=False)
    assert "invalid filter 'health=fine'" in refused.err

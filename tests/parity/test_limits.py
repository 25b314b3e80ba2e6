# SPDX-License-Identifier: Apache-2.0
"""Limits, what they limit, and what is told of the use."""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

import pytest

from tests.support.daemon import TIME_FACTOR, Daemon

EAT = "head -c 200m /dev/zero | tail >/dev/null"


def stats(daemon: Daemon, name: str) -> dict[str, Any]:
    url = f"http://x/containers/{name}/stats?stream=false&one-shot=true"
    asked = ["curl", "-sf", "--unix-socket", str(daemon.socket), url]
    found: dict[str, Any] = json.loads(subprocess.run(asked, capture_output=True, check=True).stdout)
    return found


def wait_until_ended(daemon: Daemon, name: str) -> dict[str, Any]:
    daemon.docker("wait", name)
    found: dict[str, Any] = json.loads(daemon.docker("inspect", name).out)[0]["State"]
    return found


def test_memory(daemon: Daemon, name: str) -> None:
    """--memory: a program that takes more is killed: 137, OOMKilled"""
    daemon.docker(
        "run", "-d", "--name", name, "-m", "32m", "busybox", "sh", "-c", f"exec {EAT.replace('|', '| exec')}"
    )
    state = wait_until_ended(daemon, name)
    assert state["OOMKilled"]


@pytest.mark.sample
def test_oom_event(daemon: Daemon, name: str) -> None:
    """the event oom comes at once, while the container goes on"""
    since = f"{time.time():.6f}"
    script = f"{EAT}; sleep 1000"
    daemon.docker("run", "-d", "--name", name, "-m", "16m", "busybox", "sh", "-c", script)
    deadline = time.monotonic() + 120 * TIME_FACTOR
    ask = ("events", "--since", since, "--filter", f"container={name}", "--filter", "event=oom")
    while "oom" not in daemon.docker(*ask, "--until", f"{time.time():.6f}").out:
        assert time.monotonic() < deadline, "no event oom"
        time.sleep(0.1)
    assert daemon.docker("inspect", "-f", "{{.State.Running}}", name).out == "true\n"


def test_memory_too_small(daemon: Daemon) -> None:
    """a memory limit below 6 MB is refused with Docker's words"""
    done = daemon.docker("run", "--rm", "-m", "5m", "busybox", "true", check=False)
    assert "Minimum memory limit allowed is 6MB" in done.err


def test_pids(daemon: Daemon) -> None:
    """--pids-limit"""
    script = "for i in $(seq 40); do sleep 3 & done; wait"
    done = daemon.docker("run", "--rm", "--pids-limit", "20", "busybox", "sh", "-c", script, check=False)
    assert "fork" in done.err


def test_cpus(daemon: Daemon) -> None:
    """--cpus, --cpu-shares, --cpuset-cpus are accepted, and shown"""
    run = ("run", "--rm", "--cpus", "0.5", "--cpu-shares", "512", "--cpuset-cpus", "0")
    assert daemon.docker(*run, "busybox", "nproc").out == "1\n"


def test_ulimits(daemon: Daemon) -> None:
    """--ulimit"""
    run = ("run", "--rm", "--ulimit", "nofile=100:200", "--ulimit", "core=0")
    out = daemon.docker(*run, "busybox", "sh", "-c", "ulimit -n; ulimit -Hn; ulimit -c").out
    assert out.split() == ["100", "200", "0"]


def test_update(daemon: Daemon, name: str) -> None:
    """update of memory, CPUs and processes while it runs"""
    daemon.docker("run", "-d", "--name", name, "-m", "64m", "--pids-limit", "50", "busybox", "sleep", "1000")
    daemon.docker("update", "-m", "48m", "--memory-swap", "96m", "--cpus", "0.5", "--pids-limit", "20", name)
    use = stats(daemon, name)
    assert use["memory_stats"]["limit"] == 48 << 20
    assert use["pids_stats"]["limit"] == 20
    host = json.loads(daemon.docker("inspect", name).out)[0]["HostConfig"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (48 << 20, 500_000_000, 20)


def test_update_upwards(daemon: Daemon, name: str) -> None:
    """update to more memory than at the start"""
    daemon.docker("run", "-d", "--name", name, "-m", "64m", "busybox", "sleep", "1000")
    daemon.docker("update", "-m", "512m", "--memory-swap", "512m", name)
    assert stats(daemon, name)["memory_stats"]["limit"] == 512 << 20


def test_update_restart(daemon: Daemon, name: str) -> None:
    """update of the restart policy"""
    daemon.docker("run", "-d", "--name", name, "busybox", "sleep", "1000")
    daemon.docker("update", "--restart", "unless-stopped", name)
    assert "unless-stopped" in daemon.docker("inspect", "-f", "{{.HostConfig.RestartPolicy.Name}}", name).out


def test_stats(daemon: Daemon, name: str) -> None:
    """stats: CPU, memory, processes, block I/O, network, of the inside"""
    script = "dd if=/dev/zero of=/f bs=1M count=8 conv=fsync; exec sleep 1000"
    daemon.docker("run", "-d", "--name", name, "-m", "128m", "busybox", "sh", "-c", script)
    deadline = time.monotonic() + 30 * TIME_FACTOR
    while True:
        use = stats(daemon, name)
        done = sum(
            one["value"]
            for one in use["blkio_stats"]["io_service_bytes_recursive"] or ()
            if one["op"].lower() == "write"
        )
        if done >= 8 << 20 or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert use["memory_stats"]["limit"] == 128 << 20
    assert 0 < use["memory_stats"]["usage"] < 128 << 20
    assert use["pids_stats"]["current"] >= 1
    assert "eth0" in use["networks"]
    assert use["cpu_stats"]["cpu_usage"]["total_usage"] > 0
    assert use["cpu_stats"]["system_cpu_usage"] > 0


def test_shm_size(daemon: Daemon) -> None:
    """--shm-size"""
    out = daemon.docker("run", "--rm", "--shm-size", "8m", "busybox", "df", "-k", "/dev/shm").out
    assert " 8192 " in out


@pytest.mark.parametrize(
    "option",
    [
        pytest.param("--device-read-bps=/dev/vda:1mb", id="--device-read-bps"),
        pytest.param("--oom-kill-disable", id="--oom-kill-disable"),
        pytest.param("--memory-swappiness=10", id="--memory-swappiness"),
        pytest.param("--memory-reservation=20m", id="--memory-reservation"),
        pytest.param("--oom-score-adj=100", id="--oom-score-adj"),
        pytest.param("--blkio-weight=300", id="--blkio-weight"),
        pytest.param("--cgroup-parent=/parity", id="--cgroup-parent"),
    ],
)
def test_other_limits(daemon: Daemon, option: str) -> None:
    """other limits"""
    daemon.docker("run", "--rm", "-m", "64m", option, "busybox", "true")

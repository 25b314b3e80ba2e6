# SPDX-License-Identifier: Apache-2.0
"""Containers that share a virtual machine: ``--isolation vm:NAME``. One machine for the whole module."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import DOCKER, Daemon, Result

VM = "vm:together"
NETWORK = "pods-net"
WAIT_S = 60.0  # under emulation on a busy host


class Pods:
    """The machine, with ``pods-web`` in it: the containers of the module."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.made = ["pods-web"]

    def run(self, *arguments: str, check: bool = True) -> Result:
        return self.daemon.docker("run", "--isolation", VM, *arguments, check=check)

    def exec(self, name: str, *arguments: str) -> str:
        return self.daemon.docker("exec", name, *arguments).out.strip()

    def boot_id(self, name: str) -> str:
        return self.exec(name, "cat", "/proc/sys/kernel/random/boot_id")

    def machines(self) -> list[str]:
        return [path.name for path in (self.daemon.exec_root / "vm").glob(".pod-*")]


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.fixture(scope="module")
def pods(daemon: Daemon) -> Iterator[Pods]:
    daemon.docker("network", "create", NETWORK)
    pods = Pods(daemon)
    try:
        pods.run(
            "-d", "--name", "pods-web", "--network", NETWORK, "--hostname", "web", "busybox", "sh", "-c",
            "echo started; echo page >/index.html; httpd -p 80; exec sleep 10000",
        )  # fmt: skip
        yield pods
    finally:
        daemon.docker("rm", "-f", "-v", *pods.made, check=False)
        daemon.docker("network", "rm", NETWORK, check=False)
    assert pods.machines() == [], "a machine without containers"


def test_containers_of_a_machine_have_one_kernel_and_all_else_of_their_own(pods: Pods) -> None:
    pods.made.append("pods-two")
    pods.run("-d", "--name", "pods-two", "-m", "64m", "--cpus", "0.5", "busybox", "sleep", "10000")
    host = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert pods.boot_id("pods-two") == pods.boot_id("pods-web") != host
    assert len(pods.machines()) == 1
    assert pods.exec("pods-web", "hostname") == "web"
    seen = pods.exec(
        "pods-two", "sh", "-c", "hostname; ls /; ps; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max"
    )
    assert "web" not in seen and "index.html" not in seen and "httpd" not in seen
    assert "67108864" in seen and "50000 100000" in seen
    addresses = [pods.exec(name, "ip", "-4", "addr", "show", "eth0") for name in ("pods-web", "pods-two")]
    gateway = pods.daemon.docker(
        "network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "bridge"
    ).out  # which depends on what other daemons have taken
    bridge = gateway.rpartition(".")[0] + "."
    assert bridge in addresses[1] and bridge not in addresses[0]


def test_is_found_by_its_name_and_address_and_seen_in_lists(pods: Pods) -> None:
    for isolation in (VM, "container"):
        got = pods.daemon.docker(
            "run", "--rm", "--isolation", isolation, "--network", NETWORK, "busybox", "wget", "-qO-", "http://pods-web"
        )  # fmt: skip
        assert got.out == "page\n"
    listed = pods.daemon.docker("ps", "--filter", f"isolation={VM}", "--format", "{{.Names}}").out.split()
    assert "pods-web" in listed
    [found] = json.loads(pods.daemon.docker("inspect", "pods-web").out)
    assert found["HostConfig"]["Isolation"] == VM
    assert found["State"]["Running"] and found["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]


def test_a_network_is_shared_as_in_a_pod(pods: Pods) -> None:
    got = pods.run("--rm", "--network", "container:pods-web", "busybox", "sh", "-c",
                   "hostname; wget -qO- http://127.0.0.1; ls /sys/class/net")  # fmt: skip
    assert got.out.split() == ["web", "page", "eth0", "lo"]


def test_output_exit_code_and_volumes(pods: Pods) -> None:
    got = pods.run("--rm", "-v", "pods-volume:/v", "busybox", "sh", "-c",
                   "echo out; echo err >&2; echo kept >/v/file; exit 7", check=False)  # fmt: skip
    assert (got.status, got.out, got.err) == (7, "out\n", "err\n")
    assert pods.run("--rm", "-v", "pods-volume:/v:ro", "busybox", "cat", "/v/file").out == "kept\n"
    assert pods.daemon.docker("logs", "pods-web").out == "started\n"
    pods.daemon.docker("volume", "rm", "pods-volume")


def test_a_container_is_paused_copied_to_stopped_and_started_alone(pods: Pods) -> None:
    docker = pods.daemon.docker
    pods.made.append("pods-life")
    pods.run("-d", "--name", "pods-life", "busybox", "sh", "-c",
             "trap 'exit 5' TERM; echo begun; while :; do sleep 0.2; done")  # fmt: skip
    docker("pause", "pods-life")
    assert pods.exec("pods-web", "echo", "awake") == "awake"
    docker("unpause", "pods-life")
    docker("cp", "/etc/hostname", "pods-life:/copied")
    assert pods.exec("pods-life", "cat", "/copied") == Path("/etc/hostname").read_text().strip()
    docker("stop", "-t", "60", "pods-life")
    assert docker("inspect", "-f", "{{.State.ExitCode}}", "pods-life").out == "5\n"
    docker("start", "pods-life")
    assert pods.exec("pods-life", "ls", "/copied") == "/copied"
    docker("rm", "-f", "pods-life")
    assert pods.exec("pods-web", "echo", "alive") == "alive"


def test_a_container_is_restarted_in_its_machine(pods: Pods) -> None:
    pods.made.append("pods-again")
    pods.run(
        "-d", "--name", "pods-again", "--restart", "on-failure:2", "busybox", "sh", "-c", "echo x; exit 1"
    )
    until(
        lambda: (
            pods.daemon.docker("logs", "pods-again").out == "x\n" * 3
            and pods.daemon.docker("inspect", "-f", "{{.State.Status}}", "pods-again").out == "exited\n"
        ),
        "it was not restarted twice",
    )


def test_what_goes_on_is_found_by_a_new_daemon(pods: Pods) -> None:
    pods.made.append("pods-short")
    before = pods.boot_id("pods-web")
    pods.run("-d", "--name", "pods-short", "busybox", "sh", "-c",
             "while [ ! -e /end ]; do sleep 0.1; done; echo done; exit 4")  # fmt: skip
    pods.exec("pods-short", "sh", "-c", "(sleep 2; touch /end) >/dev/null 2>&1 &")
    pods.daemon.restart(signal.SIGKILL)
    assert pods.boot_id("pods-web") == before
    assert pods.daemon.docker("wait", "pods-short").out == "4\n"
    assert pods.daemon.docker("logs", "pods-short").out == "done\n"
    got = pods.run("--rm", "--network", NETWORK, "busybox", "wget", "-qO-", "http://pods-web")
    assert got.out == "page\n"


def test_there_are_more_containers_one_after_the_other_than_seats(pods: Pods) -> None:
    for number in range(7):
        assert pods.run("--rm", "busybox", "echo", str(number)).out == f"{number}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--isolation", "vm:"), "the name of a virtual machine"),
        (("--isolation", "vm:-x"), "the name of a virtual machine"),
        (("--isolation", "vm:a/b"), "the name of a virtual machine"),
        (("--isolation", VM, "--runtime", "crun"), "conflicting options"),
        (("--runtime", "pod"), "needs isolation"),
        (("--isolation", VM, "-m", "100g"), "does not fit"),
        (("--isolation", VM, "--cpus", "1000"), "CPUs"),
        (("--isolation", VM, "--cpuset-cpus", "0"), "all containers of the virtual machine"),
        (("--isolation", VM, "--pid", "host"), "kernel of its own"),
        (("--isolation", VM, "--network", "host"), "network"),
        (("--isolation", "vm:other", "--network", "container:pods-web"), "not in the virtual machine"),
        (("--isolation", "vm", "--network", "container:pods-web"), "network"),
        (("--network", "container:pods-web"), "network namespace"),
    ],
)
def test_what_cannot_be_is_refused(pods: Pods, arguments: tuple[str, ...], said: str) -> None:
    got = pods.daemon.docker("run", "--rm", *arguments, "busybox", "true", check=False)
    assert got.status == 125 and said in got.err, got.err


def test_a_second_network_is_refused(pods: Pods) -> None:
    pods.daemon.docker("network", "create", f"{NETWORK}-2")
    got = pods.run("--rm", "--network", NETWORK, "--network", f"{NETWORK}-2", "busybox", check=False)
    live = pods.daemon.docker("network", "connect", f"{NETWORK}-2", "pods-web", check=False)
    pods.daemon.docker("network", "rm", f"{NETWORK}-2")
    assert got.status == 125 and "more than 1 network" in got.err
    assert live.status == 1 and "fixed when it starts" in live.err


def test_nothing_is_left_of_a_start_that_the_daemon_did_not_survive(pods: Pods) -> None:
    arguments = ("run", "--name", "pods-cut", "--isolation", "vm:cut", "-d", "busybox", "sleep", "10000")
    pods.made.append("pods-cut")
    for delay_s in (0.15, 0.3, 0.45):
        command = [DOCKER, "--host", pods.daemon.host, *arguments]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            time.sleep(delay_s)
            pods.daemon.stop(signal.SIGKILL)
        pods.daemon.start()
        pods.daemon.docker("rm", "-f", "pods-cut", check=False)
        until(lambda: len(pods.machines()) == 1, "a machine without containers")


def test_memory_is_promised_once(pods: Pods) -> None:
    pods.made.append("pods-large")
    pods.run("-d", "--name", "pods-large", "-m", "700m", "busybox", "sleep", "10000")
    got = pods.run("--rm", "-m", "400m", "busybox", "true", check=False)
    assert got.status == 125 and "promised" in got.err
    pods.daemon.restart()
    more = pods.daemon.docker("update", "-m", "2g", "--memory-swap", "-1", "pods-large", check=False)
    assert "does not fit" in more.err
    pods.daemon.docker("update", "-m", "64m", "--memory-swap", "-1", "pods-large")
    assert pods.exec("pods-large", "cat", "/sys/fs/cgroup/memory.max") == "67108864"
    pods.run("--rm", "-m", "400m", "busybox", "true")


def test_all_end_when_their_machine_dies_and_come_back_as_their_policies_say(pods: Pods) -> None:
    docker = pods.daemon.docker
    pods.made += ["pods-one", "pods-other"]
    for name in ("pods-one", "pods-other"):
        docker(
            "run", "-d", "--name", name, "--isolation", "vm:dies", "--restart", "on-failure",
            "busybox", "sleep", "10000",
        )  # fmt: skip
    first = pods.boot_id("pods-one")
    os.kill(int(docker("inspect", "-f", "{{.State.Pid}}", "pods-one").out), signal.SIGKILL)

    def is_back(name: str) -> bool:
        got = docker("exec", name, "cat", "/proc/sys/kernel/random/boot_id", check=False)
        return got.status == 0 and got.out.strip() != first

    until(lambda: is_back("pods-one") and is_back("pods-other"), "they did not come back")
    assert pods.boot_id("pods-one") == pods.boot_id("pods-other")
    docker("rm", "-f", "pods-one", "pods-other")


@pytest.mark.parametrize("delay_s", [0.05, 0.15])
def test_an_end_that_the_daemon_did_not_survive_is_finished(pods: Pods, delay_s: float) -> None:
    pods.made.append("pods-gone")
    pods.run("-d", "--name", "pods-gone", "busybox", "sleep", "10000")
    command = [DOCKER, "--host", pods.daemon.host, "rm", "-f", "pods-gone"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        time.sleep(delay_s)
        pods.daemon.stop(signal.SIGKILL)
    pods.daemon.start()
    pods.daemon.docker("rm", "-f", "pods-gone", check=False)
    assert "pods-gone" not in pods.daemon.docker("ps", "-a").out
    assert pods.exec("pods-web", "echo", "alive") == "alive"

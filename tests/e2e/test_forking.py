# SPDX-License-Identifier: Apache-2.0
"""``proa fork`` as a user meets it: one source on two networks, two copies, all three on the network."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.daemon import Daemon, Result

PATIENCE_S = 60.0
PROGRAM = (
    "echo $$ >/pid; i=0; mkdir -p /www; httpd -p 80 -h /www;"
    "while :; do i=$((i+1)); echo $i; echo $i >/www/new; mv /www/new /www/count; sleep 0.1; done"
)


@dataclass
class Family:
    daemon: Daemon
    source: str = "fork-source"
    copies: tuple[str, str] = ("fork-one", "fork-two")
    network: str = "fork-net"
    said: tuple[Result, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.source, *self.copies)

    def exec(self, name: str, *command: str) -> str:
        return self.daemon.docker("exec", name, *command).out.strip()

    def inspect(self, name: str) -> dict[str, Any]:  # Any: JSON
        found: dict[str, Any] = json.loads(self.daemon.docker("inspect", name).out)[0]
        return found


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def family(daemon: Daemon) -> Iterator[Family]:
    family = Family(daemon)
    daemon.docker("network", "create", family.network)
    create = ("create", "--name", family.source, "--isolation", "vm", "--network", family.network)
    limits = ("-m", "64m", "--cpus", "0.9", "--restart", "on-failure:3", "--label", "a=b")
    ports = ("-p", "127.0.0.1::80", "-p", "127.0.0.1:18099:81")
    daemon.docker(*create, *limits, *ports, "--tmpfs", "/scratch", "busybox", "sh", "-c", PROGRAM)
    daemon.docker("network", "connect", "bridge", family.source)
    daemon.docker("start", family.source)
    try:
        until(lambda: len(daemon.docker("logs", family.source).out.split()) > 3, "it counts")
        family.exec(family.source, "sh", "-c", "echo t >/scratch/t; echo d >/d")
        family.said = tuple(daemon.proa("fork", family.source, "--name", copy) for copy in family.copies)
        yield family
    finally:
        daemon.docker("rm", "-f", *family.names, check=False)
        daemon.docker("network", "rm", family.network, check=False)


def test_the_copy_runs_under_its_own_identity(family: Family) -> None:
    source, copy = family.inspect(family.source), family.inspect(family.copies[0])
    assert family.said[0].out.strip() == copy["Id"] != source["Id"]
    assert family.said[0].err == (
        "WARNING: Published port 18099->81/tcp stays with the source: the copy has none\n"
    )
    assert copy["State"]["Status"] == source["State"]["Status"] == "running"
    for name in ("Memory", "NanoCpus", "RestartPolicy", "Tmpfs", "Isolation"):
        assert copy["HostConfig"][name] == source["HostConfig"][name]
    assert copy["Config"]["Labels"] == source["Config"]["Labels"]
    assert copy["Config"]["Hostname"] == copy["Id"][:12] == family.exec(family.copies[0], "hostname")
    networks = source["NetworkSettings"]["Networks"], copy["NetworkSettings"]["Networks"]
    assert networks[0].keys() == networks[1].keys() == {family.network, "bridge"}
    for name, index in ((family.network, 0), ("bridge", 1)):
        places = [family.inspect(one)["NetworkSettings"]["Networks"][name] for one in family.names]
        for what in ("IPAddress", "MacAddress"):
            assert len({place[what] for place in places}) == 3
        for one, place in zip(family.names, places, strict=True):
            shown = family.exec(one, "ip", "addr", "show", f"eth{index}")
            assert place["MacAddress"] in shown
            assert f"inet {place['IPAddress']}/16" in shown
            assert shown.count("inet ") == 1, "nothing is left of the source's address"
    assert family.exec(family.copies[0], "ip", "route") == family.exec(family.source, "ip", "route").replace(
        networks[0][family.network]["IPAddress"], networks[1][family.network]["IPAddress"]
    ).replace(networks[0]["bridge"]["IPAddress"], networks[1]["bridge"]["IPAddress"])


def test_what_was_in_memory_and_on_disk_goes_on(family: Family) -> None:
    counts = {
        name: [int(line) for line in family.daemon.docker("logs", name).out.split()] for name in family.names
    }
    assert counts[family.source] == list(range(1, len(counts[family.source]) + 1))
    for copy in family.copies:
        assert counts[copy][0] > 3
        assert counts[copy] == list(range(counts[copy][0], counts[copy][-1] + 1))
        assert family.exec(copy, "cat", "/d", "/scratch/t", "/pid") == "d\nt\n1"
        assert int(family.exec(copy, "cat", "/www/count")) > 3
    random = {family.exec(name, "sh", "-c", "head -c 16 /dev/urandom | md5sum") for name in family.names}
    assert len(random) == 3


def test_names_and_ports_lead_to_each(family: Family) -> None:
    for asking in family.names:
        for name in family.names:
            address = family.inspect(name)["NetworkSettings"]["Networks"][family.network]["IPAddress"]
            assert f"PING {name} ({address})" in family.exec(asking, "ping", "-c", "1", "-W", "20", name)
    places = [family.daemon.docker("port", name, "80").out.strip() for name in family.names]
    assert len(set(places)) == 3
    for name, place in zip(family.names, places, strict=True):
        with urllib.request.urlopen(f"http://{place}/count", timeout=PATIENCE_S) as answer:
            assert int(answer.read()) > 0
        hosts = family.exec(name, "cat", "/etc/hosts")
        assert family.inspect(name)["Id"][:12] in hosts
        assert sum(family.inspect(other)["Id"][:12] in hosts for other in family.names) == 1


def test_the_copy_is_a_container_like_any_other(family: Family, name: str) -> None:
    """It ends, starts again from its own disk, is copied again, and survives the daemon."""
    family.daemon.proa("fork", family.copies[1], "--name", name)
    family.exec(name, "sh", "-c", "echo own >>/d")
    family.daemon.restart()
    assert family.exec(name, "cat", "/d") == "d\nown"
    family.daemon.docker("restart", "-t", "0", name)
    assert family.exec(name, "cat", "/d") == "d\nown"
    assert family.daemon.docker("diff", name).out.count("A /d\n") == 1
    second = f"{name}-2"
    try:
        family.daemon.proa("fork", name, "--name", second)  # a machine with the disk of a later start
        assert family.exec(second, "cat", "/d") == "d\nown"
    finally:
        family.daemon.docker("rm", "-f", second, check=False)
    assert family.exec(family.source, "cat", "/d") == "d"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--isolation", "container"), "only what has a virtual machine of its own can be copied"),
        (("--isolation", "vm", "-v", "/data"), "with a volume or bind mount (/data)"),
    ],
)
def test_what_cannot_be_copied_is_refused(
    daemon: Daemon, name: str, options: tuple[str, ...], why: str
) -> None:
    daemon.docker("create", "--name", name, *options, "busybox", "sleep", "1000")
    refused = daemon.proa("fork", name, check=False)
    assert refused.status == 1
    assert refused.err.startswith("Error response from daemon: copying or saving a running container")
    assert why in refused.err
    assert daemon.docker("ps", "-aq", "--filter", f"name={name}").out.count("\n") == 1

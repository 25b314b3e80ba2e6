# SPDX-License-Identifier: Apache-2.0
"""Networks as users of the docker CLI have them: connect, several networks, names, ports, refusals."""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import Iterator

import pytest

from tests.support.daemon import Daemon


@pytest.fixture
def net(daemon: Daemon) -> Iterator[str]:
    """A name for networks and containers that are taken away after the test."""
    name = f"n{uuid.uuid4().hex[:8]}"
    yield name
    for kind in ("ps -a -q", "network ls -q"):
        found = daemon.docker(*kind.split(), "--filter", f"name={name}").out.split()
        if found:
            daemon.docker(*(("rm", "-f") if kind.startswith("ps") else ("network", "rm")), *found)


def inspect(daemon: Daemon, kind: str, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(daemon.docker(kind, "inspect", name).out)[0]
    return found


def test_a_running_container_is_connected_and_disconnected(daemon: Daemon, net: str, hull: str) -> None:
    daemon.docker("network", "create", "--ipv6", f"{net}-a")
    daemon.docker("network", "create", "--subnet", "10.231.7.0/24", f"{net}-b")
    for number, options in (
        (1, ("--network", f"{net}-a", "--isolation", hull)),
        (2, ("--network", f"{net}-b")),
    ):
        daemon.docker("run", "-d", "--name", f"{net}-{number}", *options, "busybox", "sleep", "1000")
    one, two = f"{net}-1", f"{net}-2"
    daemon.docker("network", "connect", "--ip", "10.231.7.9", "--alias", "eins", f"{net}-b", one)
    assert "inet 10.231.7.9/24" in daemon.docker("exec", one, "ip", "address", "show", "eth1").out
    assert "10.231.7.9\t" in daemon.docker("exec", one, "cat", "/etc/hosts").out
    for name in (one, "eins"):
        assert "10.231.7.9" in daemon.docker("exec", two, "nslookup", "-type=a", name).out
    assert daemon.docker("exec", one, "ping", "-c", "1", "-W", "5", two).status == 0
    members = inspect(daemon, "network", f"{net}-b")["Containers"]
    assert isinstance(members, dict)
    assert "10.231.7.9/24" in [member["IPv4Address"] for member in members.values()]
    again = daemon.docker("network", "connect", f"{net}-b", one, check=False)
    assert f"endpoint with name {one} already exists in network {net}-b" in again.err
    daemon.docker("network", "disconnect", f"{net}-b", one)
    assert "eth1" not in daemon.docker("exec", one, "ip", "address").out
    assert "10.231.7.9" not in daemon.docker("exec", one, "cat", "/etc/hosts").out
    assert daemon.docker("exec", two, "nslookup", "-type=a", "eins", check=False).status != 0
    gone = daemon.docker("network", "disconnect", f"{net}-b", one, check=False)
    assert f"is not connected to network {net}-b" in gone.err


def test_names_go_on_while_the_daemon_is_dead(daemon: Daemon, net: str) -> None:
    daemon.docker("network", "create", net)
    for name in (f"{net}-1", f"{net}-2"):
        daemon.docker("run", "-d", "--name", name, "--network", net, "busybox", "sleep", "1000")
    loop = "while sleep 0.05; do nslookup -type=a $0 >/dev/null 2>&1 && echo ok || echo lost; done"
    daemon.docker(
        "run", "-d", "--name", f"{net}-3", "--network", net, "busybox", "sh", "-c", loop, f"{net}-1"
    )
    daemon.restart(signal.SIGKILL)
    daemon.docker("exec", f"{net}-2", "nslookup", "-type=a", f"{net}-1")
    answers = daemon.docker("logs", f"{net}-3").out.split()
    assert "ok" in answers and "lost" not in answers


def test_both_hulls_have_ipv6_and_know_each_other(daemon: Daemon, net: str, hull: str) -> None:
    daemon.docker("network", "create", "--ipv6", "--subnet", "fd31:7::/64", net)
    daemon.docker("run", "-d", "--name", f"{net}-1", "--network", net, "busybox", "sleep", "1000")
    ask = f"ping -6 -c 1 -W 5 fd31:7::2 && nslookup -type=aaaa {net}-1 && ip -6 route"
    out = daemon.docker("run", "--rm", "--isolation", hull, "--network", net, "busybox", "sh", "-c", ask).out
    assert "1 packets received" in out
    assert "Address: fd31:7::2" in out
    assert "default via fd31:7::1 dev eth0" in out


def test_a_network_without_ipv4(daemon: Daemon, net: str) -> None:
    daemon.docker("network", "create", "--ipv4=false", "--ipv6", "--subnet", "fd31:9::/64", net)
    shown = inspect(daemon, "network", net)
    assert (shown["EnableIPv4"], shown["EnableIPv6"]) == (False, True)
    daemon.docker(
        "run",
        "-d",
        "--name",
        f"{net}-1",
        "--network",
        net,
        "-p",
        "8080",
        "busybox",
        "sh",
        "-c",
        "echo hi >index.html; httpd -f -p [::]:8080",
    )
    placed = inspect(daemon, "container", f"{net}-1")["NetworkSettings"]["Networks"][net]  # type: ignore[index]
    assert (placed["IPAddress"], placed["Gateway"], placed["GlobalIPv6Address"]) == ("", "", "fd31:9::2")
    published = daemon.docker("port", f"{net}-1").out.split()
    assert len(published) == 3 and published[2].startswith("[::]:")
    ask = f"ip -4 route; wget -qO- http://{net}-1:8080/ && ip -6 route"
    out = daemon.docker("run", "--rm", "--network", net, "busybox", "sh", "-c", ask).out
    assert out.startswith("hi\n") and "default via fd31:9::1 dev eth0" in out
    for words, said in (
        (
            ("run", "--rm", "--network", net, "--isolation", "vm", "busybox"),
            "cannot be on a network without IPv4",
        ),
        (("run", "--rm", "--network", net, "--ip", "10.0.0.2", "busybox"), "it has no IPv4"),
        (("network", "create", "--ipv4=false", f"{net}-x"), "IPv4 or IPv6 must be enabled"),
        (
            ("network", "create", "--ipv4=false", "--ipv6", "--subnet", "10.9.0.0/24", f"{net}-x"),
            "an IPv4 subnet needs",
        ),
    ):
        refused = daemon.docker(*words, check=False)
        assert refused.status != 0 and said in refused.err, refused


def test_a_machine_joins_networks_before_it_starts(daemon: Daemon, net: str) -> None:
    daemon.docker("network", "create", f"{net}-b")
    daemon.docker(
        "create", "--isolation", "vm", "--name", net, "busybox", "sh", "-c", "ls /sys/class/net; sleep 99"
    )
    daemon.docker("network", "connect", f"{net}-b", net)
    daemon.docker("start", net)
    assert "eth1" in daemon.docker("exec", net, "ip", "link").out
    daemon.docker("network", "disconnect", f"{net}-b", net)
    assert "eth1" not in daemon.docker("exec", net, "ip", "link").out


def test_a_guest_does_not_speak_for_others(daemon: Daemon) -> None:
    """Root of a virtual machine may give its card any address; the bridge knows which is its own."""
    gateway = "$(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p')"
    script = f"""
        gateway={gateway}; own=$(cat /sys/class/net/eth0/address)
        try() {{
            ip link set eth0 down; ip link set eth0 address $1; ip link set eth0 up
            ip route replace default via $gateway
            ping -c 2 -W 2 $gateway >/dev/null && echo $2 answered || echo $2 alone
        }}
        try 02:42:00:00:00:99 foreign; try $own own
    """
    options = ("--isolation", "vm", "--cap-add", "NET_ADMIN")
    said = daemon.docker("run", "--rm", *options, "busybox", "sh", "-c", script)
    assert said.out.split("\n")[:2] == ["foreign alone", "own answered"], said


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--subnet", "10.231.8.0/24"), "Pool overlaps with other one on this address space"),
        (("--subnet", "10.1.0.0/24", "--subnet", "10.2.0.0/24"), "driver doesn't support multiple subnets"),
        (("--subnet", "10.233.0.0/24", "--aux-address", "a=10.9.9.9"), "no matching subnet for aux-address"),
        (("-o", "com.docker.network.driver.mtu=x"), "invalid value for option com.docker.network.driver.mtu"),
        (("-d", "macvlan", "-o", "parent=nosuch0"), "parent device nosuch0 does not exist"),
        (("-d", "weave"), "plugin not found"),
    ],
)
def test_networks_that_are_refused(daemon: Daemon, net: str, options: tuple[str, ...], text: str) -> None:
    daemon.docker("network", "create", "--subnet", "10.231.8.0/24", f"{net}-taken")
    refused = daemon.docker("network", "create", *options, net, check=False)
    assert refused.status == 1 and text in refused.err
    assert daemon.docker("network", "ls", "-q", "--filter", f"name=^{net}$").out == ""


def test_ports_of_a_range_and_a_conflict(daemon: Daemon, net: str) -> None:
    run = ("run", "-d", "-p", "127.0.0.1:18700-18702:80")
    for number in range(3):
        daemon.docker(*run, "--name", f"{net}-{number}", "busybox", "sleep", "1000")
    ports = [daemon.docker("port", f"{net}-{number}", "80").out.strip() for number in range(3)]
    assert ports == [f"127.0.0.1:1870{number}" for number in range(3)]
    refused = daemon.docker(*run, "--name", f"{net}-x", "busybox", "sleep", "1000", check=False)
    assert refused.status == 125 and "all ports are allocated" in refused.err
    refused = daemon.docker("run", "--name", f"{net}-y", "-p", "127.0.0.1:18700:80", "busybox", check=False)
    assert "Bind for 127.0.0.1:18700 failed: port is already allocated" in refused.err

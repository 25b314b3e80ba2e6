# SPDX-License-Identifier: Apache-2.0
"""What a container finds of its networks, in both hulls alike; and what is a virtual machine's alone."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from uuid import uuid4

import pytest

from proa.runtime.vm.nics import SPARES
from tests.support.daemon import Daemon

# Answers with the address of whoever asks.
SERVER = r"""mkdir -p /w/cgi-bin && printf '#!/bin/sh\necho; echo "<$REMOTE_ADDR>"\n' >/w/cgi-bin/a &&
    chmod +x /w/cgi-bin/a && exec httpd -f -p 80 -h /w"""

READY = "until wget -qO- 127.0.0.1/cgi-bin/a >/dev/null; do sleep 0.1; done"


@pytest.fixture
def net(daemon: Daemon) -> Iterator[str]:
    """A name for networks and containers that are taken away after the test."""
    name = f"h{uuid4().hex[:8]}"
    yield name
    for kind in ("ps -a -q", "network ls -q"):
        found = daemon.docker(*kind.split(), "--filter", f"name={name}").out.split()
        if found:
            daemon.docker(*(("rm", "-f") if kind.startswith("ps") else ("network", "rm")), *found)


def ask(address: str, port: int) -> str:
    """Ask SERVER."""
    with socket.create_connection((address, port), timeout=20) as link:
        link.sendall(b"GET /cgi-bin/a HTTP/1.0\r\n\r\n")
        answer = b""
        while piece := link.recv(4096):
            answer += piece
    return answer.decode().split("<")[1].split(">")[0].strip("[]").removeprefix("::ffff:")


@contextlib.contextmanager
def outside(daemon: Daemon, name: str) -> Iterator[None]:
    """A container that is no neighbour of any other: 10.231.12.2 on a cable to the host's 10.231.12.1."""
    daemon.docker("run", "-d", "--name", name, "--network", "none", "busybox", "sleep", "1000")
    pid = daemon.docker("inspect", "-f", "{{.State.Pid}}", name).out.strip()
    for command in (
        f"ip link add {name[:9]}-o type veth peer name eth0 netns {pid}",
        f"ip address add 10.231.12.1/24 dev {name[:9]}-o",
        f"ip link set {name[:9]}-o up",
        f"nsenter -t {pid} -n ip address add 10.231.12.2/24 dev eth0",
        f"nsenter -t {pid} -n ip link set eth0 up",
    ):
        subprocess.run(command.split(), check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "link", "del", f"{name[:9]}-o"], check=True)


def taps() -> set[str]:
    """Devices that are there and connected to something."""
    out = subprocess.run(["ip", "-o", "link", "show", "type", "tun"], capture_output=True, text=True).stdout
    return {line.split(": ")[1] for line in out.splitlines()}


def test_what_a_container_finds(daemon: Daemon, net: str, hull: str) -> None:
    mtu = ("-o", "com.docker.network.driver.mtu=1400")
    daemon.docker("network", "create", "--ipv6", "--subnet", "fd31:8::/64", *mtu, f"{net}-b")
    daemon.docker("network", "create", "--internal", "--subnet", "10.231.9.0/24", f"{net}-a")
    daemon.docker("run", "-d", "--name", f"{net}-peer", "--network", f"{net}-a", "busybox", "sleep", "1000")
    first = f"name={net}-b,alias=web,mac-address=02:42:00:00:00:77,gw-priority=1"
    options = ["--network", first, "--network", f"name={net}-a,ip=10.231.9.7,link-local-ip=169.254.7.7"]
    options += ["--dns", "192.0.2.53", "--dns-search", "example.org", "--dns-option", "timeout:1"]
    options += ["--add-host", "there:192.0.2.1", "--add-host", "host:host-gateway", "--hostname", "me"]
    options += ["--sysctl", "net.ipv4.ip_unprivileged_port_start=1000"]
    daemon.docker("run", "-d", "--name", net, "--isolation", hull, *options, "busybox", "sleep", "1000")
    script = f"""ls /sys/class/net | tr '\\n' ' '; ip addr show eth0; echo ==; ip addr show eth1; echo ==
        ip route; ip -6 route; cat /etc/hosts /etc/resolv.conf /proc/sys/net/ipv4/ip_unprivileged_port_start
        ping -c 1 -W 5 web; ping -c 1 -W 5 {net}-peer; ping -6 -c 1 -W 5 fd31:8::1"""
    eth0, eth1, out = daemon.docker("exec", net, "sh", "-c", script).out.split("==\n")
    assert eth0.startswith("eth0 eth1 lo ")
    for text in ("mtu 1400", "02:42:00:00:00:77", "inet6 fd31:8::2/64"):
        assert text in eth0
    assert "inet 10.231.9.7/24" in eth1 and "inet 169.254.7.7/16" in eth1
    assert "dev eth0" in out.split("default via")[1].splitlines()[0]
    assert "default via fd31:8::1 dev eth0" in out
    gateway = json.loads(daemon.docker("network", "inspect", "bridge").out)[0]["IPAM"]["Config"][0]["Gateway"]
    for line in ("192.0.2.1\tthere", f"{gateway}\thost", "10.231.9.7\tme", "search example.org", "timeout:1"):
        assert line in out
    assert "\n1000\n" in out
    assert out.count("1 packets received") == 3, out
    assert daemon.docker("exec", f"{net}-peer", "ping", "-c", "1", "-W", "5", "me").status == 0


def test_published_ports(daemon: Daemon, net: str, hull: str) -> None:
    daemon.docker("network", "create", "--subnet", "10.231.10.0/24", f"{net}-a")
    daemon.docker("network", "create", "--subnet", "10.231.11.0/24", f"{net}-b")
    ports = ("-p", "18800-18801:80-81", "-p", "127.0.0.1:18802:80", "-p", "127.0.0.1:18803:9/udp")
    run = ("run", "-d", "--name", net, "--isolation", hull, "--network", f"{net}-a", *ports)
    daemon.docker(*run, "busybox", "sh", "-c", SERVER)
    daemon.docker(
        "exec", net, "sh", "-c", "until wget -qO- 127.0.0.1/cgi-bin/a >/dev/null; do sleep 0.1; done"
    )
    assert ask("127.0.0.1", 18800) == ask("127.0.0.1", 18802) == "10.231.10.1"
    with outside(daemon, f"{net}-client"):
        page = "http://10.231.12.1:18800/cgi-bin/a"
        assert "10.231.12.2" in daemon.docker("exec", f"{net}-client", "wget", "-qO-", page).out  # its own
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link,
        contextlib.suppress(ConnectionRefusedError),
    ):
        link.settimeout(10)
        link.connect(("127.0.0.1", 18803))
        link.send(b"hello")
        link.recv(10)  # nobody is there, but the container: its kernel says so
    udp = daemon.docker("exec", net, "sh", "-c", "grep Udp: /proc/net/snmp | tail -n 1").out.split()
    assert int(udp[2]) > 0, "no datagram has come"
    # They follow the container to the network that leads out, while it runs.
    daemon.docker("network", "connect", f"{net}-b", net)
    daemon.docker("network", "disconnect", f"{net}-a", net)
    assert ask("127.0.0.1", 18802) == "10.231.11.1"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--network", "host"), "a network stack of its own"),
        (("--network", "container:{net}-c"), "a network stack of its own"),
        (("--network", "{net}-m"), "its network card is a tap"),
    ],
)
def test_networks_that_a_machine_cannot_join(
    daemon: Daemon, net: str, options: tuple[str, ...], text: str
) -> None:
    subprocess.run(["ip", "link", "add", f"{net}-p", "type", "veth"], check=True)
    try:
        daemon.docker("network", "create", "-d", "macvlan", "-o", f"parent={net}-p", f"{net}-m")
        daemon.docker("create", "--name", f"{net}-c", "busybox")
        words = [word.format(net=net) for word in options]
        refused = daemon.docker("create", "--name", net, "--isolation", "vm", *words, "busybox", check=False)
        assert refused.status == 1
        assert "is not supported with runtime vm" in refused.err and text in refused.err
        assert daemon.docker("ps", "-a", "-q", "--filter", f"name=^{net}$").out == ""
        daemon.docker("create", "--name", f"{net}-v", "--isolation", "vm", "busybox")
        late = daemon.docker("network", "connect", f"{net}-m", f"{net}-v", check=False)
        assert "its network card is a tap" in late.err
        joins = ("create", "--name", net, "--network", f"container:{net}-v", "busybox")
        assert "has no network namespace that could be joined" in daemon.docker(*joins, check=False).err
    finally:
        subprocess.run(["ip", "link", "del", f"{net}-p"], check=True)


def test_a_machine_has_so_many_cards(daemon: Daemon, net: str) -> None:
    before = taps()
    daemon.docker("run", "-d", "--name", net, "--isolation", "vm", "--privileged", "busybox", "sleep", "1000")
    daemon.docker("run", "-d", "--name", f"{net}-peer", "busybox", "sleep", "1000")
    for number in range(SPARES + 1):
        daemon.docker("network", "create", f"{net}-{number}")
    for number in range(SPARES):
        daemon.docker("network", "connect", f"{net}-{number}", net)
    refused = daemon.docker("network", "connect", f"{net}-{SPARES}", net, check=False)
    assert f"more than {SPARES} further networks is not supported with runtime vm" in refused.err
    networks = json.loads(daemon.docker("inspect", net).out)[0]["NetworkSettings"]["Networks"]
    assert sorted(networks) == ["bridge", *(f"{net}-{number}" for number in range(SPARES))]
    daemon.restart(signal.SIGKILL)
    interfaces = daemon.docker("exec", net, "ls", "/sys/class/net").out.split()
    assert interfaces == [*(f"eth{number}" for number in range(SPARES + 1)), "lo"]
    # Off a network, its root finds no way back to it, and another network can have the card.
    peer = json.loads(daemon.docker("inspect", f"{net}-peer").out)[0]["NetworkSettings"]["IPAddress"]
    daemon.docker("exec", net, "ping", "-c", "1", "-W", "5", peer)
    daemon.docker("network", "disconnect", "bridge", net)
    daemon.docker("network", "disconnect", f"{net}-0", net)
    daemon.docker("network", "connect", f"{net}-{SPARES}", net)
    script = f"ls /sys/class/net; ip route add {peer} dev eth0; ping -c 1 -W 1 {peer}"
    lost = daemon.docker("exec", net, "sh", "-c", script, check=False)
    assert lost.status == 1 and "eth0\n" in lost.out and "1 packets received" not in lost.out
    assert len(taps() - before) == SPARES
    daemon.docker("network", "rm", f"{net}-0")
    daemon.docker("pause", net)
    paused = daemon.docker("network", "connect", "bridge", net, check=False)
    assert "is paused, unpause the container first" in paused.err
    daemon.docker("network", "disconnect", f"{net}-1", net)
    daemon.docker("unpause", net)
    assert "eth2" not in daemon.docker("exec", net, "ls", "/sys/class/net").out
    daemon.docker("restart", "-t", "1", net)
    assert len(taps() - before) == SPARES - 1


def test_links_on_the_default_bridge_follow_the_peer(daemon: Daemon, net: str, hull: str) -> None:
    daemon.docker("run", "-d", "--name", f"{net}-db", "busybox", "sleep", "1000")
    link = ("--link", f"{net}-db:db", "--isolation", hull)
    daemon.docker("run", "-d", "--name", net, *link, "busybox", "sleep", "1000")
    assert daemon.docker("exec", net, "ping", "-c", "1", "-W", "5", "db").status == 0
    daemon.docker("stop", "-t", "0", f"{net}-db")
    daemon.docker("run", "-d", "--name", f"{net}-other", "busybox", "sleep", "1000")
    daemon.docker("start", f"{net}-db")
    address = json.loads(daemon.docker("inspect", f"{net}-db").out)[0]["NetworkSettings"]["IPAddress"]
    assert f"{address}\tdb " in daemon.docker("exec", net, "cat", "/etc/hosts").out

# SPDX-License-Identifier: Apache-2.0
"""What reaches what: peers, the outside, published ports, other networks, the host's loopback."""

from __future__ import annotations

import socket
import subprocess
from ipaddress import IPv4Address, IPv4Network

import anyio
import pytest

from proa.model.network import NetworkRequest, PublishedPort
from tests.integration.network.conftest import Opener, join
from tests.support.netns import (
    WAN_HOST,
    WAN_PEER,
    cannot_connect,
    connect,
    exchange,
    inside,
    listen,
    this_namespace,
)

pytestmark = pytest.mark.anyio

HTTP = PublishedPort(container_port=80, protocol="tcp", host_port=8080)


async def test_peers_on_one_network_reach_each_other(opened: Opener) -> None:
    async with opened() as networks:
        one, other = await join(networks, "bridge"), await join(networks, "bridge")
        with listen(one.namespace, 80) as server:
            assert exchange(server, connect(other.namespace, one.address, 80)) == str(other.address)


async def test_outgoing_connections_have_the_hosts_address(opened: Opener, outside: int) -> None:
    async with opened() as networks:
        one = await join(networks, "bridge")
        with listen(outside, 80) as server:
            assert exchange(server, connect(one.namespace, WAN_PEER.ip, 80)) == str(WAN_HOST.ip)


async def test_a_published_port_answers_from_everywhere(opened: Opener, outside: int) -> None:
    async with opened() as networks:
        await networks.create(NetworkRequest(name="other"))
        one = await join(networks, "bridge", ports=(HTTP,))
        neighbour = await join(networks, "bridge")
        stranger = await join(networks, "other")
        host = this_namespace()
        gateway = one.attached.endpoints[0].gateway
        assert gateway is not None
        with listen(one.namespace, 80) as server:
            assert exchange(server, connect(outside, WAN_HOST.ip, 8080)) == str(WAN_PEER.ip)
            exchange(server, connect(host, WAN_HOST.ip, 8080))
            assert exchange(server, connect(host, "127.0.0.1", 8080)) == str(gateway)
            exchange(server, connect(host, gateway, 8080))
            exchange(server, connect(neighbour.namespace, WAN_HOST.ip, 8080))
            exchange(server, connect(one.namespace, WAN_HOST.ip, 8080))  # hairpin to itself
            exchange(server, connect(stranger.namespace, WAN_HOST.ip, 8080))
        await networks.detach(one.id)
        assert cannot_connect(outside, WAN_HOST.ip, 8080)


async def test_a_port_published_on_loopback_stays_there(opened: Opener, outside: int) -> None:
    port = PublishedPort(container_port=80, protocol="tcp", host_ip=IPv4Address("127.0.0.1"), host_port=8080)
    async with opened() as networks:
        one = await join(networks, "bridge", ports=(port,))
        with listen(one.namespace, 80) as server:
            exchange(server, connect(this_namespace(), "127.0.0.1", 8080))
            for refused in (WAN_HOST.ip, IPv4Address("127.0.0.1")):
                assert cannot_connect(outside, refused, 8080)


async def test_udp_follows_the_rules_of_now(opened: Opener, outside: int) -> None:
    """A peer that sends all the time before the port is published gets through once it is."""
    port = PublishedPort(container_port=53, protocol="udp", host_port=5353)
    async with opened() as networks:
        client = inside(outside, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with client:
            client.settimeout(0.2)
            client.connect((str(WAN_HOST.ip), 5353))
            client.send(b"early")
            one = await join(networks, "bridge", ports=(port,))
            server = inside(one.namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            with server:
                server.settimeout(0.2)
                server.bind(("0.0.0.0", 53))
                for _attempt in range(50):
                    try:
                        client.send(b"now")
                        data, peer = server.recvfrom(16)
                        break
                    except (TimeoutError, ConnectionRefusedError):
                        await anyio.sleep(0.02)  # connections are forgotten in the background
                assert data == b"now"
                server.sendto(b"back", peer)
                assert client.recv(16) == b"back"


async def test_networks_are_apart(opened: Opener, outside: int) -> None:
    async with opened() as networks:
        await networks.create(NetworkRequest(name="one"))
        await networks.create(NetworkRequest(name="two"))
        one, two = await join(networks, "one"), await join(networks, "two")
        with listen(one.namespace, 80):
            for stranger in (two.namespace, outside):
                assert cannot_connect(stranger, one.address, 80)


async def test_an_internal_network_has_no_way_out(opened: Opener, outside: int) -> None:
    async with opened() as networks:
        await networks.create(NetworkRequest(name="inner", internal=True))
        one, other = await join(networks, "inner", ports=(HTTP,)), await join(networks, "inner")
        assert one.attached.ports == ()
        assert one.attached.endpoints[0].gateway is None
        with listen(one.namespace, 80) as server, listen(outside, 80):
            exchange(server, connect(other.namespace, one.address, 80))
            assert cannot_connect(one.namespace, WAN_PEER.ip, 80)


async def test_containers_cannot_reach_the_hosts_loopback(opened: Opener) -> None:
    """route_localnet on the bridge would let them, were it not for the raw chain."""
    async with opened() as networks:
        one = await join(networks, "bridge")
        with socket.create_server(("127.0.0.1", 7000)) as server:
            server.settimeout(0.3)

            def attack() -> None:
                # A container with NET_ADMIN: loopback is no longer its own, and leads to the gateway.
                gateway = str(one.attached.endpoints[0].gateway)
                for line in (
                    "ip addr del 127.0.0.1/8 dev lo",
                    f"ip route add 127.0.0.0/8 via {gateway} dev eth0 src {one.address}",
                ):
                    subprocess.run(line.split(), check=True)
                subprocess.run(["sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1"], check=True)
                subprocess.run(["ip", "rule", "add", "pref", "1", "lookup", "main"], check=True)
                subprocess.run(["ip", "rule", "del", "pref", "0"], check=True)
                with pytest.raises(OSError):
                    socket.create_connection(("127.0.0.1", 7000), timeout=0.3)

            inside(one.namespace, attack)
            with pytest.raises(TimeoutError):
                server.accept()


async def test_icc_off_keeps_neighbours_apart(opened: Opener) -> None:
    async with opened() as networks:
        request = NetworkRequest(
            name="quiet",
            subnet=IPv4Network("10.99.0.0/24"),
            options={"com.docker.network.bridge.enable_icc": "false"},
        )
        await networks.create(request)
        one, other = await join(networks, "quiet"), await join(networks, "quiet")
        with listen(one.namespace, 80):
            assert cannot_connect(other.namespace, one.address, 80)

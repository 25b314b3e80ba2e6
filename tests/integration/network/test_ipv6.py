# SPDX-License-Identifier: Apache-2.0
"""Networks with IPv6: addresses, the way out, published ports."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from proa.model.errors import InvalidParameter
from proa.model.network import EndpointRequest, NetworkRequest, PublishedPort
from tests.integration.network.conftest import Opener, join
from tests.support.dns import AAAA, ask
from tests.support.netns import (
    WAN_HOST,
    WAN_HOST6,
    WAN_PEER6,
    cannot_connect,
    connect,
    exchange,
    listen,
    listen6,
    this_namespace,
)

pytestmark = pytest.mark.anyio

HTTP = PublishedPort(container_port=80, protocol="tcp", host_port=8080, any_address=True)


async def test_a_network_has_a_private_prefix_of_its_own(opened: Opener, outside: int) -> None:
    async with opened() as networks:
        network = await networks.create(NetworkRequest(name="six", ipv6=True))
        assert network.subnet6 is not None and network.subnet6.subnet_of(IPv6Network("fd00::/8"))
        one, other = await join(networks, "six"), await join(networks, "six")
        assert one.address6 == network.subnet6.network_address + 2
        assert other.address6 == network.subnet6.network_address + 3
        with listen6(one.namespace, 80) as server:
            assert exchange(server, connect(other.namespace, one.address6, 80)) == str(other.address6)
            assert cannot_connect(outside, one.address6, 80)
        with listen6(outside, 80) as server:
            assert exchange(server, connect(one.namespace, WAN_PEER6.ip, 80)) == str(WAN_HOST6.ip)


async def test_a_network_without_ipv4(opened: Opener, outside: int) -> None:
    async with opened() as networks:
        network = await networks.create(NetworkRequest(name="six", ipv4=False, ipv6=True))
        assert network.subnet is None and network.gateway is None
        one = await join(networks, "six", ports=(HTTP,), name="one")
        other = await join(networks, "six", name="other")
        (endpoint,) = one.attached.endpoints
        assert endpoint.address is None and endpoint.gateway is None
        assert [str(port.host_ip) for port in one.attached.ports] == ["::"]
        assert str(network.gateway6).encode() in networks.resolv_conf([endpoint])
        assert f"{one.address6}\tone" in networks.hosts_file([endpoint], hostname="one").decode()
        assert network.gateway6 is not None
        assert ask(other.namespace, network.gateway6, "one", AAAA).addresses == (str(one.address6),)
        with listen6(one.namespace, 80) as server:
            exchange(server, connect(other.namespace, one.address6, 80))
            assert exchange(server, connect(outside, WAN_HOST6.ip, 8080)) == str(WAN_PEER6.ip)
        with listen6(outside, 80) as server:
            exchange(server, connect(one.namespace, WAN_PEER6.ip, 80))
        with pytest.raises(InvalidParameter, match="it has no IPv4"):
            networks.check("x", EndpointRequest(network="six", address=IPv4Address("10.0.0.2")))
        loopback = replace(HTTP, any_address=False, host_ip=IPv4Address("127.0.0.1"), host_port=8081)
        with pytest.raises(InvalidParameter, match="network six has no IPv4"):
            await join(networks, "six", ports=(loopback,))
        await networks.create(NetworkRequest(name="four"))
        both = await networks.connect(one.id, EndpointRequest(network="four"))
        assert [found.gateway is None for found in both.endpoints] == [True, False]
    async with opened() as networks:
        assert networks.get("six") == network
        found = networks.find(one.id)
        assert found is not None and found.endpoints == both.endpoints and found.ports == one.attached.ports
        with listen6(one.namespace, 80) as server:
            exchange(server, connect(outside, WAN_HOST6.ip, 8080))


async def test_a_published_port_answers_on_both_families(opened: Opener, outside: int) -> None:
    async with opened() as networks:
        await networks.create(NetworkRequest(name="six", ipv6=True))
        one = await join(networks, "six", ports=(HTTP,))
        neighbour, stranger = await join(networks, "six"), await join(networks, "bridge")
        assert [str(port.host_ip) for port in one.attached.ports] == ["0.0.0.0", "::"]
        host = this_namespace()
        with listen6(one.namespace, 80) as server:
            assert exchange(server, connect(outside, WAN_HOST6.ip, 8080)) == str(WAN_PEER6.ip)
            exchange(server, connect(host, WAN_HOST6.ip, 8080))
            exchange(server, connect(neighbour.namespace, WAN_HOST6.ip, 8080))
            exchange(server, connect(one.namespace, WAN_HOST6.ip, 8080))
        with listen(one.namespace, 80) as server:
            exchange(server, connect(stranger.namespace, WAN_HOST.ip, 8080))
        await networks.detach(one.id)
        assert cannot_connect(outside, WAN_HOST6.ip, 8080)


async def test_loopback_works_or_is_refused_at_once(opened: Opener) -> None:
    switch = Path("/proc/sys/net/bridge/bridge-nf-call-ip6tables")
    for value in ("0", "1") if switch.exists() else ("",):
        if value:
            switch.write_text(value)
        async with opened() as networks:
            await networks.create(NetworkRequest(name=f"six{value}", ipv6=True))
            one = await join(networks, f"six{value}", ports=(HTTP,))
            with listen6(one.namespace, 80) as server:
                if value != "1":
                    exchange(server, connect(this_namespace(), "::1", 8080))
                else:
                    with pytest.raises(ConnectionRefusedError):
                        connect(this_namespace(), "::1", 8080)()
            await networks.detach(one.id)


async def test_addresses_of_the_users_choice(opened: Opener) -> None:
    async with opened() as networks:
        subnet = IPv6Network("fd12:3456::/64")
        await networks.create(NetworkRequest(name="six", ipv6=True, subnet6=subnet))
        one = await join(networks, "six", address6=IPv6Address("fd12:3456::99"))
        assert one.address6 == IPv6Address("fd12:3456::99")
        with pytest.raises(InvalidParameter, match="it has no IPv6"):
            await join(networks, "bridge", address6=IPv6Address("fd12:3456::99"))
        with pytest.raises(InvalidParameter, match=r"cannot publish on \[::1\]: network bridge has no IPv6"):
            port = PublishedPort(container_port=80, protocol="tcp", host_ip=IPv6Address("::1"), host_port=80)
            await join(networks, "bridge", ports=(port,))


async def test_the_next_daemon_knows_it_all(opened: Opener, outside: int) -> None:
    async with opened() as networks:
        await networks.create(NetworkRequest(name="six", ipv6=True))
        one = await join(networks, "six", ports=(HTTP,))
        before = networks.list()
    async with opened() as networks:
        assert networks.list() == before
        assert networks.find(one.id) == one.attached
        with listen6(one.namespace, 80) as server:
            exchange(server, connect(outside, WAN_HOST6.ip, 8080))
        await networks.detach(one.id)
        await networks.remove("six")

# SPDX-License-Identifier: Apache-2.0
"""Networks on a device of the host (macvlan; ipvlan is the same code, where the kernel has it)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from proa.model.errors import InvalidParameter
from proa.model.network import EndpointRequest, NetworkRequest, PublishedPort
from proa.model.task import NetworkKind
from proa.network.files import addresses_of
from tests.integration.network.conftest import Opener, join
from tests.support.netns import WAN_PEER, cannot_connect, connect, exchange, listen, this_namespace

pytestmark = pytest.mark.anyio

WAN = IPv4Network("203.0.113.0/24")
REQUEST = NetworkRequest(
    name="lan", driver="macvlan", subnet=WAN, gateway=WAN_PEER.ip, options={"parent": "wan"}
)


async def test_a_container_is_a_machine_of_the_parents_network(opened: Opener, outside: int) -> None:
    async with opened() as networks:
        network = await networks.create(REQUEST)
        one, other = (
            await join(networks, "lan", address=IPv4Address("203.0.113.50")),
            await join(networks, "lan"),
        )
        assert network.mtu == 1500
        with listen(one.namespace, 80) as server:
            assert exchange(server, connect(outside, one.address, 80)) == str(WAN_PEER.ip)
            assert exchange(server, connect(other.namespace, one.address, 80)) == str(other.address)
            assert cannot_connect(this_namespace(), one.address, 80)
        assert networks.resolv_conf(one.attached.endpoints) == b"nameserver 203.0.113.2\n"


async def test_it_joins_and_leaves_and_ports_lead_to_a_bridge(opened: Opener, outside: int) -> None:
    port = PublishedPort(container_port=80, protocol="tcp", host_port=8080)
    async with opened() as networks:
        network = await networks.create(REQUEST)
        lonely = await join(networks, "lan", ports=(port,))
        assert lonely.attached.ports == ()
        one = await join(networks, "bridge", ports=(port,))
        attached = await networks.connect(one.id, EndpointRequest(network="lan", priority=-1))
        with listen(one.namespace, 80) as server:
            exchange(server, connect(outside, addresses_of(attached.endpoints[1:])[0], 80))
        await networks.disconnect(one.id, network.id)
        await networks.detach(one.id)
        await networks.detach(lonely.id)
        await networks.remove("lan")


async def test_what_cannot_be_is_refused(opened: Opener) -> None:
    async with opened() as networks:
        for driver, options, text in (
            ("macvlan", {"parent": "nosuch0"}, "parent device nosuch0 does not exist"),
            ("macvlan", {}, "needs the device of the host"),
            ("macvlan", {"parent": "wan", "macvlan_mode": "x"}, "unknown macvlan mode: x"),
            ("ipvlan", {"parent": "wan", "ipvlan_mode": "bridge"}, "unknown ipvlan mode: bridge"),
        ):
            with pytest.raises(InvalidParameter, match=text):
                await networks.create(NetworkRequest(name="x", driver=driver, options=options))
        await networks.create(REQUEST)
        with pytest.raises(InvalidParameter, match="a virtual machine cannot be on a macvlan network"):
            await join(networks, "lan", kind=NetworkKind.TAP)

# SPDX-License-Identifier: Apache-2.0
"""Containers that are put on networks and taken off them while they run."""

from __future__ import annotations

import contextlib
import subprocess
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from proa.host.rtnetlink import RouteSocket
from proa.model.errors import Forbidden, InvalidParameter
from proa.model.network import EndpointRequest, NetworkRequest, PublishedPort
from proa.model.task import NetworkKind
from proa.network.files import addresses_of
from tests.integration.network.conftest import Joined, Opener, join
from tests.support.netns import WAN_HOST, cannot_connect, connect, exchange, inside, listen

pytestmark = pytest.mark.anyio

HTTP = PublishedPort(container_port=80, protocol="tcp", host_port=8080)


def routes(namespace: Path, *family: str) -> list[str]:
    """Return the default routes inside."""
    command = ["ip", *family, "route", "show", "default"]
    out = inside(namespace, lambda: subprocess.run(command, capture_output=True, text=True, check=True))
    return [" ".join(line.split()[:5]) for line in out.stdout.splitlines()]


async def test_a_running_container_joins_and_leaves(opened: Opener) -> None:
    async with opened() as networks:
        await networks.create(NetworkRequest(name="web"))
        one, other = await join(networks, "bridge"), await join(networks, "web")
        attached = await networks.connect(one.id, EndpointRequest(network="web", aliases=("db",)))
        assert [found.name for found in attached.attachment.interfaces] == ["eth0", "eth1"]
        second = attached.endpoints[1]
        assert second.dns_names[1] == "db"
        with listen(one.namespace, 80) as server:
            exchange(server, connect(other.namespace, addresses_of([second])[0], 80))
            after = await networks.disconnect(one.id, second.network_id)
            assert after == one.attached
            assert cannot_connect(other.namespace, addresses_of([second])[0], 80)
        again = await networks.connect(one.id, EndpointRequest(network="web"))
        assert again.endpoints[1].address == second.address


async def test_the_default_route_and_published_ports_follow_the_priority(
    opened: Opener, outside: int
) -> None:
    async with opened() as networks:
        web = await networks.create(NetworkRequest(name="web", ipv6=True))
        one = await join(networks, "bridge", ports=(HTTP,))
        bridge = networks.get("bridge")
        with listen(one.namespace, 80) as server:
            await networks.connect(one.id, EndpointRequest(network="web", priority=7))
            assert routes(one.namespace) == [f"default via {web.gateway} dev eth1"]
            assert routes(one.namespace, "-6") == [f"default via {web.gateway6} dev eth1"]
            exchange(server, connect(outside, WAN_HOST.ip, 8080))
            await networks.disconnect(one.id, web.id)
            assert routes(one.namespace) == [f"default via {bridge.gateway} dev eth0"]
            exchange(server, connect(outside, WAN_HOST.ip, 8080))
            await networks.disconnect(one.id, bridge.id)
            assert routes(one.namespace) == []
            assert cannot_connect(outside, WAN_HOST.ip, 8080)
            await networks.connect(one.id, EndpointRequest(network="web"), (HTTP,))
            exchange(server, connect(outside, WAN_HOST.ip, 8080))


async def test_equal_priorities_go_by_name(opened: Opener) -> None:
    async with opened() as networks:
        for name in ("b", "a", "c"):
            await networks.create(NetworkRequest(name=name))
        one = await join(networks, "b", "a", "c")
        assert routes(one.namespace) == [f"default via {networks.get('a').gateway} dev eth1"]


async def test_a_refused_connect_changes_nothing(opened: Opener) -> None:
    async with opened() as networks:
        web = await networks.create(NetworkRequest(name="web"))
        one = await join(networks, "bridge", name="one")
        taken = _with_address(networks.get("web").gateway)
        for wanted, error in (
            (taken, InvalidParameter),
            (EndpointRequest(network="web", mac="01:x"), InvalidParameter),
        ):
            with pytest.raises(error):
                await networks.connect(one.id, wanted)
        assert networks.find(one.id) == one.attached
        await networks.connect(one.id, EndpointRequest(network="web"))
        with pytest.raises(Forbidden, match="has active endpoints"):
            await networks.remove("web")
        await networks.disconnect(one.id, web.id)
        await networks.remove("web")


async def test_a_later_daemon_knows_the_connection(opened: Opener) -> None:
    async with opened() as networks:
        await networks.create(NetworkRequest(name="web"))
        one: Joined = await join(networks, "bridge")
        attached = await networks.connect(one.id, EndpointRequest(network="web", priority=1))
    async with opened() as networks:
        assert networks.find(one.id) == attached
        await networks.disconnect(one.id, networks.get("web").id)
        assert routes(one.namespace) == [f"default via {networks.get('bridge').gateway} dev eth0"]


async def test_a_tap_is_cut_off_first_and_deleted_later(opened: Opener) -> None:
    async with opened() as networks:
        web = await networks.create(NetworkRequest(name="web"))
        one = await join(networks, "bridge", kind=NetworkKind.TAP)
        attached = await networks.connect(one.id, EndpointRequest(network="web"))
        interface = attached.attachment.interfaces[1]
        with contextlib.closing(RouteSocket()) as route:
            bridge, tap = route.find_link(web.bridge), route.find_link(interface.device)
            assert bridge is not None and tap is not None and tap.master == bridge.index
            assert await networks.disconnect(one.id, web.id) == one.attached
            tap = route.find_link(interface.device)
            assert tap is not None and tap.master == 0
            await networks.discard(interface)
            await networks.discard(interface)
            assert route.find_link(interface.device) is None


def _with_address(address: object) -> EndpointRequest:
    return EndpointRequest(network="web", address=IPv4Address(str(address)))

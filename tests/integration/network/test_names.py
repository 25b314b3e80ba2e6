# SPDX-License-Identifier: Apache-2.0
"""Names on networks: who is known to whom, what is forwarded, and that it goes on without the daemon."""

from __future__ import annotations

import os
import signal
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from proa.model.network import Network, NetworkRequest
from proa.model.task import NetworkKind
from tests.integration.network.conftest import Joined, Opener, eventually, join
from tests.support.dns import AAAA, NOERROR, NXDOMAIN, PTR, Answer, ask, nameserver

pytestmark = pytest.mark.anyio


def gateway(network: Network) -> IPv4Address:
    assert network.gateway is not None
    return network.gateway


async def resolves(who: Joined, network: Network, name: str) -> Answer:
    """Ask until the name is known: the resolver reads its directory in its own time."""
    await eventually(lambda: bool(ask(who.namespace, gateway(network), name).addresses))
    return ask(who.namespace, gateway(network), name)


async def test_names_aliases_and_short_ids_resolve_for_both_hulls(opened: Opener) -> None:
    async with opened() as networks:
        network = await networks.create(NetworkRequest(name="web"))
        one = await join(networks, "web", name="one", aliases=("db", "db.local"))
        machine = await join(networks, "web", name="machine", kind=NetworkKind.TAP)
        for name in ("one", "db", "db.local", one.id[:12]):
            assert (await resolves(one, network, name)).addresses == (str(one.address),)
        assert (await resolves(one, network, "machine")).addresses == (str(machine.address),)
        assert ask(one.namespace, gateway(network), "nobody").status == NXDOMAIN
        reverse = one.address.reverse_pointer
        assert ask(one.namespace, gateway(network), reverse, PTR).names[0] == "one"


async def test_a_known_name_has_no_ipv6_address_and_that_is_no_error(opened: Opener) -> None:
    """musl gives up on the whole name when the answer for IPv6 is an error. Here nothing is upstream."""
    async with opened() as networks:
        for request in (NetworkRequest(name="web"), NetworkRequest(name="inner", internal=True)):
            network = await networks.create(request)
            one = await join(networks, request.name, name="one")
            await resolves(one, network, "one")
            assert ask(one.namespace, gateway(network), "one", AAAA).status == NOERROR


async def test_a_detached_container_is_forgotten_and_a_renamed_one_renamed(opened: Opener) -> None:
    async with opened() as networks:
        network = await networks.create(NetworkRequest(name="web"))
        one, other = await join(networks, "web", name="one"), await join(networks, "web", name="other")
        await resolves(one, network, "other")
        networks.rename(other.id, "renamed")
        assert (await resolves(one, network, "renamed")).addresses == (str(other.address),)
        await eventually(lambda: not ask(one.namespace, gateway(network), "other").addresses)
        await networks.detach(other.id)
        await eventually(lambda: not ask(one.namespace, gateway(network), "renamed").addresses)


async def test_other_names_are_forwarded_except_from_internal_networks(opened: Opener, outside: int) -> None:
    with nameserver(outside, "203.0.113.2", known={"example.org": "198.51.100.7"}) as asked:
        async with opened() as networks:
            web = await networks.create(NetworkRequest(name="web"))
            inner = await networks.create(NetworkRequest(name="inner", internal=True))
            one, two = await join(networks, "web"), await join(networks, "inner")
            assert ask(one.namespace, gateway(web), "example.org").addresses == ("198.51.100.7",)
            assert ask(two.namespace, gateway(inner), "example.org").status == NXDOMAIN
            assert set(asked) == {"example.org"}


async def test_resolvers_outlive_the_daemon_and_are_adopted(opened: Opener, root: Path) -> None:
    async with opened() as networks:
        network = await networks.create(NetworkRequest(name="web"))
        one = await join(networks, "web", name="one")
        await resolves(one, network, "one")
    pid = _resolver_pid(root, network)
    assert ask(one.namespace, gateway(network), "one").addresses == (str(one.address),)
    async with opened() as networks:
        other = await join(networks, "web", name="other")
        await resolves(one, network, "other")
        assert _resolver_pid(root, network) == pid
        await networks.detach(one.id)
        await networks.detach(other.id)
        await networks.remove("web")
        assert not (root / "x" / "dns" / network.id[:12]).exists()
        await eventually(lambda: not _runs(pid))


async def test_a_resolver_that_dies_is_started_again(opened: Opener, root: Path) -> None:
    async with opened() as networks:
        network = await networks.create(NetworkRequest(name="web"))
        one = await join(networks, "web", name="one")
        pid = _resolver_pid(root, network)
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: _resolver_pid(root, network) not in (0, pid))
        await resolves(one, network, "one")


async def test_files_of_a_container_point_to_its_networks_resolver(opened: Opener) -> None:
    async with opened() as networks:
        network = await networks.create(NetworkRequest(name="web"))
        one = await join(networks, "web")
        endpoints = one.attached.endpoints
        assert networks.resolv_conf(endpoints) == f"nameserver {network.gateway}\noptions ndots:0\n".encode()
        default = await join(networks, "bridge")
        assert networks.resolv_conf(default.attached.endpoints) == b"nameserver 203.0.113.2\n"
        hosts = networks.hosts_file(endpoints, hostname="h", extra_hosts=["up:host-gateway"]).decode()
        assert f"{one.address}\th\n" in hosts
        assert f"{networks.get('bridge').gateway}\tup\n" in hosts


def _resolver_pid(root: Path, network: Network) -> int:
    try:
        return int((root / "x" / "dns" / network.id[:12] / "pid").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _runs(pid: int) -> bool:
    try:
        return b"dnsmasq" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False

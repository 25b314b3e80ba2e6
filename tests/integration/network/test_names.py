# SPDX-License-Identifier: Apache-2.0
"""Names on networks: who is known to whom, what is forwarded, and that it goes on without the daemon."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from proa.model.network import EndpointRequest, Network, NetworkRequest
from proa.model.task import NetworkKind
from proa.network.files import addresses_of
from tests.integration.network.conftest import Joined, Opener, eventually, join
from tests.support.dns import AAAA, NOERROR, NXDOMAIN, PTR, REFUSED, Answer, ask, nameserver
from tests.support.netns import inside

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def asked(outside: int) -> Iterator[list[str]]:
    """The host's nameserver, and what it was asked for."""
    with nameserver(outside, "203.0.113.2", known={"example.org": "198.51.100.7"}) as names:
        yield names


def gateway(network: Network) -> IPv4Address:
    assert network.gateway is not None
    return network.gateway


def resolves(who: Joined, network: Network, name: str) -> Answer:
    """Ask once: what the daemon has been told is known."""
    return ask(who.namespace, gateway(network), name)


async def test_names_aliases_and_short_ids_resolve_for_both_hulls(opened: Opener) -> None:
    async with opened() as networks:
        network = await networks.create(NetworkRequest(name="web"))
        one = await join(networks, "web", name="one", aliases=("db", "db.local"))
        machine = await join(networks, "web", name="machine", kind=NetworkKind.TAP)
        for name in ("one", "db", "db.local", one.id[:12]):
            assert resolves(one, network, name).addresses == (str(one.address),)
        assert resolves(one, network, "machine").addresses == (str(machine.address),)
        assert ask(one.namespace, gateway(network), "nobody").status == NXDOMAIN
        reverse = one.address.reverse_pointer
        assert ask(one.namespace, gateway(network), reverse, PTR).names == ("one.web",)


async def test_a_known_name_has_no_ipv6_address_and_that_is_no_error(opened: Opener) -> None:
    """musl gives up on the whole name when the answer for IPv6 is an error. Here nothing is upstream."""
    async with opened() as networks:
        for request in (NetworkRequest(name="web"), NetworkRequest(name="inner", internal=True)):
            network = await networks.create(request)
            one = await join(networks, request.name, name="one")
            assert resolves(one, network, "one").addresses
            assert ask(one.namespace, gateway(network), "one", AAAA).status == NOERROR


async def test_a_detached_container_is_forgotten_and_a_renamed_one_renamed(opened: Opener) -> None:
    async with opened() as networks:
        network = await networks.create(NetworkRequest(name="web"))
        one, other = await join(networks, "web", name="one"), await join(networks, "web", name="other")
        assert resolves(one, network, "other").addresses
        networks.rename(other.id, "renamed")
        assert resolves(one, network, "renamed").addresses == (str(other.address),)
        assert not resolves(one, network, "other").addresses
        await networks.detach(other.id)
        assert not resolves(one, network, "renamed").addresses


async def test_other_names_are_forwarded_except_from_internal_networks(
    opened: Opener, asked: list[str]
) -> None:
    async with opened() as networks:
        web = await networks.create(NetworkRequest(name="web"))
        inner = await networks.create(NetworkRequest(name="inner", internal=True))
        one, two = await join(networks, "web"), await join(networks, "inner")
        assert ask(one.namespace, gateway(web), "example.org").addresses == ("198.51.100.7",)
        assert ask(two.namespace, gateway(inner), "example.org").status == NXDOMAIN
        assert asked == ["example.org"]


async def test_the_resolver_outlives_the_daemon_and_is_adopted(opened: Opener, root: Path) -> None:
    async with opened() as networks:
        network = await networks.create(NetworkRequest(name="web"))
        one = await join(networks, "web", name="one")
        assert resolves(one, network, "one").addresses
    pid = _resolver_pid(root)
    assert ask(one.namespace, gateway(network), "one").addresses == (str(one.address),)
    async with opened() as networks:
        other = await join(networks, "web", name="other")
        await eventually(lambda: bool(resolves(one, network, "other").addresses))
        assert _resolver_pid(root) == pid
        await networks.detach(one.id)
        assert resolves(other, network, "one").status == NXDOMAIN
        await networks.detach(other.id)
        await networks.remove("web")
        await eventually(lambda: not _runs(pid))


async def test_a_resolver_that_dies_is_started_again(opened: Opener, root: Path) -> None:
    async with opened() as networks:
        network = await networks.create(NetworkRequest(name="web"))
        one = await join(networks, "web", name="one")
        pid = _resolver_pid(root)
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: _resolver_pid(root) not in (0, pid))
        await eventually(lambda: bool(_resolves_now(one, network, "one")))


async def test_a_container_knows_the_names_of_its_networks_and_no_others(opened: Opener) -> None:
    async with opened() as networks:
        a, b = [await networks.create(NetworkRequest(name=name)) for name in "ab"]
        one, two = await join(networks, "a", name="one"), await join(networks, "b", name="two")
        both = await join(networks, "a", "b", name="both")
        second = addresses_of(both.attached.endpoints[1:])[0]
        for server in (a, b):
            for name, known in (("one", one), ("two", two)):
                assert resolves(both, server, name).addresses == (str(known.address),)
        assert resolves(one, a, "two").status == NXDOMAIN
        assert resolves(two, b, "both").addresses == (str(second),)
        assert resolves(one, a, "both.a").addresses == (str(both.address),)
        await networks.connect(one.id, EndpointRequest(network="b", aliases=("extra",)))
        assert resolves(one, a, "two").addresses == (str(two.address),)
        assert len(resolves(two, b, "extra").addresses) == 1
        await networks.disconnect(one.id, b.id)
        assert resolves(one, a, "two").status == NXDOMAIN
        assert resolves(two, b, "extra").status == NXDOMAIN


async def test_shared_aliases_take_turns_and_ipv6_is_known(opened: Opener) -> None:
    async with opened() as networks:
        network = await networks.create(NetworkRequest(name="six", ipv6=True))
        members = [await join(networks, "six", aliases=("pool",)) for _member in range(3)]
        answers = {resolves(members[0], network, "pool").addresses for _question in range(60)}
        assert {frozenset(found) for found in answers} == {frozenset(str(one.address) for one in members)}
        assert len({found[0] for found in answers}) == 3
        name = members[0].attached.endpoints[0].name
        assert ask(members[1].namespace, gateway(network), name, AAAA).addresses == (
            str(members[0].address6),
        )


async def test_strangers_are_refused(opened: Opener, outside: int, asked: list[str]) -> None:
    async with opened() as networks:
        network = await networks.create(NetworkRequest(name="web"))
        await join(networks, "web", name="one")
        for name in ("one", "example.org"):
            assert ask(outside, gateway(network), name).status == REFUSED
        assert asked == []


async def test_nameservers_of_the_users_choice_are_asked_in_place_of_the_hosts(
    opened: Opener, outside: int, asked: list[str]
) -> None:
    add = "ip address add 203.0.113.9/24 dev eth0".split()
    inside(outside, lambda: subprocess.run(add, check=True))
    async with opened() as networks:
        network = await networks.create(NetworkRequest(name="web"))
        with nameserver(outside, "203.0.113.9", known={"example.org": "198.51.100.8"}):
            own = await networks.attach(
                "c" * 64,
                kind=NetworkKind.NAMESPACE,
                endpoints=[EndpointRequest(network="web")],
                ports=(),
                container_name="own",
                hostname="own",
                dns=("203.0.113.9",),
            )
            assert own.attachment.namespace is not None
            answer = ask(own.attachment.namespace, gateway(network), "example.org")
            assert answer.addresses == ("198.51.100.8",)
        assert asked == []
        lines = networks.resolv_conf(own.endpoints, dns=("203.0.113.9",)).decode().splitlines()
        assert lines == [f"nameserver {network.gateway}", "options ndots:0"]


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


def _resolver_pid(root: Path) -> int:
    try:
        return int((root / "x" / "dns" / "pid").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _resolves_now(who: Joined, network: Network, name: str) -> tuple[str, ...]:
    try:
        return ask(who.namespace, gateway(network), name).addresses
    except OSError:
        return ()


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()

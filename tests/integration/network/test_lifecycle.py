# SPDX-License-Identifier: Apache-2.0
"""A daemon that ends, dies or finds the host changed; containers that come and go; nothing left behind."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import anyio
import pytest

from proa.host.nftables import Nftables
from proa.host.rtnetlink import RouteSocket, delete_link
from proa.host.tap import IFF_NO_PI, IFF_TAP, TUNSETIFF
from proa.model.errors import EngineError, Forbidden, InvalidParameter, NameInUse, NoSuchNetwork, NotFound
from proa.model.network import NetworkRequest, PublishedPort
from proa.model.task import NetworkKind
from proa.network.bridge import table_name
from proa.network.networks import Networks
from proa.network.ports import PortTaken
from proa.network.teardown import teardown
from tests.integration.network.conftest import Opener, eventually, join
from tests.support.netns import WAN_HOST, connect, exchange, inside, listen

pytestmark = pytest.mark.anyio

HTTP = PublishedPort(container_port=80, protocol="tcp", host_port=8080)
ROUNDS = 200
FILL_S = 0.3  # in which the pool of namespaces is filled


async def test_attachments_and_ports_go_on_with_the_next_daemon(opened: Opener, outside: int) -> None:
    async with opened() as networks:
        await networks.create(NetworkRequest(name="web"))
        one = await join(networks, "web", name="one", ports=(HTTP,))
        machine = await join(networks, "web", kind=NetworkKind.TAP)
        before = networks.list()
    with listen(one.namespace, 80) as server:
        exchange(server, connect(outside, WAN_HOST.ip, 8080))
        async with opened() as networks:
            assert networks.list() == before
            assert networks.find(one.id) == one.attached
            assert networks.find(machine.id) == machine.attached
            exchange(server, connect(outside, WAN_HOST.ip, 8080))
            with pytest.raises(PortTaken):
                await join(networks, "bridge", ports=(HTTP,))
            assert (await join(networks, "web")).address not in (one.address, machine.address)


async def test_a_flushed_host_is_set_right_again(opened: Opener, outside: int) -> None:
    async with opened() as networks:
        one = await join(networks, "bridge", ports=(HTTP,))
        bridge = networks.get("bridge").bridge
    _nft("flush ruleset")
    route = RouteSocket()
    link = route.find_link(bridge)
    assert link is not None
    route.transact(delete_link(link.index))
    route.close()
    async with opened():
        with listen(one.namespace, 80) as server:
            exchange(server, connect(outside, WAN_HOST.ip, 8080))


async def test_rules_that_somebody_flushed_come_back_with_the_next_port(opened: Opener, outside: int) -> None:
    async with opened() as networks:
        one = await join(networks, "bridge", ports=(HTTP,))
        _nft("flush ruleset")
        await join(networks, "bridge", ports=(PublishedPort(container_port=80, protocol="tcp"),))
        with listen(one.namespace, 80) as server:
            exchange(server, connect(outside, WAN_HOST.ip, 8080))


async def test_after_a_reboot_attachments_are_gone_and_networks_are_back(opened: Opener, root: Path) -> None:
    async with opened() as networks:
        await networks.create(NetworkRequest(name="web"))
        one = await join(networks, "web", ports=(HTTP,))
        machine = await join(networks, "web", kind=NetworkKind.TAP)
        before = networks.list()
    teardown(root / "x")
    async with opened() as networks:
        assert networks.list() == before
        assert networks.find(one.id) is None
        assert networks.find(machine.id) is None
        await join(networks, "web", ports=(HTTP,))


async def test_cleanup_removes_what_unknown_containers_left(opened: Opener, root: Path) -> None:
    async with opened() as networks:
        known = await join(networks, "bridge")
        await join(networks, "bridge", ports=(HTTP,))
        await join(networks, "bridge", kind=NetworkKind.TAP)
        (root / "x" / "netns" / "stray").touch()
    async with opened() as networks:
        await networks.cleanup({known.id})
        assert [found.container_id for found in networks.endpoints(networks.get("bridge").id)] == [known.id]
        assert list((root / "x" / "netns").iterdir()) == [known.namespace]
        await eventually(lambda: len(_ports_of(networks)) == 1)


async def test_foreign_rules_stay(opened: Opener) -> None:
    _nft("table ip foreign { chain forward { type filter hook forward priority 10 ; policy accept ; } ; }")
    before = _nft("list table ip foreign")
    async with opened() as networks:
        await join(networks, "bridge", ports=(HTTP,))
        await networks.create(NetworkRequest(name="web"))
        await networks.remove("web")
    assert _nft("list table ip foreign") == before


async def test_a_failed_attach_leaves_nothing(opened: Opener, root: Path) -> None:
    async with opened() as networks:
        await networks.create(NetworkRequest(name="web"))
        await join(networks, "bridge", ports=(HTTP,))
        await anyio.sleep(FILL_S)
        before = _traces(root, networks)
        other = PublishedPort(container_port=81, protocol="tcp", host_port=8081)
        for kind in NetworkKind:
            with pytest.raises(
                PortTaken, match=r"failed programming external connectivity on endpoint late \("
            ):
                await join(networks, "web", "bridge", name="late", kind=kind, ports=(other, HTTP))
        await eventually(lambda: _traces(root, networks) == before)
        await join(networks, "bridge", ports=(other,))


async def test_a_port_of_a_program_of_the_host_is_not_taken_from_it(opened: Opener) -> None:
    async with opened() as networks:
        taken = re.escape("listen tcp4 0.0.0.0:8080: bind: address already in use")
        with socket.create_server(("0.0.0.0", 8080)), pytest.raises(PortTaken, match=taken):
            await join(networks, "bridge", ports=(HTTP,))
        await join(networks, "bridge", ports=(HTTP,))
        with pytest.raises(OSError):
            socket.create_server(("0.0.0.0", 8080)).close()


async def test_addresses_are_checked(opened: Opener) -> None:
    async with opened() as networks:
        await networks.create(NetworkRequest(name="auto"))
        await networks.create(NetworkRequest(name="own", subnet=IPv4Network("10.99.0.0/24")))
        one = await join(networks, "own", address=IPv4Address("10.99.0.7"))
        assert one.address == IPv4Address("10.99.0.7")
        for ref, address, error in (
            ("own", "10.99.0.7", Forbidden),
            ("own", "10.99.0.1", Forbidden),
            ("own", "10.98.0.7", InvalidParameter),
            ("auto", "172.18.0.9", InvalidParameter),
            ("bridge", "172.17.0.9", InvalidParameter),
            ("absent", "10.99.0.8", NoSuchNetwork),
        ):
            with pytest.raises(error):
                await join(networks, ref, address=IPv4Address(address))


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (NetworkRequest(name="web"), NameInUse),
        (NetworkRequest(name="bridge"), Forbidden),
        (NetworkRequest(name=""), InvalidParameter),
        (NetworkRequest(name="x", driver="weave"), NotFound),
        (NetworkRequest(name="x", subnet=IPv4Network("10.99.0.0/16")), Forbidden),
        (NetworkRequest(name="x", gateway=IPv4Address("10.1.0.1")), InvalidParameter),
        (NetworkRequest(name="x", options={"com.docker.network.driver.mtu": "9"}), InvalidParameter),
        (NetworkRequest(name="x", options={"com.docker.network.bridge.name": "wan"}), EngineError),
    ],
)
async def test_a_bad_network_is_refused(
    opened: Opener, request_: NetworkRequest, error: type[EngineError]
) -> None:
    async with opened() as networks:
        await networks.create(NetworkRequest(name="web", subnet=IPv4Network("10.99.0.0/24")))
        before = networks.list()
        with pytest.raises(error):
            await networks.create(request_)
        assert networks.list() == before


async def test_a_network_in_use_is_not_removed(opened: Opener) -> None:
    async with opened() as networks:
        network = await networks.create(NetworkRequest(name="web"))
        one = await join(networks, "web", name="one")
        with pytest.raises(Forbidden, match=f"network web id {network.id} has active endpoints"):
            await networks.remove("web")
        with pytest.raises(Forbidden, match="bridge is a pre-defined network and cannot be removed"):
            await networks.remove("bridge")
        assert networks.unused() == []
        await networks.detach(one.id)
        assert networks.unused() == [network]
        await networks.remove(network.id[:10])
        with pytest.raises(NoSuchNetwork, match="network web not found"):
            networks.get("web")


async def test_two_hundred_rounds_leave_nothing(opened: Opener, root: Path) -> None:
    ports = (HTTP, PublishedPort(container_port=53, protocol="udp", host_port=5353))
    async with opened() as networks:
        await networks.create(NetworkRequest(name="web"))
        await anyio.sleep(FILL_S)
        before = _traces(root, networks)
        for number in range(ROUNDS):
            kind = NetworkKind.TAP if number % 4 == 0 else NetworkKind.NAMESPACE
            one = await join(networks, "bridge" if number % 2 else "web", ports=ports, kind=kind)
            await networks.detach(one.id)
            await networks.detach(one.id)
        await eventually(lambda: _traces(root, networks) == before)


async def test_a_container_without_a_network_has_loopback(opened: Opener) -> None:
    async with opened() as networks:
        for refs in ((), ("none",)):
            one = await join(networks, *refs)
            assert one.attached.endpoints == ()
            links = inside(one.namespace, _links)
            assert links == {"lo"}
        machine = await join(networks, kind=NetworkKind.TAP)
        assert machine.attached.attachment.interfaces == ()


async def test_two_networks_give_two_interfaces_and_one_default_route(opened: Opener) -> None:
    async with opened() as networks:
        await networks.create(NetworkRequest(name="inner", internal=True))
        one = await join(networks, "inner", "bridge")
        interfaces = one.attached.attachment.interfaces
        assert [found.name for found in interfaces] == ["eth0", "eth1"]
        assert [found.gateway is not None for found in interfaces] == [False, True]


async def test_the_namespace_program_is_started_again_when_it_was_killed(opened: Opener) -> None:
    async with opened() as networks:
        await anyio.sleep(FILL_S)
        os.kill(_child_pid("netns_server"), 9)
        for _round in range(8):
            await join(networks, "bridge")


async def test_a_frame_of_a_machine_reaches_the_bridge(opened: Opener) -> None:
    """Opens the tap as QEMU does, and asks for the gateway's hardware address."""
    async with opened() as networks:
        machine = await join(networks, "bridge", kind=NetworkKind.TAP)
        (interface,) = machine.attached.attachment.interfaces
        tap = os.open("/dev/net/tun", os.O_RDWR)
        try:
            fcntl.ioctl(
                tap, TUNSETIFF, struct.pack("=16sH22x", interface.device.encode(), IFF_TAP | IFF_NO_PI)
            )
            own = bytes.fromhex(interface.mac.replace(":", ""))
            gateway = interface.gateway
            assert gateway is not None
            question = b"\xff" * 6 + own + struct.pack("!HHHBBH", 0x806, 1, 0x800, 6, 4, 1)
            question += own + machine.address.packed + bytes(6) + gateway.packed
            os.set_blocking(tap, False)
            answers: list[bytes] = []

            def answered() -> bool:
                try:
                    os.write(tap, question)  # again and again: the port opens a moment after the tap
                    answers.append(os.read(tap, 2048))
                except BlockingIOError:
                    return False
                return answers[-1][12:14] == b"\x08\x06" and answers[-1][28:32] == gateway.packed

            await eventually(answered)
        finally:
            os.close(tap)


def _traces(root: Path, networks: Networks) -> dict[str, object]:
    """Everything that an attachment could leave behind."""
    return {
        "links": _links(),
        "rules": _nft(f"list table ip {table_name(root / 'x')}"),
        "mounts": [
            line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(root) in line
        ],
        "namespaces": sorted((root / "x" / "netns").iterdir()),
        "names": sorted(str(path) for path in (root / "x" / "dns").rglob("*") if path.parent.name == "hosts"),
        "files": _open_files(),
        "children": sorted(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
        "endpoints": [networks.endpoints(network.id) for network in networks.list()],
    }


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _links() -> set[str]:
    route = RouteSocket()
    try:
        return {link.name for link in route.links()}
    finally:
        route.close()


def _ports_of(networks: Networks) -> set[str]:
    route = RouteSocket()
    try:
        links = route.links()
    finally:
        route.close()
    bridge = next(link for link in links if link.name == networks.get("bridge").bridge)
    return {link.name for link in links if link.master == bridge.index}


def _nft(commands: str) -> str:
    nft = Nftables()
    try:
        return nft.run(commands)
    finally:
        nft.close()


def _child_pid(word: str) -> int:
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        if word in Path(f"/proc/{pid}/cmdline").read_text():
            return int(pid)
    raise AssertionError(f"no child runs {word}")

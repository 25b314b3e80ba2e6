# SPDX-License-Identifier: Apache-2.0
"""Claims on ports of the host. Sockets are bound to loopback only."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from proa.model.errors import InvalidParameter
from proa.model.network import PublishedPort
from proa.network.ports import PortTable, PortTaken, conflicts

LOCAL = IPv4Address("127.0.0.1")


def port(number: int, *, protocol: str = "tcp", host_ip: str = "127.0.0.1") -> PublishedPort:
    return PublishedPort(container_port=80, protocol=protocol, host_ip=IPv4Address(host_ip), host_port=number)


@pytest.fixture
def table() -> Iterator[PortTable]:
    made = PortTable()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (port(80), port(80), True),
        (port(80), port(81), False),
        (port(80), port(80, protocol="udp"), False),
        (port(80), port(80, host_ip="127.0.0.2"), False),
        (port(80, host_ip="0.0.0.0"), port(80), True),
        (port(80), port(80, host_ip="0.0.0.0"), True),
    ],
)
def test_conflicts(one: PublishedPort, other: PublishedPort, expected: bool) -> None:
    assert conflicts(one, other) is expected


def test_a_port_is_claimed_once_and_free_after_release(table: PortTable) -> None:
    (chosen,) = table.claim("a", [port(0)])
    assert chosen.host_port >= 1024
    with pytest.raises(
        PortTaken, match=rf"Bind for 127.0.0.1:{chosen.host_port} failed: port is already allocated"
    ):
        table.claim("b", [chosen])
    table.claim("b", [port(chosen.host_port, host_ip="127.0.0.2")])
    table.release("b", [chosen])  # not b's
    with pytest.raises(PortTaken):
        table.claim("b", [chosen])
    table.release("a", [chosen])
    table.release("a", [chosen])
    assert table.claim("b", [chosen]) == (chosen,)


def test_all_or_nothing(table: PortTable) -> None:
    (taken,) = table.claim("a", [port(0)])
    (free,) = table.claim("b", [port(0)])
    table.release("b", [free])
    with pytest.raises(PortTaken):
        table.claim("b", [free, taken])
    assert table.claim("c", [free]) == (free,)
    with pytest.raises(PortTaken, match="already allocated"):
        table.claim("d", [port(0), taken])


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_the_hosts_programs_see_a_claim_and_we_see_theirs(table: PortTable, protocol: str) -> None:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    (chosen,) = table.claim("a", [port(0, protocol=protocol)])
    with socket.socket(socket.AF_INET, kind) as other:
        if protocol == "tcp":
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError):
            other.bind(("127.0.0.1", chosen.host_port))
        table.release("a", [chosen])
        other.bind(("127.0.0.1", chosen.host_port))
        if protocol == "tcp":
            other.listen()
        text = f"listen {protocol}4 127.0.0.1:{chosen.host_port}: bind: address already in use"
        with pytest.raises(PortTaken, match=text):
            table.claim("a", [chosen])


def test_chosen_ports_differ_and_do_not_repeat_at_once(table: PortTable) -> None:
    first = table.claim("a", [port(0), port(0)])
    assert first[0].host_port != first[1].host_port
    table.release("a", first)
    assert table.claim("b", [port(0)])[0].host_port not in {found.host_port for found in first}


def test_what_cannot_be_is_refused(table: PortTable) -> None:
    with pytest.raises(InvalidParameter, match="invalid port protocol: icmp"):
        table.claim("a", [port(80, protocol="icmp")])
    with pytest.raises(InvalidParameter, match="bind: cannot assign requested address"):
        table.claim("a", [port(8080, host_ip="198.51.100.1")])


def test_a_restored_claim_stands_even_when_a_program_has_the_port(table: PortTable) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = port(server.getsockname()[1])
        table.restore("a", [taken])
    with pytest.raises(PortTaken, match="already allocated"):
        table.claim("b", [taken])


def test_a_port_on_any_address_is_of_ipv6_where_there_is_no_other() -> None:
    wanted = PublishedPort(container_port=80, protocol="tcp", any_address=True)
    table = PortTable()
    try:
        (six,) = table.claim("a", [wanted], versions=(6,))
        assert str(six.host_ip) == "::"
    finally:
        table.close()


def test_a_port_on_any_address_is_two_where_there_is_ipv6() -> None:
    wanted = PublishedPort(container_port=80, protocol="tcp", any_address=True)
    table = PortTable()
    try:
        four, six = table.claim("a", [wanted], versions=(4, 6))
        assert (str(four.host_ip), str(six.host_ip)) == ("0.0.0.0", "::")
        assert four.host_port == six.host_port != 0
        assert not four.any_address
        (again,) = table.claim("b", [wanted])
        assert again.host_port != four.host_port
    finally:
        table.close()


def test_the_first_free_port_of_a_range_is_taken() -> None:
    wanted = PublishedPort(
        container_port=80,
        protocol="udp",
        host_ip=IPv4Address("127.0.0.1"),
        host_port=39_871,
        last_host_port=39_872,
    )
    table = PortTable()
    try:
        numbers = [table.claim(owner, [wanted])[0].host_port for owner in "ab"]
        assert numbers == [39_871, 39_872]
        with pytest.raises(PortTaken, match="39871-39872 failed: all ports are allocated"):
            table.claim("c", [wanted])
        table.release("a", [replace(wanted, last_host_port=0)])
        assert table.claim("c", [wanted])[0].host_port == 39_871
    finally:
        table.close()

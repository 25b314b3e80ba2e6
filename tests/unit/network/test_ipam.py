# SPDX-License-Identifier: Apache-2.0
"""Choice of subnets and addresses."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.model.errors import EngineError, Forbidden, InvalidParameter, Unavailable
from proa.model.network import NetworkRequest
from proa.network import ipam

SUBNET = IPv4Network("10.9.0.0/29")


def test_the_first_subnet_that_overlaps_nothing_is_chosen() -> None:
    assert ipam.choose_subnet([]) == IPv4Network("172.17.0.0/16")
    taken = [IPv4Network("172.17.3.0/24"), IPv4Network("172.18.0.1/32"), IPv4Network("172.16.0.0/14")]
    assert ipam.choose_subnet(taken) == IPv4Network("172.20.0.0/16")
    private = [IPv4Network("172.16.0.0/12")]
    assert ipam.choose_subnet(private) == IPv4Network("10.88.0.0/16")


def test_a_host_without_a_free_subnet_is_told_so() -> None:
    with pytest.raises(Unavailable, match="non-overlapping IPv4 address pool"):
        ipam.choose_subnet([IPv4Network("0.0.0.0/0")])


def test_addresses_are_handed_out_from_the_lowest_until_none_is_left() -> None:
    taken = {ipam.choose_gateway(SUBNET)}
    given_out = []
    for _container in range(5):
        address = ipam.choose_address(SUBNET, None, taken)
        taken.add(address)
        given_out.append(str(address))
    assert given_out == ["10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.5", "10.9.0.6"]
    with pytest.raises(Forbidden, match="no available IPv4 addresses"):
        ipam.choose_address(SUBNET, None, taken)
    taken.remove(IPv4Address("10.9.0.4"))
    assert ipam.choose_address(SUBNET, None, taken) == IPv4Address("10.9.0.4")


def test_a_range_limits_the_choice_and_not_the_users_own() -> None:
    subnet, ip_range = IPv4Network("10.9.0.0/16"), IPv4Network("10.9.8.0/24")
    assert ipam.choose_address(subnet, ip_range, set()) == IPv4Address("10.9.8.0")
    ipam.check_address(IPv4Address("10.9.1.1"), subnet, set())


@given(st.sets(st.integers(0, 15)))
def test_a_chosen_address_is_free_and_of_a_host(numbers: set[int]) -> None:
    subnet = IPv4Network("10.9.0.0/28")
    taken = {subnet.network_address + number for number in numbers}
    free = set(subnet.hosts()) - taken
    try:
        address = ipam.choose_address(subnet, None, taken)
    except Forbidden:
        assert not free
    else:
        assert address == min(free)


@pytest.mark.parametrize(
    ("address", "error", "text"),
    [
        ("10.9.0.9", InvalidParameter, "no configured subnet"),
        ("10.9.0.0", InvalidParameter, "no configured subnet"),
        ("10.9.0.7", InvalidParameter, "no configured subnet"),
        ("10.9.0.3", Forbidden, "Address already in use"),
    ],
)
def test_an_address_of_the_users_choice_is_checked(address: str, error: type[EngineError], text: str) -> None:
    with pytest.raises(error, match=text):
        ipam.check_address(IPv4Address(address), SUBNET, {IPv4Address("10.9.0.3")})


@pytest.mark.parametrize(
    ("subnet", "gateway", "ip_range", "error", "text"),
    [
        (None, "10.1.0.1", None, InvalidParameter, "no matching subnet for gateway 10.1.0.1"),
        (None, None, "10.1.0.0/24", InvalidParameter, "no matching subnet for range"),
        ("10.1.0.0/16", "10.2.0.1", None, InvalidParameter, "no matching subnet for gateway 10.2.0.1"),
        ("10.1.0.0/16", "10.1.0.0", None, InvalidParameter, "not the address of a host"),
        ("10.1.0.0/16", None, "10.2.0.0/24", InvalidParameter, "no matching subnet for range 10.2.0.0/24"),
        ("10.1.0.0/31", None, None, InvalidParameter, "no room"),
        ("127.1.0.0/16", None, None, InvalidParameter, "cannot be used"),
        ("0.0.0.0/8", None, None, InvalidParameter, "cannot be used"),
        ("10.9.0.0/16", None, None, Forbidden, "Pool overlaps with other one on this address space"),
    ],
)
def test_addresses_that_do_not_fit_are_refused(
    subnet: str | None, gateway: str | None, ip_range: str | None, error: type[EngineError], text: str
) -> None:
    request = NetworkRequest(
        name="x",
        subnet=None if subnet is None else IPv4Network(subnet),
        gateway=None if gateway is None else IPv4Address(gateway),
        ip_range=None if ip_range is None else IPv4Network(ip_range),
    )
    with pytest.raises(error, match=text):
        ipam.check_pool(request, [SUBNET])


def test_the_mac_follows_from_the_address() -> None:
    assert ipam.mac_of(IPv4Address("172.17.0.2")) == "02:42:ac:11:00:02"


def test_ipv6_addresses_go_with_those_of_ipv4() -> None:
    subnet = ipam.choose_subnet6("ab" * 32)
    assert str(subnet) == "fdab:abab:abab:abab::/64"
    taken = {ipam.choose_gateway6(subnet)}
    assert ipam.choose_address6(subnet, None, taken, like=7) == subnet[7]
    assert ipam.choose_address6(subnet, None, taken, like=1) == subnet[2]
    ipam.check_address(subnet[9], subnet, taken)
    with pytest.raises(InvalidParameter):
        ipam.check_address(subnet[0], subnet, taken)
    with pytest.raises(Forbidden):
        ipam.check_address(subnet[1], subnet, taken)


def test_auxiliary_addresses_belong_to_a_subnet() -> None:
    other = IPv4Network("10.8.0.0/24")
    ipam.check_pool(
        NetworkRequest(name="x", subnet=other, auxiliary={"a": IPv4Address("10.8.0.9")}), [SUBNET]
    )
    with pytest.raises(InvalidParameter, match=r"no matching subnet for aux-address 10.7.0.9 \(a\)"):
        ipam.check_pool(NetworkRequest(name="x", subnet=other, auxiliary={"a": IPv4Address("10.7.0.9")}), [])

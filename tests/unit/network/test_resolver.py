# SPDX-License-Identifier: Apache-2.0
"""The resolver's messages and views."""

from __future__ import annotations

import struct
from ipaddress import IPv4Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.network.resolver import message
from proa.network.resolver.message import AAAA, A
from proa.network.resolver.views import EndpointEntry, NetworkEntry, View, Views

EDNS = struct.pack("!BHHIH", 0, message.OPT, 4096, 0, 0)


def query(name: str, kind: int = A, *, edns: bool = False) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    head = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, int(edns))
    return head + labels + b"\0" + struct.pack("!HH", kind, 1) + (EDNS if edns else b"")


@pytest.fixture
def views() -> Views:
    made = Views()
    for number, name in enumerate(("front", "back")):
        subnet = IPv4Network(f"10.{number}.0.0/24")
        made.networks[name] = NetworkEntry(name=name, subnets=(subnet,), is_internal=name == "back")
    for container, network, address, names in (
        ("web", "front", "10.0.0.2", ("web", "pool")),
        ("api", "front", "10.0.0.3", ("api", "pool")),
        ("api", "back", "10.1.0.3", ("api",)),
        ("db", "back", "10.1.0.4", ("db",)),
    ):
        entry = EndpointEntry(
            container=container,
            network=network,
            addresses=(ip_address(address), ip_address(f"fd00::{container == 'db':x}")),
            names=names,
            servers=("9.9.9.9",) if container == "db" else (),
        )
        made.put(f"{container}-{network}", entry)
    return made


def view(views: Views, network: str, source: str) -> View:
    found = views.view(network, ip_address(source))
    assert found is not None
    return found


def four(views: Views, seen: View, name: str) -> set[str] | None:
    found = views.addresses(seen, name)
    return None if found is None else {str(one) for one in found if one.version == 4}


def test_a_container_sees_the_names_of_all_its_networks_and_of_no_other(views: Views) -> None:
    web, api = view(views, "front", "10.0.0.2"), view(views, "front", "10.0.0.3")
    assert four(views, web, "db") is None
    assert four(views, api, "db") == {"10.1.0.4"}
    assert four(views, web, "pool") == {"10.0.0.2", "10.0.0.3"}
    assert four(views, api, "api") == {"10.0.0.3", "10.1.0.3"}
    assert four(views, api, "api.back") == {"10.1.0.3"}
    assert four(views, web, "api.back") is None
    assert four(views, view(views, "front", "10.0.0.99"), "web") == {"10.0.0.2"}  # not known yet
    assert views.view("front", ip_address("10.1.0.4")) is None
    assert views.view("gone", ip_address("10.0.0.2")) is None


def test_an_alias_of_ones_own_goes_before_names_and_others_do_not_see_it(views: Views) -> None:
    views.put(
        "web-front",
        EndpointEntry(
            container="web",
            network="front",
            addresses=(ip_address("10.0.0.2"),),
            names=("web",),
            links={"store": "api", "api": "web", "gone": "missing"},
        ),
    )
    web, api = view(views, "front", "10.0.0.2"), view(views, "front", "10.0.0.3")
    assert four(views, web, "store") == {"10.0.0.3"}
    assert four(views, web, "api") == {"10.0.0.2"}
    assert four(views, web, "gone") is None
    assert four(views, api, "store") is None


def test_forwarding_follows_the_networks(views: Views) -> None:
    assert view(views, "front", "10.0.0.2").forwards
    assert not view(views, "back", "10.1.0.4").forwards
    assert view(views, "back", "10.1.0.3").forwards  # it is on front as well
    assert view(views, "back", "10.1.0.4").servers == ("9.9.9.9",)


def test_reverse_names(views: Views) -> None:
    web = view(views, "front", "10.0.0.2")
    assert views.names(web, "3.0.0.10.in-addr.arpa") == ["api.front"]
    assert views.names(web, "9.0.0.10.in-addr.arpa") == []
    assert views.names(web, "4.0.1.10.in-addr.arpa") is None
    assert views.names(web, "x.in-addr.arpa") is None


def test_what_is_dropped_is_forgotten(views: Views) -> None:
    views.put("web-front", views.endpoints["web-front"])
    views.drop("web-front")
    views.drop("web-front")
    assert four(views, view(views, "front", "10.0.0.3"), "web") is None
    views.keep_only(["db-back"])
    assert list(views.endpoints) == ["db-back"]
    assert four(views, view(views, "back", "10.1.0.4"), "api") is None


def test_a_question_is_read_and_answered() -> None:
    question = message.parse_question(query("WEB.Front", edns=True))
    assert question is not None
    assert (question.name, question.kind, question.limit) == ("web.front", A, message.EDNS_BYTES)
    answer = message.answer(question, addresses=[ip_address("10.0.0.2"), ip_address("fd00::1")])
    assert struct.unpack("!HHHHHH", answer[:12]) == (7, 0x8580, 1, 2, 0, 1)
    assert answer[12:].startswith(question.packed)
    assert ip_address("10.0.0.2").packed in answer
    assert ip_address("fd00::1").packed in answer
    assert message.matches(answer, 7, question)
    assert not message.matches(answer, 8, question)
    assert not message.matches(message.answer(question)[:20], 7, question)


def test_an_answer_that_is_too_long_says_so() -> None:
    question = message.parse_question(query("pool", AAAA))
    assert question is not None
    many = [ip_address(f"fd00::{number:x}") for number in range(100)]
    short = message.answer(question, addresses=many)
    assert struct.unpack("!HH", short[2:4] + short[6:8]) == (0x8780, 0)
    assert len(message.answer(question, addresses=many, limit=0xFFFF)) > 2800


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("2.0.0.10.in-addr.arpa", "10.0.0.2"),
        ("1." + "0." * 29 + "d.f.ip6.arpa", "fd00::1"),
        ("0.0.10.in-addr.arpa", None),
        ("300.0.0.10.in-addr.arpa", None),
        ("x." * 32 + "ip6.arpa", None),
        ("web", None),
    ],
)
def test_reverse_zones(name: str, address: str | None) -> None:
    assert message.address_of_pointer(name) == (None if address is None else ip_address(address))


@given(st.binary(max_size=80))
def test_any_bytes_are_a_question_or_nothing(data: bytes) -> None:
    for tail in (data, query("web")[:12] + data):
        question = message.parse_question(tail)
        if question is not None:
            assert message.parse_question(message.answer(question)) is None
            message.address_of_pointer(question.name)

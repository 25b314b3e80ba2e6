# SPDX-License-Identifier: Apache-2.0
"""The text of the packet filter's rules. To accept a change: PROA_GOLDEN=write pytest, then read the diff."""

from __future__ import annotations

import os
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from proa.network import rules

GOLDEN = Path(__file__).parent / "golden"
BRIDGE = rules.BridgeRules(bridge="proa0", subnet=IPv4Network("172.17.0.0/16"))
INNER = rules.BridgeRules(bridge="pn-aa", subnet=IPv4Network("172.18.0.0/16"), internal=True)
ROUTED = rules.BridgeRules(bridge="pn-bb", subnet=IPv4Network("10.7.0.0/24"), masquerade=False)
HTTP = rules.Published(
    protocol="tcp",
    host_ip=IPv4Address("0.0.0.0"),
    host_port=8080,
    address=IPv4Address("172.17.0.2"),
    port=80,
)
DNS = rules.Published(
    protocol="udp",
    host_ip=IPv4Address("127.0.0.1"),
    host_port=53,
    address=IPv4Address("172.17.0.2"),
    port=5353,
)


@pytest.mark.parametrize(
    ("name", "networks", "published"),
    [("empty", [], []), ("one", [BRIDGE], [HTTP]), ("three", [BRIDGE, INNER, ROUTED], [HTTP, DNS])],
)
def test_whole_table(name: str, networks: list[rules.BridgeRules], published: list[rules.Published]) -> None:
    text = rules.whole_table("proa", networks, published)
    path = GOLDEN / f"{name}.nft"
    if os.environ.get("PROA_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def test_publishing_names_the_target_and_taking_back_does_not() -> None:
    assert rules.add_published("proa", [HTTP, DNS]) == (
        "create element ip proa published { tcp . 8080 : 172.17.0.2 . 80 }\n"
        "create element ip proa published_on { 127.0.0.1 . udp . 53 : 172.17.0.2 . 5353 }\n"
    )
    assert rules.delete_published("proa", [HTTP, DNS]) == (
        "delete element ip proa published { tcp . 8080 }\n"
        "delete element ip proa published_on { 127.0.0.1 . udp . 53 }\n"
    )
    assert rules.add_published("proa", []) == ""

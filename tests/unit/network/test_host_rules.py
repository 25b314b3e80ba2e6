# SPDX-License-Identifier: Apache-2.0
"""Copies of the host's input chains: which tables, what is in them, and what cannot be copied."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from proa.network import host_rules
from proa.network.host_rules import Json
from proa.network.rules import Published

HTTP = Published(
    protocol="tcp", host_ip=IPv4Address(0), host_port=8080, address=IPv4Address("172.17.0.2"), port=80
)
HTTP6 = Published(
    protocol="tcp", host_ip=IPv6Address(0), host_port=8080, address=IPv6Address("fd00::2"), port=80
)
DROP: list[Json] = [{"counter": {"packets": 7, "bytes": 9}}, {"drop": None}]


def table(family: str, name: str, *, hook: str = "input", expr: list[Json] | None = None) -> list[Json]:
    at = {"family": family, "table": name}
    return [
        {"table": {"family": family, "name": name, "handle": 1}},
        {
            "chain": {
                **at,
                "name": "in",
                "handle": 2,
                "type": "filter",
                "hook": hook,
                "prio": 0,
                "policy": "drop",
            }
        },
        {"chain": {**at, "name": "more", "handle": 3}},
        {"chain": {**at, "name": "out", "handle": 4, "type": "filter", "hook": "output", "prio": 0}},
        {"rule": {**at, "chain": "in", "handle": 5, "expr": expr or DROP}},
        {"rule": {**at, "chain": "out", "handle": 6, "expr": DROP}},
    ]


def added(copies: host_rules.Copies, kind: str) -> list[Json]:
    return [command["add"][kind] for command in copies.commands if kind in command.get("add", {})]


def test_an_input_chain_stands_in_prerouting_and_judges_published_ports_only() -> None:
    copies = host_rules.copy_input(table("inet", "fw"), "proa", [HTTP, HTTP6])
    assert copies.names == (("inet", "proa_host_fw"),)
    base, plain = added(copies, "chain")
    assert (base["hook"], base["prio"], base["policy"]) == ("prerouting", host_rules.PRIORITY, "accept")
    assert plain == {"family": "inet", "table": "proa_host_fw", "name": "more"}
    (claimed,) = added(copies, "set")
    assert claimed["elem"] == [{"concat": ["tcp", 8080]}]
    rules = [rule["expr"] for rule in added(copies, "rule")]
    assert [rule[-1] for rule in rules[:3]] == [{"accept": None}] * 3
    assert rules[3] == [{"counter": None}, {"drop": None}]
    assert rules[4] == [{"drop": None}]  # the policy


def test_counts_do_not_make_another_copy() -> None:
    later = table("ip", "fw", expr=[{"counter": {"packets": 8, "bytes": 10}}, {"drop": None}])
    assert host_rules.copy_input(later, "proa", [HTTP]) == host_rules.copy_input(
        table("ip", "fw"), "proa", [HTTP]
    )


def test_tables_without_input_and_our_own_are_left_alone() -> None:
    ruleset = [
        *table("ip", "nat", hook="forward"),
        *table("ip", "proa"),
        *table("ip", "proa_host_fw"),
        *table("arp", "fw"),
    ]
    assert host_rules.copy_input(ruleset, "proa", [HTTP]).commands == ()


def test_what_cannot_be_copied_is_named() -> None:
    ruleset = table("ip", "filter", expr=[{"xt": None}, {"drop": None}])
    copies = host_rules.copy_input(ruleset, "proa", [HTTP])
    assert (copies.commands, copies.names, copies.left_out) == ((), (), ("ip filter",))


def test_a_host_that_forwards_nothing_is_noticed() -> None:
    ruleset = [
        *table("ip", "filter", hook="forward"),
        *table("ip", "fw"),
        *table("ip", "proa", hook="forward"),
    ]
    assert host_rules.dropping_tables(ruleset, "proa") == ("ip filter",)


def test_ports_are_claimed_in_the_copies_of_their_family() -> None:
    names = (("ip", "proa_host_a"), ("ip6", "proa_host_b"), ("inet", "proa_host_c"))
    assert host_rules.claim_text(names, [HTTP]) == (
        "add element ip proa_host_a proa_claimed { tcp . 8080 }\n"
        "add element inet proa_host_c proa_claimed { tcp . 8080 }\n"
    )
    assert host_rules.claim_text((), [HTTP]) == ""

# SPDX-License-Identifier: Apache-2.0
"""dnsmasq's arguments."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from proa.network.names import ResolverPlan, command_line, find_resolver, reverse_zones

PLAN = ResolverPlan(
    directory=Path("/run/proa/dns/0123456789ab"),
    address=IPv4Address("172.18.0.1"),
    subnet=IPv4Network("172.18.0.0/16"),
    upstream=Path("/etc/resolv.conf"),
)


def test_it_listens_on_the_bridge_only_and_reads_nothing_of_the_host() -> None:
    argv = command_line(PLAN, user="dnsmasq", group="nogroup")
    assert argv[0] == "dnsmasq"
    for word in (
        "--conf-file=/dev/null",
        "--no-hosts",
        "--bind-interfaces",
        "--listen-address=172.18.0.1",
        "--hostsdir=/run/proa/dns/0123456789ab/hosts",
        "--local=/18.172.in-addr.arpa/",
        "--resolv-file=/etc/resolv.conf",
        "--user=dnsmasq",
    ):
        assert word in argv


def test_an_internal_network_asks_nobody() -> None:
    plan = ResolverPlan(directory=PLAN.directory, address=PLAN.address, subnet=PLAN.subnet, upstream=None)
    argv = command_line(plan, user="dnsmasq", group="nogroup")
    assert "--no-resolv" in argv
    assert not any(word.startswith("--resolv-file") for word in argv)


@pytest.mark.parametrize(
    ("subnet", "zones"),
    [
        ("10.0.0.0/8", ["10.in-addr.arpa"]),
        ("172.18.0.0/16", ["18.172.in-addr.arpa"]),
        ("192.168.4.0/23", ["4.168.192.in-addr.arpa", "5.168.192.in-addr.arpa"]),
        ("192.168.4.0/25", []),
    ],
)
def test_reverse_zones(subnet: str, zones: list[str]) -> None:
    assert reverse_zones(IPv4Network(subnet)) == zones


def test_a_pid_file_of_another_process_is_not_believed(tmp_path: Path) -> None:
    assert find_resolver(tmp_path) is None
    for text in ("1\n", "nonsense", "999999999\n"):
        (tmp_path / "pid").write_text(text)
        assert find_resolver(tmp_path) is None

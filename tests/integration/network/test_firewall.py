# SPDX-License-Identifier: Apache-2.0
"""The host's own firewall has the last word, and proa's rules come back when they are flushed."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess

import anyio
import pytest

from proa.model.network import NetworkRequest, PublishedPort
from tests.integration.network.conftest import Opener, eventually, join
from tests.support.netns import (
    WAN_HOST,
    WAN_HOST6,
    WAN_PEER,
    cannot_connect,
    connect,
    exchange,
    listen,
    listen6,
    this_namespace,
)

pytestmark = pytest.mark.anyio

HTTP = PublishedPort(container_port=80, protocol="tcp", host_port=8080, any_address=True)


def drain(server: socket.socket) -> None:
    """Drop the connections of attempts that went through."""
    server.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while True:
            server.accept()[0].close()


def nft(commands: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=commands, text=True, check=True)


async def test_an_input_rule_of_the_host_holds_for_published_ports(opened: Opener, outside: int) -> None:
    async with opened() as networks:
        await networks.create(NetworkRequest(name="six", ipv6=True))
        one = await join(networks, "six", ports=(HTTP,))
        other = PublishedPort(container_port=80, protocol="tcp", host_port=8081, any_address=True)
        with listen(one.namespace, 80) as server, listen6(one.namespace, 80) as server6:
            exchange(server, connect(outside, WAN_HOST.ip, 8080))
            nft(
                """table inet filter {
                    set banned { type ipv4_addr; };
                    chain input { type filter hook input priority filter; policy accept;
                        ct state vmap { established : accept, related : accept, invalid : drop }
                        iif lo accept
                        ip saddr @banned counter drop
                        tcp dport 8080 counter drop; }; }"""
            )
            await eventually(lambda: cannot_connect(outside, WAN_HOST.ip, 8080))
            drain(server)
            assert cannot_connect(outside, WAN_HOST6.ip, 8080)
            exchange(server, connect(this_namespace(), "127.0.0.1", 8080))
            # A port that is published later passes, as its rules want; until its peer is banned.
            late = await join(networks, "six", ports=(other,))
            with listen(late.namespace, 80) as late_server:
                exchange(late_server, connect(outside, WAN_HOST.ip, 8081))
                nft(f"add element inet filter banned {{ {WAN_PEER.ip} }}")
                await eventually(lambda: cannot_connect(outside, WAN_HOST.ip, 8081))
            nft("delete table inet filter")
            await eventually(lambda: not cannot_connect(outside, WAN_HOST.ip, 8080))
            exchange(server6, connect(outside, WAN_HOST6.ip, 8080))


async def test_a_policy_of_drop_wants_a_rule_that_accepts(opened: Opener, outside: int) -> None:
    nft(
        """table ip fw { chain input { type filter hook input priority 0; policy drop;
            ct state established,related accept
            jump services; }
            chain services { tcp dport { 22, 8081 } accept; }; }"""
    )
    async with opened() as networks:
        ports = (HTTP, PublishedPort(container_port=80, protocol="tcp", host_port=8081))
        one = await join(networks, "bridge", ports=ports)
        with listen(one.namespace, 80) as server:
            assert cannot_connect(outside, WAN_HOST.ip, 8080)
            exchange(server, connect(outside, WAN_HOST.ip, 8081))


async def test_a_forward_rule_of_the_host_holds(opened: Opener, outside: int) -> None:
    async with opened() as networks:
        one = await join(networks, "bridge", ports=(HTTP,))
        with listen(one.namespace, 80) as server:
            nft("table ip fw { chain f { type filter hook forward priority 10; policy drop; }; }")
            assert cannot_connect(outside, WAN_HOST.ip, 8080)
            nft("insert rule ip fw f ct status dnat accept; insert rule ip fw f ct state established accept")
            exchange(server, connect(outside, WAN_HOST.ip, 8080))


async def test_flushed_rules_come_back_by_themselves(opened: Opener, outside: int) -> None:
    async with opened() as networks:
        one = await join(networks, "bridge", ports=(HTTP,))
        for commands in ("flush ruleset", f"flush table ip {_table()}", f"delete table ip {_table()}"):
            nft(commands)
            await eventually(lambda: "publish" in _chains_with_rules())
            with listen(one.namespace, 80) as server:
                exchange(server, connect(outside, WAN_HOST.ip, 8080))


async def test_a_quiet_host_is_left_alone(opened: Opener) -> None:
    """What proa writes itself must not wake it up without end."""
    nft("table ip fw { chain input { type filter hook input priority 0; counter tcp dport 22 drop; }; }")
    async with opened() as networks:
        await join(networks, "bridge", ports=(HTTP,))
        await eventually(lambda: _handle() != "")
        await anyio.sleep(1)
        before = _handle()
        await anyio.sleep(1)
        assert _handle() == before


def _ruleset() -> list[dict[str, dict[str, object]]]:
    done = subprocess.run(["nft", "-j", "list", "ruleset"], capture_output=True, text=True, check=True)
    found: list[dict[str, dict[str, object]]] = json.loads(done.stdout)["nftables"]
    return found


def _table() -> str:
    names = [str(entry["table"]["name"]) for entry in _ruleset() if "table" in entry]
    return next(name for name in names if name.startswith("proa") and "host" not in name)


def _chains_with_rules() -> set[str]:
    return {str(entry["rule"]["chain"]) for entry in _ruleset() if "rule" in entry}


def _handle() -> str:
    handles = [entry["table"] for entry in _ruleset() if "table" in entry]
    return str([found["handle"] for found in handles if "host" in str(found["name"])] or "")

# SPDX-License-Identifier: Apache-2.0
"""The host's own input rules, made to hold for published ports. Pure.

A packet to a published port is translated and forwarded, so it never passes the host's input chains: a rule
as ``tcp dport 8080 drop`` there would do nothing, which is Docker's worst habit. So each foreign table that
filters input is copied into a table of ours, in which its input chains stand in prerouting, before the
translation, and see packets to published ports only, with the address and the port that the client used. A
packet passes when every input chain of the host would let it pass; ``accept`` ends one chain, as there.

A table that cannot be copied (rules of iptables-nft with matches nft does not know) is left out, and named.

Source: libnftables-json(5); nft(8), "Netfilter hooks".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from proa.network.rules import Published

Json = dict[str, Any]  # Any: nft's own structures, passed on

PRIORITY = -105  # after connections are known (-200), before addresses are translated (-100)
CLAIMED = "proa_claimed"  # the set of published ports in each copy
_FAMILIES = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}
_NAMED = ("set", "map", "counter", "quota", "limit", "ct helper", "ct timeout", "ct expectation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """The tables to be made. ``commands``: one transaction of nft's JSON; ``names``: family and name of each;
    ``left_out``: foreign tables that cannot be copied."""

    commands: tuple[Json, ...]
    names: tuple[tuple[str, str], ...]
    left_out: tuple[str, ...]


def copy_input(ruleset: Sequence[Json], prefix: str, published: Iterable[Published]) -> Copies:
    """Copy what filters input.

    :param ruleset: as ``nft --json list ruleset`` prints it.
    :param prefix: of our tables' names; tables of such a name are not looked at.
    """
    ports = list(published)
    commands: list[Json] = []
    names: list[tuple[str, str]] = []
    left_out: list[str] = []
    for family, name in _tables(ruleset, prefix):
        copied = f"{prefix}_host_{name}"
        try:
            commands += _copy(ruleset, family, name, copied, ports)
        except _CannotCopyError:
            left_out.append(f"{family} {name}")
        else:
            names.append((family, copied))
    return Copies(commands=tuple(commands), names=tuple(names), left_out=tuple(left_out))


def claim_text(names: Iterable[tuple[str, str]], published: Sequence[Published]) -> str:
    """Return the commands by which further ports obey the copies. None is taken back: what is not published
    is judged by the same rules a second time, with the same outcome."""
    lines = []
    for family, name in names:
        elements = [f"{port.protocol} . {port.host_port}" for port in _of_family(published, family)]
        if elements:
            lines.append(f"add element {family} {name} {CLAIMED} {{ {', '.join(elements)} }}\n")
    return "".join(lines)


def dropping_tables(ruleset: Sequence[Json], prefix: str) -> tuple[str, ...]:
    """Return the foreign tables that drop by default what the host forwards."""
    chains = [entry["chain"] for entry in ruleset if "chain" in entry]
    return tuple(
        f"{chain['family']} {chain['table']}"
        for chain in chains
        if chain.get("hook") == "forward"
        and chain.get("policy") == "drop"
        and not chain["table"].startswith(prefix)
    )


class _CannotCopyError(Exception):
    pass


def _tables(ruleset: Sequence[Json], prefix: str) -> list[tuple[str, str]]:
    found: dict[tuple[str, str], None] = {}
    for entry in ruleset:
        chain = entry.get("chain")
        if chain is not None and _filters_input(chain) and not chain["table"].startswith(prefix):
            found[chain["family"], chain["table"]] = None
    return list(found)


def _filters_input(chain: Json) -> bool:
    return chain.get("hook") == "input" and chain.get("type") == "filter" and chain["family"] in _FAMILIES


def _copy(
    ruleset: Sequence[Json], family: str, name: str, copied: str, ports: Sequence[Published]
) -> list[Json]:
    mine = [
        (kind, value)
        for entry in ruleset
        for kind, value in entry.items()
        if isinstance(value, dict) and value.get("family") == family and value.get("table") == name
    ]
    chains = {value["name"]: value for kind, value in mine if kind == "chain"}
    kept = [one for one, chain in chains.items() if "hook" not in chain or _filters_input(chain)]
    inputs = [chain for chain in chains.values() if _filters_input(chain)]
    table = {"table": {"family": family, "name": copied}}
    commands: list[Json] = [{"add": table}, {"delete": table}, {"add": table}]
    # Elements of maps may name chains, and rules all of them.
    commands += ({"add": {"chain": _copied_chain(chains[one], copied)}} for one in kept)
    commands.append({"add": {"set": _claimed_set(family, copied, ports)}})
    commands += ({"add": {kind: _moved(value, copied)}} for kind, value in mine if kind in _NAMED)
    for chain in inputs:
        commands += (_rule(family, copied, chain["name"], expr) for expr in _preamble())
    for kind, value in mine:
        if kind == "rule" and value["chain"] in kept:
            if any("xt" in expression for expression in value["expr"]):
                raise _CannotCopyError
            commands.append({"add": {"rule": _moved(value, copied)}})
    commands += (
        _rule(family, copied, chain["name"], [{"drop": None}])
        for chain in inputs
        if chain.get("policy") == "drop"
    )
    return commands


def _copied_chain(chain: Json, table: str) -> Json:
    plain = {"family": chain["family"], "table": table, "name": chain["name"]}
    if "hook" not in chain:
        return plain
    # Those that come later on the host come later here.
    place = {"type": "filter", "hook": "prerouting", "prio": PRIORITY, "policy": "accept"}
    return {**plain, **place}


def _preamble() -> list[list[Json]]:
    """Rules that let pass what is not for us to judge."""
    local = {"fib": {"result": "type", "flags": "daddr"}}
    port = {"concat": [{"meta": {"key": "l4proto"}}, {"payload": {"protocol": "th", "field": "dport"}}]}
    protocol = {"meta": {"key": "l4proto"}}
    return [
        [{"match": {"op": "!=", "left": one, "right": right}}, {"accept": None}]
        for one, right in (
            (local, "local"),
            (protocol, {"set": ["tcp", "udp", "sctp"]}),
            (port, f"@{CLAIMED}"),
        )
    ]


def _claimed_set(family: str, table: str, ports: Sequence[Published]) -> Json:
    made: Json = {
        "family": family,
        "table": table,
        "name": CLAIMED,
        "type": ["inet_proto", "inet_service"],
    }
    elements = {(port.protocol, port.host_port) for port in _of_family(ports, family)}
    if elements:
        made["elem"] = [{"concat": [protocol, number]} for protocol, number in sorted(elements)]
    return made


def _of_family(published: Iterable[Published], family: str) -> list[Published]:
    return [port for port in published if port.host_ip.version in _FAMILIES[family]]


def _rule(family: str, table: str, chain: str, expressions: list[Json]) -> Json:
    return {"add": {"rule": {"family": family, "table": table, "chain": chain, "expr": expressions}}}


def _moved(value: Json, table: str) -> Json:
    plain: Json = _without_counts({key: one for key, one in value.items() if key != "handle"})
    if "dynamic" in value.get("flags", ()):
        plain.pop("elem", None)  # what rules put in on the way of packets
    return {**plain, "table": table}


def _without_counts(value: Any) -> Any:  # Any: any part of nft's structures
    """Take out what changes by itself: the same rules always make the same copy."""
    if isinstance(value, list):
        return [_without_counts(one) for one in value]
    if isinstance(value, dict):
        kept = {key: _without_counts(one) for key, one in value.items() if key not in ("expires", "used")}
        if isinstance(kept.get("counter"), dict):
            kept["counter"] = None
        return {
            key: 0 if key in ("packets", "bytes") and "rate" not in kept else one for key, one in kept.items()
        }
    return value

# SPDX-License-Identifier: Apache-2.0
"""The table of rules in the kernel, kept equal to the catalog. What the rules say is in ``rules``."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

from proa.host.nftables import Nftables, NftError
from proa.model.errors import EngineError, Internal, Unavailable
from proa.model.network import Network
from proa.network import host_rules, rules
from proa.network.bridge import is_ipv6_loopback_lost
from proa.network.catalog import Catalog
from proa.network.request import OPTION_MASQUERADE, is_off
from proa.network.store import Record

_log = logging.getLogger(__name__)


class Filter:
    """The tables ``name`` in the host's namespace: of IPv4, and of IPv6 where a network has that.

    :raises Unavailable: this host has no libnftables.
    """

    def __init__(self, name: str, catalog: Catalog) -> None:
        self._name = name
        self._catalog = catalog
        self._has_table6 = False
        self._copies: tuple[tuple[str, str], ...] = ()
        self._left_out: tuple[str, ...] = ()
        self._copied_from: str = ""
        self._dropping: tuple[str, ...] = ()
        try:
            self._nft = Nftables()
        except OSError as error:
            raise Unavailable(f"networks need nftables: {error}") from error

    def rebuild(self, *pending: Record) -> None:
        """Write all tables anew from the catalog, and from records that are not in it yet.

        :raises Internal: the kernel refuses.
        """
        networks = [_rules_of(network) for network in self._catalog.bridged()]
        records = [*self._catalog.records(), *pending]
        published = [port for record in records for port in published_of(record)]
        try:
            self._nft.run(self._tables(networks, published))
        except NftError as error:
            raise Internal(f"cannot write the packet filter's rules: {error}") from error
        try:
            if self._copies:
                self._nft.run(self._claim(published))
        except NftError:
            # They went with a flush; the watch makes them again.
            self._copies, self._copied_from = (), ""

    def follow_host(self) -> None:
        """See to it that our tables are there, and that published ports obey the host's input rules.

        Failures are logged: what is there stays as it is.
        """
        try:
            ruleset = self._nft.list_ruleset()
            tables = [entry["table"] for entry in ruleset if "table" in entry]
            names = {(table["family"], table["name"]) for table in tables}
            ours = {("ip", self._name)} | ({("ip6", self._name)} if self._has_table6 else set())
            if not ours <= names or not self._rules_are_there(ruleset):
                _log.warning("somebody has removed the packet filter's rules; writing them again")
                self.rebuild()
            self._copy_host(ruleset, names)
            self._warn_of_policy(ruleset)
        except (NftError, EngineError) as error:
            _log.warning("cannot follow the host's packet filter: %s", error)

    def _rules_are_there(self, ruleset: Sequence[host_rules.Json]) -> bool:
        """Whether our chains still have rules: the last of them to be written is looked for."""
        chains = [
            entry["rule"]["chain"]
            for entry in ruleset
            if "rule" in entry and entry["rule"]["table"] == self._name
        ]
        return "publish" in chains and ("forward" in chains or not self._catalog.bridged())

    def _warn_of_policy(self, ruleset: Sequence[host_rules.Json]) -> None:
        """Tell once of a host that forwards nothing unless told to: its word is the last."""
        dropping = host_rules.dropping_tables(ruleset, self._name)
        if dropping and dropping != self._dropping:
            _log.warning(
                "table %s drops what this host forwards: containers reach nothing and published ports do not "
                "answer unless a rule there accepts it (docs/reference/networks.md)",
                ", ".join(dropping),
            )
        self._dropping = dropping

    def _copy_host(self, ruleset: Sequence[host_rules.Json], names: set[tuple[str, str]]) -> None:
        published = [port for record in self._catalog.records() for port in published_of(record)]
        copies = host_rules.copy_input(ruleset, self._name, published)
        state = json.dumps(copies.commands)
        is_there = set(copies.names) <= names
        if state == self._copied_from and is_there:
            return
        if copies.left_out and copies.left_out != self._left_out:
            _log.warning(
                "published ports do not obey the input rules of table %s, which cannot be copied: "
                "write drop rules for them into a forward chain",
                ", ".join(copies.left_out),
            )
        prefix = f"{self._name}_host_"
        gone = [name for name in names if name[1].startswith(prefix) and name not in copies.names]
        remove = [{"delete": {"table": {"family": family, "name": name}}} for family, name in gone]
        self._nft.run_json([*remove, *copies.commands])
        self._copies, self._left_out, self._copied_from = copies.names, copies.left_out, state

    def _claim(self, published: Sequence[rules.Published]) -> str:
        return host_rules.claim_text(self._copies, published) if self._copies else ""

    def move(self, old: Record, new: Record) -> None:
        """Lead the published ports of a changed record elsewhere. The catalog has the new one.

        :raises Internal: the kernel refuses.
        """
        if published_of(old) != published_of(new):
            self.rebuild()

    def _tables(self, networks: Sequence[rules.BridgeRules], published: Sequence[rules.Published]) -> str:
        text = rules.whole_table(self._name, networks, published)
        had, self._has_table6 = self._has_table6, any(network.subnet6 for network in networks)
        if self._has_table6:
            return text + rules.whole_table(
                self._name,
                networks,
                published,
                family=rules.IPV6,
                refuse_loopback=is_ipv6_loopback_lost(),
            )
        return text + (rules.delete_table(self._name, rules.IPV6) if had else "")

    def publish(self, record: Record) -> None:
        """Add the ports of a record that is not in the catalog yet.

        :raises Internal: the kernel refuses.
        """
        published = published_of(record)
        if not published:
            return
        try:
            self._nft.run(rules.add_published(self._name, published) + self._claim(published))
        except NftError as error:
            # Somebody has flushed the ruleset, or left an element of ours: only the whole is right again.
            _log.warning("rebuilding the packet filter's rules: %s", error)
            self.rebuild(record)

    def unpublish(self, record: Record) -> None:
        """Take back the ports of a record that is in the catalog no more.

        :raises Internal: the kernel refuses.
        """
        published = published_of(record)
        if not published:
            return
        try:
            self._nft.run(rules.delete_published(self._name, published))
        except NftError as error:
            _log.warning("rebuilding the packet filter's rules: %s", error)
            self.rebuild()

    def close(self) -> None:
        """Leave; the rules stay. Idempotent."""
        self._nft.close()


def published_of(record: Record) -> Sequence[rules.Published]:
    """Return the filter's elements for a record's ports."""
    published = []
    for port in record.ports:
        target = record.target(port.host_ip.version)
        if target is None:
            continue
        address = target.address if port.host_ip.version == 4 else target.address6
        if address is not None:
            published.append(
                rules.Published(
                    protocol=port.protocol,
                    host_ip=port.host_ip,
                    host_port=port.host_port,
                    address=address.ip,
                    port=port.container_port,
                )
            )
    return published


def _rules_of(network: Network) -> rules.BridgeRules:
    return rules.BridgeRules(
        bridge=network.bridge,
        subnet=network.subnet,
        subnet6=network.subnet6,
        internal=network.internal,
        masquerade=not is_off(network.options, OPTION_MASQUERADE),
    )

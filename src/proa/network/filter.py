# SPDX-License-Identifier: Apache-2.0
"""The table of rules in the kernel, kept equal to the catalog. What the rules say is in ``rules``."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from proa.host.nftables import Nftables, NftError
from proa.model.errors import Internal, Unavailable
from proa.model.network import Network
from proa.network import rules
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
            self._nft.run(rules.add_published(self._name, published))
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
        target = record.target if port.host_ip.version == 4 else record.target6
        if target is not None:
            published.append(
                rules.Published(
                    protocol=port.protocol,
                    host_ip=port.host_ip,
                    host_port=port.host_port,
                    address=target,
                    port=port.container_port,
                )
            )
    return published


def _rules_of(network: Network) -> rules.BridgeRules:
    assert network.subnet is not None
    return rules.BridgeRules(
        bridge=network.bridge,
        subnet=network.subnet,
        subnet6=network.subnet6,
        internal=network.internal,
        masquerade=not is_off(network.options, OPTION_MASQUERADE),
    )

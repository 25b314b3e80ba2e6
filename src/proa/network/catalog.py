# SPDX-License-Identifier: Apache-2.0
"""All networks and attachments: kept in memory, written through to the database. No kernel.

Invariant: what is here is what is stored; a change is stored before it is visible.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from proa.model.errors import InvalidParameter, NameInUse, NoSuchNetwork
from proa.model.ids import NetworkId
from proa.model.network import Endpoint, Network
from proa.network.store import NetworkStore, Record, StoredNetwork


class Catalog:
    """The networks and the attachments of containers to them."""

    def __init__(self, store: NetworkStore) -> None:
        self._store = store
        self._networks = {stored.network.id: stored for stored in store.networks()}
        self._records = {record.container_id: record for record in store.records()}

    # --- networks ---

    def networks(self) -> list[Network]:
        """Return all networks, in the order they were made."""
        return [stored.network for stored in self._networks.values()]

    def bridged(self) -> list[Network]:
        """Return the networks that have a bridge."""
        return [network for network in self.networks() if network.driver == "bridge"]

    def subnets(self) -> list[IPv4Network | IPv6Network]:
        """Return the subnets of all networks."""
        found = [subnet for network in self.networks() for subnet in (network.subnet, network.subnet6)]
        return [subnet for subnet in found if subnet is not None]

    def find_named(self, name: str) -> Network | None:
        return next((network for network in self.networks() if network.name == name), None)

    def get(self, ref: str) -> Network:
        """Look up by id, name, or a prefix of the id that only one network has.

        :raises NoSuchNetwork: none has it.
        :raises InvalidParameter: several do.
        """
        stored = self._networks.get(NetworkId(ref))
        found = stored.network if stored is not None else self.find_named(ref)
        if found is not None:
            return found
        matches = [network for network in self.networks() if ref and network.id.startswith(ref)]
        if not matches:
            raise NoSuchNetwork(ref)
        if len(matches) > 1:
            raise InvalidParameter(
                f"network {ref} is ambiguous ({len(matches)} matches found based on ID prefix)"
            )
        return matches[0]

    def of_id(self, network_id: NetworkId) -> Network:
        return self._networks[network_id].network

    def has_own_subnet(self, network: Network) -> bool:
        """Whether a user has named the network's subnet."""
        return self._networks[network.id].own_subnet

    def add_network(self, stored: StoredNetwork) -> None:
        """:raises NameInUse: the name is taken."""
        if self.find_named(stored.network.name) is not None:
            raise NameInUse(f"network with name {stored.network.name} already exists")
        self._store.add_network(stored)
        self._networks[stored.network.id] = stored

    def remove_network(self, network: Network) -> None:
        """Forget a network without endpoints."""
        self._store.delete_network(network.id)
        del self._networks[network.id]

    # --- attachments ---

    def records(self) -> list[Record]:
        return list(self._records.values())

    def find_record(self, container_id: str) -> Record | None:
        return self._records.get(container_id)

    def add_record(self, record: Record) -> None:
        self._store.add_record(record)
        self._records[record.container_id] = record

    def replace_record(self, record: Record) -> None:
        self._store.replace_record(record)
        self._records[record.container_id] = record

    def remove_record(self, container_id: str) -> Record | None:
        """Forget an attachment and return what it was; None when there was none."""
        self._store.delete_record(container_id)
        return self._records.pop(container_id, None)

    def endpoints_of(self, network: Network) -> list[Endpoint]:
        """Return the endpoints on a network, in the order they were made."""
        return [
            endpoint
            for record in self._records.values()
            for endpoint in record.endpoints
            if endpoint.network_id == network.id
        ]

    def taken_addresses(self, network: Network) -> set[IPv4Address]:
        """Return the addresses that no new container may get, the gateway's among them."""
        found = (endpoint.address for endpoint in self.endpoints_of(network))
        taken = {address.ip for address in found if address is not None}
        if network.gateway is not None:
            taken.add(network.gateway)
        return taken | {one for one in network.auxiliary.values() if isinstance(one, IPv4Address)}

    def taken_addresses6(self, network: Network) -> set[IPv6Address]:
        """As ``taken_addresses``, of IPv6."""
        taken = {one for one in network.auxiliary.values() if isinstance(one, IPv6Address)}
        found = (endpoint.address6 for endpoint in self.endpoints_of(network))
        taken |= {address.ip for address in found if address is not None}
        if network.gateway6 is not None:
            taken.add(network.gateway6)
        return taken

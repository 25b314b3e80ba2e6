# SPDX-License-Identifier: Apache-2.0
"""Networks and attachments: what is stored is what is read, and how networks are looked up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import pytest

from proa.host.database import Database
from proa.model.errors import InvalidParameter, NameInUse, NoSuchNetwork
from proa.model.ids import NetworkId
from proa.model.network import Endpoint, Network, PublishedPort
from proa.model.task import Interface, NetworkKind
from proa.network.catalog import Catalog
from proa.network.store import NetworkStore, Place, Record, StoredNetwork

NETWORK = Network(
    id=NetworkId("ab" + "1" * 62),
    name="web",
    driver="bridge",
    created_at_ns=5,
    internal=True,
    subnet=IPv4Network("10.9.0.0/24"),
    ip_range=IPv4Network("10.9.0.128/25"),
    gateway=IPv4Address("10.9.0.1"),
    bridge="pn-x",
    mtu=1400,
    options={"o": "1"},
    labels={"l": "2"},
)
ENDPOINT = Endpoint(
    container_id="c" * 64,
    network_id=NETWORK.id,
    endpoint_id="e" * 64,
    name="one",
    mac="02:42:0a:09:00:02",
    address=IPv4Interface("10.9.0.2/24"),
    gateway=NETWORK.gateway,
    dns_names=("one", "alias"),
)
INTERFACE = Interface(
    name="eth0",
    device="pveee",
    network_id=NETWORK.id,
    mac=ENDPOINT.mac,
    address=ENDPOINT.address,
    gateway=NETWORK.gateway,
    mtu=1400,
)
RECORD = Record(
    container_id="c" * 64,
    kind=NetworkKind.NAMESPACE,
    name="one",
    hostname="h",
    namespace=Path("/run/proa/netns/cc"),
    places=(Place(endpoint=ENDPOINT, interface=INTERFACE),),
    ports=(
        PublishedPort(container_port=80, protocol="tcp", host_ip=IPv4Address("127.0.0.1"), host_port=8080),
    ),
    target4=ENDPOINT.endpoint_id,
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "e.db") as opened:
        yield opened


@pytest.fixture
def catalog(database: Database) -> Catalog:
    made = Catalog(NetworkStore(database))
    made.add_network(StoredNetwork(network=NETWORK, own_subnet=True))
    return made


def test_what_is_stored_is_what_the_next_daemon_reads(catalog: Catalog, database: Database) -> None:
    catalog.add_record(RECORD)
    after = Catalog(NetworkStore(database))
    assert after.networks() == [NETWORK]
    assert after.has_own_subnet(NETWORK)
    assert after.records() == [RECORD]
    assert after.endpoints_of(NETWORK) == [ENDPOINT]
    assert after.taken_addresses(NETWORK) == {IPv4Address("10.9.0.1"), IPv4Address("10.9.0.2")}


def test_a_changed_record_replaces_the_old_one(catalog: Catalog, database: Database) -> None:
    catalog.add_record(RECORD)
    changed = replace(RECORD, name="two", places=(), ports=(), target4="", namespace=None)
    catalog.replace_record(changed)
    assert Catalog(NetworkStore(database)).records() == [changed]


def test_a_removed_record_leaves_no_rows(catalog: Catalog, database: Database) -> None:
    catalog.add_record(RECORD)
    assert catalog.remove_record(RECORD.container_id) == RECORD
    assert catalog.remove_record(RECORD.container_id) is None
    for table in ("attachments", "endpoints", "ports"):
        assert database.query(f"SELECT * FROM {table}") == []
    catalog.remove_network(NETWORK)
    assert catalog.networks() == []


def test_networks_are_found_by_name_id_and_unique_prefix(catalog: Catalog) -> None:
    other = replace(NETWORK, id=NetworkId("ab" + "2" * 62), name="ab1", created_at_ns=6)
    catalog.add_network(StoredNetwork(network=other, own_subnet=False))
    assert catalog.get("web") == catalog.get(NETWORK.id) == catalog.get("ab11") == NETWORK
    assert catalog.get("ab1") == other  # a name comes before a prefix
    with pytest.raises(InvalidParameter, match="ambiguous"):
        catalog.get("ab")
    for ref in ("", "x", "ab3"):
        with pytest.raises(NoSuchNetwork, match=f"network {ref} not found"):
            catalog.get(ref)


def test_a_name_is_given_once(catalog: Catalog) -> None:
    twin = replace(NETWORK, id=NetworkId("f" * 64))
    with pytest.raises(NameInUse, match="network with name web already exists"):
        catalog.add_network(StoredNetwork(network=twin, own_subnet=False))

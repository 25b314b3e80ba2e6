# SPDX-License-Identifier: Apache-2.0
"""Networks and attachments in the engine's database. Rows and values, nothing of the kernel."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
)
from pathlib import Path

from proa.host.database import Database
from proa.model.ids import NetworkId
from proa.model.network import Endpoint, Network, PublishedPort
from proa.model.task import Interface, NetworkAttachment, NetworkKind

AREA = "network"
MIGRATIONS = (
    """
    CREATE TABLE networks (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, driver TEXT NOT NULL, created_at_ns INTEGER NOT NULL,
        internal INTEGER NOT NULL, attachable INTEGER NOT NULL, subnet TEXT, ip_range TEXT, gateway TEXT,
        bridge TEXT NOT NULL, mtu INTEGER NOT NULL, options TEXT NOT NULL, labels TEXT NOT NULL,
        own_subnet INTEGER NOT NULL
    );
    CREATE TABLE attachments (
        container_id TEXT PRIMARY KEY, kind TEXT NOT NULL, namespace TEXT, name TEXT NOT NULL,
        hostname TEXT NOT NULL
    );
    CREATE TABLE endpoints (
        endpoint_id TEXT PRIMARY KEY,
        container_id TEXT NOT NULL REFERENCES attachments(container_id) ON DELETE CASCADE,
        network_id TEXT NOT NULL REFERENCES networks(id),
        position INTEGER NOT NULL, interface TEXT NOT NULL, device TEXT NOT NULL, mac TEXT NOT NULL,
        address TEXT NOT NULL, gateway TEXT, is_default INTEGER NOT NULL, dns_names TEXT NOT NULL
    );
    CREATE TABLE ports (
        container_id TEXT NOT NULL REFERENCES attachments(container_id) ON DELETE CASCADE,
        protocol TEXT NOT NULL, host_ip TEXT NOT NULL, host_port INTEGER NOT NULL,
        container_port INTEGER NOT NULL
    );
    CREATE INDEX endpoints_of_container ON endpoints(container_id);
    CREATE INDEX ports_of_container ON ports(container_id);
    """,
    """
    ALTER TABLE networks ADD COLUMN subnet6 TEXT;
    ALTER TABLE networks ADD COLUMN ip_range6 TEXT;
    ALTER TABLE networks ADD COLUMN gateway6 TEXT;
    ALTER TABLE networks ADD COLUMN auxiliary TEXT NOT NULL DEFAULT '{}';
    ALTER TABLE endpoints ADD COLUMN address6 TEXT;
    ALTER TABLE endpoints ADD COLUMN gateway6 TEXT;
    ALTER TABLE endpoints ADD COLUMN is_default6 INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE endpoints ADD COLUMN is_target INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE endpoints ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
    UPDATE endpoints SET is_target = is_default;
    ALTER TABLE attachments ADD COLUMN dns TEXT NOT NULL DEFAULT '[]';
    """,
    """
    ALTER TABLE endpoints ADD COLUMN links TEXT NOT NULL DEFAULT '[]';
    """,
)


_TARGETS = ((False, False), (True, True), (True, False), (False, True))
"""What the column is_target says: whether ports of IPv4 lead to an endpoint, and those of IPv6."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One endpoint with the interface that belongs to it. ``priority``: of the default route by it."""

    endpoint: Endpoint
    interface: Interface
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """All that is known of one container's attachment.

    :ivar ports: published; those of IPv4 lead to the endpoint with the id ``target4``, those of IPv6 to
        ``target6``: mostly the same one. "" where the container has none that leads out.
    :ivar dns: nameservers that the user wants asked for what is not on the container's networks.
    """

    container_id: str
    kind: NetworkKind
    name: str
    hostname: str
    namespace: Path | None
    places: tuple[Place, ...] = ()
    ports: tuple[PublishedPort, ...] = ()
    target4: str = ""
    target6: str = ""
    dns: tuple[str, ...] = ()

    @property
    def attachment(self) -> NetworkAttachment:
        return NetworkAttachment(
            namespace=self.namespace, interfaces=tuple(place.interface for place in self.places)
        )

    @property
    def published_versions(self) -> tuple[int, ...]:
        """The versions of IP in which a port can be published."""
        return (4,) * bool(self.target4) + (6,) * bool(self.target6)

    def target(self, version: int) -> Endpoint | None:
        """Return where the published ports of a version of IP lead."""
        wanted = self.target4 if version == 4 else self.target6
        return next((found for found in self.endpoints if found.endpoint_id == wanted), None)

    @property
    def devices(self) -> tuple[str, ...]:
        """The host's ends of the interfaces."""
        return tuple(place.interface.device for place in self.places if place.interface.device)

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return tuple(place.endpoint for place in self.places)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredNetwork:
    """A network, and whether its subnet was named by the user (only then may users name addresses)."""

    network: Network
    own_subnet: bool


class NetworkStore:
    """The tables of this package."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.migrate(AREA, MIGRATIONS)

    def networks(self) -> list[StoredNetwork]:
        """Return all networks, in the order they were made."""
        rows = self._database.query("SELECT * FROM networks ORDER BY created_at_ns, rowid")
        return [_network_of(row) for row in rows]

    def add_network(self, stored: StoredNetwork) -> None:
        """:raises sqlite3.IntegrityError: the name or the id is taken."""
        network = stored.network
        self._database.execute(
            "INSERT INTO networks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                network.id,
                network.name,
                network.driver,
                network.created_at_ns,
                int(network.internal),
                int(network.attachable),
                _text(network.subnet),
                _text(network.ip_range),
                _text(network.gateway),
                network.bridge,
                network.mtu,
                json.dumps(dict(network.options)),
                json.dumps(dict(network.labels)),
                int(stored.own_subnet),
                _text(network.subnet6),
                _text(network.ip_range6),
                _text(network.gateway6),
                json.dumps({name: str(address) for name, address in network.auxiliary.items()}),
            ),
        )

    def delete_network(self, network_id: NetworkId) -> None:
        self._database.execute("DELETE FROM networks WHERE id = ?", (network_id,))

    def records(self) -> list[Record]:
        """Return all attachments."""
        rows = self._database.query("SELECT * FROM attachments ORDER BY rowid")
        return [self._record_of(row) for row in rows]

    def add_record(self, record: Record) -> None:
        """Store an attachment with its endpoints and ports, in one transaction."""
        with self._database.transaction():
            self._database.execute(
                "INSERT INTO attachments VALUES (?, ?, ?, ?, ?, ?)",
                (
                    record.container_id,
                    record.kind.value,
                    _text(record.namespace),
                    record.name,
                    record.hostname,
                    json.dumps(record.dns),
                ),
            )
            for position, place in enumerate(record.places):
                self._add_place(record, position, place)
            for port in record.ports:
                self._database.execute(
                    "INSERT INTO ports VALUES (?, ?, ?, ?, ?)",
                    (
                        record.container_id,
                        port.protocol,
                        str(port.host_ip),
                        port.host_port,
                        port.container_port,
                    ),
                )

    def replace_record(self, record: Record) -> None:
        """Store a changed attachment."""
        with self._database.transaction():
            self.delete_record(record.container_id)
            self.add_record(record)

    def delete_record(self, container_id: str) -> None:
        """Forget an attachment with all that belongs to it. Idempotent."""
        self._database.execute("DELETE FROM attachments WHERE container_id = ?", (container_id,))

    def _add_place(self, record: Record, position: int, place: Place) -> None:
        endpoint, interface = place.endpoint, place.interface
        targets = (record.target4 == endpoint.endpoint_id, record.target6 == endpoint.endpoint_id)
        self._database.execute(
            "INSERT INTO endpoints VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                endpoint.endpoint_id,
                record.container_id,
                endpoint.network_id,
                position,
                interface.name,
                interface.device,
                endpoint.mac,
                str(endpoint.address or ""),
                _text(endpoint.gateway),
                int(interface.gateway is not None),
                json.dumps(endpoint.dns_names),
                _text(endpoint.address6),
                _text(endpoint.gateway6),
                int(interface.gateway6 is not None),
                _TARGETS.index(targets),
                place.priority,
                json.dumps(endpoint.links),
            ),
        )

    def _record_of(self, row: sqlite3.Row) -> Record:
        container_id = row["container_id"]
        endpoint_rows = self._database.query(
            "SELECT e.*, n.mtu FROM endpoints e JOIN networks n ON n.id = e.network_id "
            "WHERE container_id = ? ORDER BY position",
            (container_id,),
        )
        port_rows = self._database.query(
            "SELECT * FROM ports WHERE container_id = ? ORDER BY rowid", (container_id,)
        )
        targets = {found["endpoint_id"]: _TARGETS[found["is_target"]] for found in endpoint_rows}
        return Record(
            container_id=container_id,
            kind=NetworkKind(row["kind"]),
            name=row["name"],
            hostname=row["hostname"],
            namespace=None if row["namespace"] is None else Path(row["namespace"]),
            places=tuple(_place_of(found, row["name"]) for found in endpoint_rows),
            ports=tuple(_ports_of(port_rows)),
            target4=next((key for key, (four, _) in targets.items() if four), ""),
            target6=next((key for key, (_, six) in targets.items() if six), ""),
            dns=tuple(json.loads(row["dns"])),
        )


def _network_of(row: sqlite3.Row) -> StoredNetwork:
    network = Network(
        id=NetworkId(row["id"]),
        name=row["name"],
        driver=row["driver"],
        created_at_ns=row["created_at_ns"],
        internal=bool(row["internal"]),
        attachable=bool(row["attachable"]),
        subnet=None if row["subnet"] is None else IPv4Network(row["subnet"]),
        ip_range=None if row["ip_range"] is None else IPv4Network(row["ip_range"]),
        gateway=_address(row["gateway"]),
        subnet6=None if row["subnet6"] is None else IPv6Network(row["subnet6"]),
        ip_range6=None if row["ip_range6"] is None else IPv6Network(row["ip_range6"]),
        gateway6=_address6(row["gateway6"]),
        auxiliary={name: ip_address(text) for name, text in json.loads(row["auxiliary"]).items()},
        bridge=row["bridge"],
        mtu=row["mtu"],
        options=json.loads(row["options"]),
        labels=json.loads(row["labels"]),
    )
    return StoredNetwork(network=network, own_subnet=bool(row["own_subnet"]))


def _place_of(row: sqlite3.Row, name: str) -> Place:
    network_id = NetworkId(row["network_id"])
    address = IPv4Interface(row["address"]) if row["address"] else None
    gateway, gateway6 = _address(row["gateway"]), _address6(row["gateway6"])
    address6 = None if row["address6"] is None else IPv6Interface(row["address6"])
    endpoint = Endpoint(
        container_id=row["container_id"],
        network_id=network_id,
        endpoint_id=row["endpoint_id"],
        name=name,
        mac=row["mac"],
        address=address,
        gateway=gateway,
        address6=address6,
        gateway6=gateway6,
        dns_names=tuple(json.loads(row["dns_names"])),
        links=tuple((alias, name) for alias, name in json.loads(row["links"])),
    )
    interface = Interface(
        name=row["interface"],
        device=row["device"],
        network_id=network_id,
        mac=row["mac"],
        address=address,
        gateway=gateway if row["is_default"] else None,
        address6=address6,
        gateway6=gateway6 if row["is_default6"] else None,
        mtu=row["mtu"],
    )
    return Place(endpoint=endpoint, interface=interface, priority=row["priority"])


def _ports_of(rows: Iterable[sqlite3.Row]) -> Iterable[PublishedPort]:
    for row in rows:
        yield PublishedPort(
            container_port=row["container_port"],
            protocol=row["protocol"],
            host_ip=ip_address(row["host_ip"]),
            host_port=row["host_port"],
        )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _address6(text: str | None) -> IPv6Address | None:
    return None if text is None else IPv6Address(text)


def _address(text: str | None) -> IPv4Address | None:
    return None if text is None else IPv4Address(text)

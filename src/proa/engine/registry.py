# SPDX-License-Identifier: Apache-2.0
"""The containers that exist, in memory and in the database, found by name, id or id prefix.

Records are stored before anyone sees them, so that a daemon killed at any moment restarts from what it has
told its clients. The name is unique in the database too: of a thousand creates with one name one wins.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from proa.engine.container import Container
from proa.host.database import Database
from proa.model.errors import InvalidParameter, NameInUse, NoSuchContainer
from proa.model.ids import ContainerId
from proa.model.network import IpAddress

_SCHEMA = (
    "CREATE TABLE container (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, record BLOB NOT NULL) STRICT",
)


def _encode_hook(value: Any) -> Any:  # Any: msgspec's hook is called for whatever it does not know
    if isinstance(value, (Path, ipaddress._IPAddressBase)):
        return str(value)
    raise NotImplementedError(type(value))


def _decode_hook(wanted: Any, value: Any) -> Any:  # Any: as above
    return ipaddress.ip_address(value) if wanted is IpAddress else wanted(value)


_encoder = msgspec.json.Encoder(enc_hook=_encode_hook)
_decoder = msgspec.json.Decoder(Container, dec_hook=_decode_hook)


def encode_record(container: Container) -> bytes:
    """Return a record as JSON."""
    return _encoder.encode(container)


def decode_record(content: bytes) -> Container:
    """Read a record. Raises msgspec.ValidationError."""
    return _decoder.decode(content)


class Registry:
    """All container records. One writer for each container: callers hold its lock (engine.unit)."""

    def __init__(self, db: Database) -> None:
        self._db = db
        db.migrate("engine", _SCHEMA)
        rows = db.query("SELECT record FROM container")
        self._by_id: dict[str, Container] = {}
        self._by_name: dict[str, Container] = {}
        self._linking: set[str] = set()  # ids of those that have links, of which there are few
        for (record,) in rows:
            self._remember(_decoder.decode(record))

    def __iter__(self) -> Iterator[Container]:
        return iter(list(self._by_id.values()))

    def find(self, ref: str) -> Container | None:
        """Return the container of this exact id, name or unique id prefix; None when there is none.

        Raises InvalidParameter when the prefix fits several.
        """
        ref = ref.removeprefix("/")
        exact = self._by_id.get(ref) or self._by_name.get(ref)
        if exact is not None or not ref:
            return exact
        fitting = [container for id_, container in self._by_id.items() if id_.startswith(ref)]
        if len(fitting) > 1:
            raise InvalidParameter(f"Multiple IDs found with provided prefix: {ref}")
        return fitting[0] if fitting else None

    def get(self, ref: str) -> Container:
        """Return the container. Raises NoSuchContainer, InvalidParameter for an ambiguous prefix."""
        container = self.find(ref)
        if container is None:
            raise NoSuchContainer(ref)
        return container

    def check_name(self, name: str) -> None:
        """Raise NameInUse when another container has the name."""
        holder = self._by_name.get(name)
        if holder is not None:
            raise NameInUse(
                f'Conflict. The container name "/{name}" is already in use by container "{holder.id}". '
                "You have to remove (or rename) that container to be able to reuse that name."
            )

    def add(self, container: Container) -> None:
        """Store a new container. Raises NameInUse."""
        self.check_name(container.name)
        self._db.execute(
            "INSERT INTO container (id, name, record) VALUES (?, ?, ?)",
            (container.id, container.name, _encoder.encode(container)),
        )
        self._remember(container)

    def put(self, container: Container) -> None:
        """Replace the record of the same id."""
        old = self._by_id[container.id]
        if old.name != container.name:
            self.check_name(container.name)
        self._db.execute(
            "UPDATE container SET name = ?, record = ? WHERE id = ?",
            (container.name, _encoder.encode(container), container.id),
        )
        del self._by_name[old.name]
        self._remember(container)

    def drop(self, container_id: ContainerId) -> None:
        """Forget a container. Idempotent."""
        self._db.execute("DELETE FROM container WHERE id = ?", (container_id,))
        self._linking.discard(container_id)
        container = self._by_id.pop(container_id, None)
        if container is not None:
            self._by_name.pop(container.name, None)

    def linking_to(self, peer: ContainerId) -> list[Container]:
        """Return the containers that have a link to another one."""
        linking = [self._by_id[container_id] for container_id in sorted(self._linking)]
        return [one for one in linking if any(link.peer == peer for link in one.links)]

    def _remember(self, container: Container) -> None:
        if container.links:
            self._linking.add(container.id)
        else:
            self._linking.discard(container.id)
        self._by_id[container.id] = container
        self._by_name[container.name] = container

# SPDX-License-Identifier: Apache-2.0
"""The machines that exist, in memory and in the database, found by name, id or id prefix.

A record is stored before anyone sees it; a daemon killed at any moment restarts from what it has told.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from proa.host.database import Database
from proa.model.errors import InvalidParameter, NameInUse, NotFound
from proa.model.ids import short
from proa.model.machine import Machine, MachineId

_SCHEMA = (
    "CREATE TABLE machine (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, record BLOB NOT NULL) STRICT",
)


class NoSuchMachine(NotFound):
    """No machine has this name or id."""

    def __init__(self, ref: str) -> None:
        super().__init__(f"No such virtual machine: {ref}")


class MachineStore:
    """All records. One writer for each machine: callers hold its lock."""

    def __init__(self, db: Database) -> None:
        self._db = db
        db.migrate("machines", _SCHEMA)
        rows = db.query("SELECT record FROM machine")
        found = [msgspec.json.decode(record, type=Machine) for (record,) in rows]
        self._by_id: dict[str, Machine] = {one.id: one for one in found}

    def __iter__(self) -> Iterator[Machine]:
        return iter(sorted(self._by_id.values(), key=lambda one: one.created_at_ns))

    def find(self, ref: str) -> Machine | None:
        """Return the machine of this id, name or unique id prefix. Raises InvalidParameter for a prefix of
        several."""
        exact = self._by_id.get(ref) or next((one for one in self._by_id.values() if one.name == ref), None)
        if exact is not None or not ref:
            return exact
        fitting = [one for one in self._by_id.values() if one.id.startswith(ref)]
        if len(fitting) > 1:
            raise InvalidParameter(f"Multiple IDs found with provided prefix: {ref}")
        return fitting[0] if fitting else None

    def get(self, ref: str) -> Machine:
        """Return the machine. Raises NoSuchMachine, InvalidParameter."""
        found = self.find(ref)
        if found is None:
            raise NoSuchMachine(ref)
        return found

    def add(self, machine: Machine) -> None:
        """Store a new machine. Raises NameInUse."""
        self._check_name(machine)
        self._db.execute(
            "INSERT INTO machine (id, name, record) VALUES (?, ?, ?)",
            (machine.id, machine.name, msgspec.json.encode(machine)),
        )
        self._by_id[machine.id] = machine

    def put(self, machine: Machine) -> None:
        """Replace the record of the same id. Raises NameInUse."""
        self._check_name(machine)
        self._db.execute(
            "UPDATE machine SET name = ?, record = ? WHERE id = ?",
            (machine.name, msgspec.json.encode(machine), machine.id),
        )
        self._by_id[machine.id] = machine

    def drop(self, machine_id: MachineId) -> None:
        """Forget a machine. Idempotent."""
        self._db.execute("DELETE FROM machine WHERE id = ?", (machine_id,))
        self._by_id.pop(machine_id, None)

    def _check_name(self, machine: Machine) -> None:
        for other in self._by_id.values():
            if other.name == machine.name and other.id != machine.id:
                raise NameInUse(
                    f'Conflict. The name "{machine.name}" is already in use by virtual machine '
                    f"{short(other.id)}: remove or rename it first"
                )

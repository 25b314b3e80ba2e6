# SPDX-License-Identifier: Apache-2.0
"""The engine's one SQLite file: connection, versions of each area's tables, transactions.

Owns the connection and its settings; the tables belong to the packages that ask for them with ``migrate``,
each under an area name of its own. Not thread-safe on purpose: it is used from the event loop's thread only,
and a statement takes microseconds. A commit does not wait for the disk (WAL, synchronous=NORMAL): after a
power cut the last transactions may be missing, but the file is whole and in order; after SIGKILL nothing is.

Source: https://www.sqlite.org/wal.html, https://www.sqlite.org/pragma.html
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

BUSY_TIMEOUT_MS = 5_000  # another process with the file open is somebody's sqlite3 shell: it will let go

Value = str | bytes | int | float | None
Parameters = Sequence[Value] | Mapping[str, Value]


class Database:
    """A connection to the file at ``path``, made when missing, in autocommit outside ``transaction``.

    :raises sqlite3.DatabaseError: the file is not an SQLite database, or is damaged.
    :raises OSError: the directory cannot be written.
    """

    def __init__(self, path: Path) -> None:
        # The file may hold secrets of containers (their environment): it is the owner's alone from the start.
        path.touch(mode=0o600, exist_ok=True)
        self.path = path
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        self._depth = 0
        try:
            self._configure()
        except BaseException:
            self._connection.close()
            raise

    def migrate(self, area: str, steps: Sequence[str]) -> None:
        """Bring the tables of ``area`` to version ``len(steps)``: run the missing steps, in one transaction.

        A step is SQL text of one or more statements. A step that has been released never changes; a later
        version appends.

        :raises ValueError: the file was written by a newer proa.
        """
        with self.transaction():
            rows = self.query("SELECT version FROM schema_versions WHERE area = ?", (area,))
            done = rows[0]["version"] if rows else 0
            if done > len(steps):
                raise ValueError(
                    f"{self.path}: tables of {area} have version {done}, this proa knows {len(steps)}: "
                    "it was written by a newer proa"
                )
            for step in steps[done:]:
                for statement in _statements(step):
                    self._connection.execute(statement)
            if done != len(steps):
                self.execute(
                    "INSERT INTO schema_versions (area, version) VALUES (?, ?) "
                    "ON CONFLICT (area) DO UPDATE SET version = excluded.version",
                    (area, len(steps)),
                )

    def execute(self, statement: str, parameters: Parameters = ()) -> int:
        """Run one statement and return the number of rows it changed.

        :raises sqlite3.IntegrityError: a constraint (unique, foreign key, check) forbids it.
        """
        return self._connection.execute(statement, parameters).rowcount

    def query(self, statement: str, parameters: Parameters = ()) -> list[sqlite3.Row]:
        """Run one SELECT (or a statement with RETURNING); columns of a row are read by name or position."""
        return self._connection.execute(statement, parameters).fetchall()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Do all of the block or none of it. May be nested: an inner block that fails undoes only itself.

        Do not await inside: another task would find its statements in this transaction.
        """
        name = f"level{self._depth}"
        begin, commit, undo = ("BEGIN IMMEDIATE", "COMMIT", ["ROLLBACK"])
        if self._depth:
            begin, commit, undo = (
                f"SAVEPOINT {name}",
                f"RELEASE {name}",
                [f"ROLLBACK TO {name}", f"RELEASE {name}"],
            )
        self._connection.execute(begin)
        self._depth += 1
        try:
            yield
            self._connection.execute(commit)
        except BaseException:
            # A full disk or an I/O error may have ended the transaction already.
            if self._connection.in_transaction:
                for statement in undo:
                    self._connection.execute(statement)
            raise
        finally:
            self._depth -= 1

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._connection.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _configure(self) -> None:
        for pragma in (
            f"busy_timeout = {BUSY_TIMEOUT_MS}",
            "journal_mode = WAL",
            "synchronous = NORMAL",
            "foreign_keys = ON",
            "temp_store = MEMORY",
        ):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_versions (area TEXT PRIMARY KEY, version INTEGER NOT NULL)"
        )


def _statements(script: str) -> Iterator[str]:
    """Split SQL text into statements. (``executescript`` would commit the transaction we are in.)"""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
    if pending.strip():
        yield pending

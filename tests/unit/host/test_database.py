# SPDX-License-Identifier: Apache-2.0
"""The database wrapper: versions of tables, nested transactions, settings."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from proa.host.database import Database

STEP_ONE = (
    "CREATE TABLE a (id INTEGER PRIMARY KEY, text TEXT);\nCREATE TABLE b (id INTEGER REFERENCES a(id));"
)
STEP_TWO = "ALTER TABLE a ADD COLUMN more TEXT DEFAULT 'x'"


def test_migrate_runs_each_step_once_and_keeps_rows(tmp_path: Path) -> None:
    with Database(tmp_path / "e.db") as database:
        database.migrate("area", [STEP_ONE])
        database.execute("INSERT INTO a VALUES (1, 'one')")
    with Database(tmp_path / "e.db") as database:
        database.migrate("area", [STEP_ONE, STEP_TWO])
        database.migrate("area", [STEP_ONE, STEP_TWO])
        assert [tuple(row) for row in database.query("SELECT * FROM a")] == [(1, "one", "x")]


def test_migrate_refuses_a_newer_file(tmp_path: Path) -> None:
    with Database(tmp_path / "e.db") as database:
        database.migrate("area", [STEP_ONE, STEP_TWO])
        with pytest.raises(ValueError, match="newer proa"):
            database.migrate("area", [STEP_ONE])


def test_failed_migration_leaves_nothing(tmp_path: Path) -> None:
    with Database(tmp_path / "e.db") as database:
        with pytest.raises(sqlite3.OperationalError):
            database.migrate("area", [STEP_ONE, "CREATE NONSENSE"])
        assert database.query("SELECT name FROM sqlite_master WHERE name = 'a'") == []


def test_nested_transactions_undo_only_themselves(tmp_path: Path) -> None:
    with Database(tmp_path / "e.db") as database:
        database.migrate("area", [STEP_ONE])
        with database.transaction():
            database.execute("INSERT INTO a VALUES (1, 'kept')")
            with pytest.raises(RuntimeError), database.transaction():
                database.execute("INSERT INTO a VALUES (2, 'undone')")
                raise RuntimeError
        assert [row["id"] for row in database.query("SELECT id FROM a")] == [1]


def test_settings(tmp_path: Path) -> None:
    with Database(tmp_path / "e.db") as database:
        database.migrate("area", [STEP_ONE])
        assert database.query("PRAGMA journal_mode")[0][0] == "wal"
        assert (tmp_path / "e.db").stat().st_mode & 0o777 == 0o600
        with pytest.raises(sqlite3.IntegrityError):
            database.execute("INSERT INTO b VALUES (7)")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e.db").write_bytes(b"not a database, and long enough to have a header" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        Database(tmp_path / "e.db")

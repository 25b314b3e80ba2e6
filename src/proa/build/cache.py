# SPDX-License-Identifier: Apache-2.0
"""The book of build steps that have been done: what each made, when, and when it was last wanted.

A step's key says all that its result depends on, so an entry never becomes wrong, only unused. The layers
themselves are in the image store, which asks ``layers`` what to keep. Everything is synchronous and one
statement; a kill at any time loses at most the newest entries.

Source: Engine API, BuildCache.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from proa.host.database import Database
from proa.image.catalog import LayerRecord
from proa.model.ids import Digest

_SCHEMA = (
    """
    CREATE TABLE build_step (
        key TEXT PRIMARY KEY,
        kind TEXT NOT NULL,              -- regular (a layer) or internal (no layer)
        description TEXT NOT NULL,
        created TEXT NOT NULL,           -- RFC 3339, as in the image's history
        diff_id TEXT NOT NULL,           -- '' without a layer
        blob TEXT NOT NULL,
        size_bytes INTEGER NOT NULL,
        created_at_ns INTEGER NOT NULL,
        used_at_ns INTEGER NOT NULL,
        uses INTEGER NOT NULL
    ) STRICT;
    """,
)

MAX_STEPS = 100_000  # entries without a layer cost nothing but their row


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedStep:
    """A step that has been done. ``layer`` is None when it changed no file."""

    key: str
    description: str
    created: str
    layer: LayerRecord | None = None
    size_bytes: int = 0
    created_at_ns: int = 0
    used_at_ns: int = 0
    uses: int = 0


class BuildCache:
    """All cached steps, in the database and in memory."""

    def __init__(self, db: Database) -> None:
        self._db = db
        db.migrate("build", _SCHEMA)
        self._steps: dict[str, CachedStep] = {}
        for row in db.query("SELECT * FROM build_step"):
            layer = None
            if row["diff_id"]:
                layer = LayerRecord(diff_id=Digest(row["diff_id"]), blob=Digest(row["blob"]))
            self._steps[row["key"]] = CachedStep(
                key=row["key"],
                description=row["description"],
                created=row["created"],
                layer=layer,
                size_bytes=row["size_bytes"],
                created_at_ns=row["created_at_ns"],
                used_at_ns=row["used_at_ns"],
                uses=row["uses"],
            )

    def layers(self) -> Iterable[LayerRecord]:
        """Return the layers that must not be removed."""
        return [step.layer for step in self._steps.values() if step.layer is not None]

    def steps(self) -> list[CachedStep]:
        """Return all steps, the one longest unused first."""
        return sorted(self._steps.values(), key=lambda step: step.used_at_ns)

    def find(self, key: str) -> CachedStep | None:
        """Return a step, and note that it was wanted."""
        step = self._steps.get(key)
        if step is None:
            return None
        now = time.time_ns()
        self._db.execute("UPDATE build_step SET used_at_ns = ?, uses = uses + 1 WHERE key = ?", (now, key))
        step = CachedStep(
            key=step.key,
            description=step.description,
            created=step.created,
            layer=step.layer,
            size_bytes=step.size_bytes,
            created_at_ns=step.created_at_ns,
            used_at_ns=now,
            uses=step.uses + 1,
        )
        self._steps[key] = step
        return step

    def put(
        self,
        key: str,
        *,
        description: str,
        created: str,
        layer: LayerRecord | None = None,
        size_bytes: int = 0,
    ) -> CachedStep:
        """Enter a step, in place of one of the same key."""
        now = time.time_ns()
        step = CachedStep(
            key=key,
            description=description,
            created=created,
            layer=layer,
            size_bytes=size_bytes,
            created_at_ns=now,
            used_at_ns=now,
            uses=0,
        )
        self._db.execute(
            "INSERT OR REPLACE INTO build_step VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                key,
                "regular" if layer else "internal",
                description,
                created,
                layer.diff_id if layer else "",
                layer.blob if layer else "",
                size_bytes,
                now,
                now,
                0,
            ),
        )
        self._steps[key] = step
        return step

    def remove(self, keys: Iterable[str]) -> None:
        """Strike steps. Their layers are left to the caller. Idempotent."""
        with self._db.transaction():
            for key in keys:
                if self._steps.pop(key, None) is not None:
                    self._db.execute("DELETE FROM build_step WHERE key = ?", (key,))

    def drop_lost(self, exists: Callable[[Digest], bool]) -> None:
        """Strike steps whose layer is gone; for the start of the daemon."""
        lost = [
            step.key
            for step in self._steps.values()
            if step.layer is not None and not exists(step.layer.diff_id)
        ]
        self.remove(lost)


def step_key(*parts: object) -> str:
    """Return the key of what these JSON values describe."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()

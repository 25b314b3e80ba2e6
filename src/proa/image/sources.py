# SPDX-License-Identifier: Apache-2.0
"""Which repositories hold which layer blobs, as pulls and pushes have seen it.

A push asks it where a blob can be mounted from, and as which blob a layer that is stored uncompressed here
was pushed before. All of it is a hint: the registry is asked each time.

Source: OCI distribution-spec, "Mounting a blob from another repository".
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from proa.host.database import Database
from proa.model.ids import Digest

KEPT_ROWS = 20_000  # the oldest are forgotten
KEPT_MANIFESTS = 1000
MANIFEST_MAX_BYTES = 64 * 1024  # larger ones are not worth keeping: an ordinary one has 1 KiB
MAX_FOUND = 5  # repositories tried for one blob: each costs a request

_SCHEMA = (
    """
    CREATE TABLE image_source (
        repository TEXT NOT NULL,        -- normalised name, without a tag
        blob TEXT NOT NULL,
        diff_id TEXT NOT NULL,
        size_bytes INTEGER NOT NULL,     -- of the blob
        seen_at_ns INTEGER NOT NULL,
        PRIMARY KEY (repository, blob)
    ) STRICT;
    CREATE TABLE image_source_manifest ( -- that image_layer's blobs do not make up: layers were here already
        image_id TEXT PRIMARY KEY,
        data BLOB NOT NULL,
        seen_at_ns INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX image_source_blob ON image_source (blob);
    CREATE INDEX image_source_diff ON image_source (diff_id);
    """,
)


class BlobSources:
    """The table, in the daemon's database."""

    def __init__(self, db: Database) -> None:
        self._db = db
        db.migrate("image_source", _SCHEMA)

    def remember(self, repository: str, layers: Sequence[tuple[Digest, Digest, int]]) -> None:
        """Note that a repository has these layers, each as (diff id, blob, size of the blob)."""
        now = time.time_ns()
        with self._db.transaction():
            for diff_id, blob, size in layers:
                self._db.execute(
                    "INSERT INTO image_source (repository, blob, diff_id, size_bytes, seen_at_ns) "
                    "VALUES (?, ?, ?, ?, ?) ON CONFLICT (repository, blob) "
                    "DO UPDATE SET seen_at_ns = excluded.seen_at_ns",
                    (repository, blob, diff_id, size, now),
                )
            self._db.execute(
                "DELETE FROM image_source WHERE rowid IN "
                "(SELECT rowid FROM image_source ORDER BY seen_at_ns DESC LIMIT -1 OFFSET ?)",
                (KEPT_ROWS,),
            )

    def remember_manifest(self, image_id: Digest, data: bytes) -> None:
        """Note the manifest by which a registry has an image, when its blobs are not all here."""
        if len(data) > MANIFEST_MAX_BYTES:
            return
        with self._db.transaction():
            self._db.execute(
                "INSERT INTO image_source_manifest (image_id, data, seen_at_ns) VALUES (?, ?, ?) "
                "ON CONFLICT (image_id) DO UPDATE SET data = excluded.data, seen_at_ns = excluded.seen_at_ns",
                (image_id, data, time.time_ns()),
            )
            self._db.execute(
                "DELETE FROM image_source_manifest WHERE rowid IN "
                "(SELECT rowid FROM image_source_manifest ORDER BY seen_at_ns DESC LIMIT -1 OFFSET ?)",
                (KEPT_MANIFESTS,),
            )

    def manifest_of(self, image_id: Digest) -> bytes | None:
        """Return the manifest that was noted last for an image."""
        rows = self._db.query("SELECT data FROM image_source_manifest WHERE image_id = ?", (image_id,))
        return bytes(rows[0]["data"]) if rows else None

    def paths_of(self, blob: Digest, domain: str) -> Sequence[str]:
        """Return the repositories of a domain that have the blob, without the domain, newest first."""
        prefix = f"{domain}/"
        rows = self._db.query(
            "SELECT repository FROM image_source WHERE blob = ? AND substr(repository, 1, ?) = ? "
            "ORDER BY seen_at_ns DESC LIMIT ?",
            (blob, len(prefix), prefix, MAX_FOUND),
        )
        return [row["repository"].removeprefix(prefix) for row in rows]

    def blobs_of(self, diff_id: Digest, domain: str) -> Sequence[tuple[Digest, int]]:
        """Return the blobs, with their sizes, as which a domain has got a layer, newest first."""
        prefix = f"{domain}/"
        rows = self._db.query(
            "SELECT blob, max(size_bytes) AS size, max(seen_at_ns) AS seen FROM image_source "
            "WHERE diff_id = ? AND substr(repository, 1, ?) = ? GROUP BY blob ORDER BY seen DESC LIMIT ?",
            (diff_id, len(prefix), prefix, MAX_FOUND),
        )
        return [(Digest(row["blob"]), row["size"]) for row in rows]

# SPDX-License-Identifier: Apache-2.0
"""The book of images: which exist, their names, layers and blobs, in the database and in memory.

Bookkeeping only: blobs and layers themselves are moved by ``store``. Everything here is synchronous and
each change is one transaction, so a reader never sees half of one. What the engine looks up on its way to a
container's start comes from memory.

An image that was removed while a stopped container still needs its layers is *hidden*: no name and no id
finds it, and it goes for good when the last such container is released.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from proa.host.database import Database
from proa.image.config import CONFIG_MAX_BYTES, make_image, parse_config
from proa.image.content import ContentStore
from proa.image.reference import Reference, parse_any, parse_reference
from proa.model.errors import DataLoss, InvalidParameter, NoSuchImage
from proa.model.ids import Digest
from proa.model.image import Image

_SCHEMA = (
    """
    CREATE TABLE image (
        id TEXT PRIMARY KEY,             -- digest of the configuration
        manifest TEXT NOT NULL,          -- digest of the manifest it came with, or ''
        parent TEXT NOT NULL,            -- id of the image it was built on, or ''
        hidden INTEGER NOT NULL,
        last_tagged_at_ns INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE image_diff (            -- layers this package had stored, or was about to
        diff_id TEXT PRIMARY KEY,
        size_bytes INTEGER NOT NULL,
        disk_bytes INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE image_layer (
        image_id TEXT NOT NULL REFERENCES image ON DELETE CASCADE,
        position INTEGER NOT NULL,
        diff_id TEXT NOT NULL REFERENCES image_diff,
        blob TEXT NOT NULL,              -- the layer's tar as it came, often compressed
        PRIMARY KEY (image_id, position)
    ) STRICT;
    CREATE INDEX image_layer_diff ON image_layer (diff_id);
    CREATE TABLE image_name (
        name TEXT PRIMARY KEY,           -- normalised, with a tag or a digest
        image_id TEXT NOT NULL REFERENCES image ON DELETE CASCADE
    ) STRICT;
    CREATE TABLE image_hold (
        container_id TEXT NOT NULL,
        image_id TEXT NOT NULL REFERENCES image ON DELETE CASCADE,
        PRIMARY KEY (container_id, image_id)
    ) STRICT;
    """,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """One layer of an image: what it is, and the blob it came as."""

    diff_id: Digest
    blob: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An image and what belongs to it. ``names`` are in order of their familiar form."""

    image: Image
    layers: tuple[LayerRecord, ...]
    manifest: Digest | None
    names: tuple[Reference, ...] = ()
    is_hidden: bool = False

    @property
    def tags(self) -> tuple[Reference, ...]:
        return tuple(name for name in self.names if not name.digest)

    @property
    def blobs(self) -> set[Digest]:
        """Every blob the image needs."""
        wanted = {self.image.id, *(layer.blob for layer in self.layers)}
        return wanted | {self.manifest} if self.manifest else wanted


class Catalog:
    """All images. ``read`` fills it from the database."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._entries: dict[Digest, Entry] = {}
        self._names: dict[str, Digest] = {}
        db.migrate("image", _SCHEMA)

    def read(self, content: ContentStore) -> None:
        """Fill the memory. An image whose configuration is lost is left out, and said in the log."""
        sizes = {diff_id: size for diff_id, (size, _) in self.layer_sizes().items()}
        for row in self._db.query("SELECT * FROM image"):
            image_id = Digest(row["id"])
            layers = tuple(
                LayerRecord(diff_id=Digest(layer["diff_id"]), blob=Digest(layer["blob"]))
                for layer in self._db.query(
                    "SELECT diff_id, blob FROM image_layer WHERE image_id = ? ORDER BY position", (image_id,)
                )
            )
            try:
                config = parse_config(content.read(image_id, CONFIG_MAX_BYTES))
                image = make_image(image_id, config, sizes, parent=row["parent"])
            except (DataLoss, InvalidParameter) as error:
                _log.error("image %s is damaged and left out: %s", image_id, error)
                continue
            self._entries[image_id] = Entry(
                image=replace(image, last_tagged_at_ns=row["last_tagged_at_ns"]),
                layers=layers,
                manifest=Digest(row["manifest"]) if row["manifest"] else None,
                is_hidden=bool(row["hidden"]),
            )
        for row in self._db.query("SELECT name, image_id FROM image_name"):
            self._names[row["name"]] = Digest(row["image_id"])
        for image_id in self._entries:
            self._refresh(image_id)

    # --- looking up ---

    def __iter__(self) -> Iterator[Entry]:
        return iter([entry for entry in self._entries.values() if not entry.is_hidden])

    def with_hidden(self) -> list[Entry]:
        """Every image, those too that only stopped containers still need."""
        return list(self._entries.values())

    def find_id(self, image_id: Digest) -> Entry | None:
        entry = self._entries.get(image_id)
        return None if entry is None or entry.is_hidden else entry

    def find_name(self, name: Reference) -> Entry | None:
        """Return the image of exactly this name (with its tag or digest)."""
        image_id = self._names.get(str(name.with_default_tag()))
        return None if image_id is None else self.find_id(image_id)

    def get(self, ref: str) -> Entry:
        """Return the image that a user means: by name, then by id, then by id prefix.

        Source: Docker Engine, GetImage. Raises NoSuchImage; InvalidParameter when the text is no reference or
        the prefix fits several.
        """
        wanted = parse_any(ref)
        if isinstance(wanted, str):
            entry = self.find_id(wanted)
            if entry is None:
                raise NoSuchImage(wanted)
            return entry
        entry = self._find_reference(wanted) or self._find_prefix(ref)
        if entry is None:
            raise NoSuchImage(wanted.with_default_tag().familiar)
        return entry

    def children(self, image_id: Digest) -> list[Entry]:
        return [entry for entry in self if entry.image.parent == image_id]

    def with_repository(self, repository: str) -> list[tuple[Reference, Entry]]:
        """Every tag of a repository (normalised name), with its image."""
        return [(tag, entry) for entry in self for tag in entry.tags if tag.name == repository]

    def _find_reference(self, wanted: Reference) -> Entry | None:
        if wanted.digest:
            # The tag beside a digest is decoration: the digest alone decides.
            return self.find_name(wanted.with_digest(Digest(wanted.digest)))
        return self.find_name(wanted)

    def _find_prefix(self, ref: str) -> Entry | None:
        digits = ref.removeprefix("sha256:")
        if not digits or len(digits) > 64 or not set(digits) <= set("0123456789abcdef"):
            return None
        fitting = [entry for entry in self if entry.image.id.startswith(f"sha256:{digits}")]
        if len(fitting) > 1:
            raise InvalidParameter(f"ambiguous image id prefix: {ref} fits {len(fitting)} images")
        return fitting[0] if fitting else None

    # --- changing ---

    def add(
        self, image: Image, layers: Sequence[LayerRecord], manifest: Digest | None, names: Iterable[Reference]
    ) -> Entry:
        """Enter an image and give it names (taken from other images that had them). Idempotent."""
        names = tuple(names)
        with self._db.transaction():
            self._db.execute(
                "INSERT INTO image (id, manifest, parent, hidden, last_tagged_at_ns) VALUES (?, ?, ?, 0, 0) "
                "ON CONFLICT (id) DO UPDATE SET hidden = 0",
                (image.id, manifest or "", image.parent),
            )
            for position, layer in enumerate(layers):
                # An image known already keeps the blobs it first came with: they hold the same layers.
                self._db.execute(
                    "INSERT INTO image_layer (image_id, position, diff_id, blob) VALUES (?, ?, ?, ?) "
                    "ON CONFLICT DO NOTHING",
                    (image.id, position, layer.diff_id, layer.blob),
                )
            self._db.execute("DELETE FROM image_hold WHERE image_id = ?", (image.id,))
            now = self._store_names(names, image.id)
        known = self._entries.get(image.id)
        if known is None:
            known = Entry(image=image, layers=tuple(layers), manifest=manifest)
        self._entries[image.id] = replace(known, is_hidden=False)
        for name in names:
            self._move_name(name, image.id, now)
        return self._refresh(image.id)

    def assign(self, name: Reference, image_id: Digest) -> Digest | None:
        """Give a name to an image and return the image that had it, None when none or the same."""
        with self._db.transaction():
            now = self._store_names((name,), image_id)
        return self._move_name(name, image_id, now)

    def _store_names(self, names: Sequence[Reference], image_id: Digest) -> int:
        now = time.time_ns()
        for name in names:
            self._db.execute(
                "INSERT INTO image_name (name, image_id) VALUES (?, ?) "
                "ON CONFLICT (name) DO UPDATE SET image_id = excluded.image_id",
                (str(name), image_id),
            )
            self._db.execute("UPDATE image SET last_tagged_at_ns = ? WHERE id = ?", (now, image_id))
        return now

    def _move_name(self, name: Reference, image_id: Digest, now_ns: int) -> Digest | None:
        previous = self._names.get(str(name))
        self._names[str(name)] = image_id
        entry = self._entries[image_id]
        self._entries[image_id] = replace(entry, image=replace(entry.image, last_tagged_at_ns=now_ns))
        self._refresh(image_id)
        if previous is None or previous == image_id:
            return None
        if previous in self._entries:
            self._refresh(previous)
        return previous

    def note_manifest(self, image_id: Digest, manifest: Digest) -> None:
        """Give an image that came without a manifest the one that a registry has for it."""
        entry = self._entries[image_id]
        if entry.manifest is None:
            self._db.execute("UPDATE image SET manifest = ? WHERE id = ?", (manifest, image_id))
            self._entries[image_id] = replace(entry, manifest=manifest)

    def unassign(self, name: Reference) -> None:
        """Take a name away. Idempotent."""
        self._db.execute("DELETE FROM image_name WHERE name = ?", (str(name),))
        image_id = self._names.pop(str(name), None)
        if image_id in self._entries:
            self._refresh(image_id)

    def remove(self, image_id: Digest) -> None:
        """Strike an image with its names from the book. Its layers and blobs are left to the caller."""
        self._db.execute("DELETE FROM image WHERE id = ?", (image_id,))
        entry = self._entries.pop(image_id)
        for name in entry.names:
            self._names.pop(str(name), None)

    def hide(self, image_id: Digest, holders: Collection[str]) -> None:
        """Strike an image from view, but keep it until each of these containers has been released."""
        entry = self._entries[image_id]
        with self._db.transaction():
            self._db.execute("DELETE FROM image_name WHERE image_id = ?", (image_id,))
            self._db.execute("UPDATE image SET hidden = 1 WHERE id = ?", (image_id,))
            for container_id in holders:
                self._db.execute(
                    "INSERT INTO image_hold (container_id, image_id) VALUES (?, ?)", (container_id, image_id)
                )
        for name in entry.names:
            self._names.pop(str(name), None)
        self._entries[image_id] = replace(entry, is_hidden=True)
        self._refresh(image_id)

    def release(self, container_id: str) -> list[Entry]:
        """Forget a container's holds; strike and return the hidden images that nothing holds any more."""
        if not self._db.execute("DELETE FROM image_hold WHERE container_id = ?", (container_id,)):
            return []
        return self._drop_unheld()

    def release_all_but(self, container_ids: Collection[str]) -> list[Entry]:
        """Forget the holds of all containers but these; strike and return what nothing holds any more."""
        for row in self._db.query("SELECT DISTINCT container_id FROM image_hold"):
            if row["container_id"] not in container_ids:
                self._db.execute("DELETE FROM image_hold WHERE container_id = ?", (row["container_id"],))
        return self._drop_unheld()

    def _drop_unheld(self) -> list[Entry]:
        rows = self._db.query(
            "SELECT id FROM image WHERE hidden AND id NOT IN (SELECT image_id FROM image_hold)"
        )
        dropped = [self._entries[row["id"]] for row in rows if row["id"] in self._entries]
        for entry in dropped:
            self.remove(entry.image.id)
        return dropped

    def _refresh(self, image_id: Digest) -> Entry:
        """Rewrite the names that an entry and its image show."""
        entry = self._entries[image_id]
        names = [parse_reference(name) for name, holder in self._names.items() if holder == image_id]
        names.sort(key=lambda name: name.familiar)
        image = replace(
            entry.image,
            references=tuple(name.familiar for name in names if not name.digest),
            repo_digests=tuple(name.familiar for name in names if name.digest),
        )
        self._entries[image_id] = replace(entry, image=image, names=tuple(names))
        return self._entries[image_id]

    # --- layers and blobs in use ---

    def note_layer(self, diff_id: Digest, size_bytes: int = 0, disk_bytes: int = 0) -> None:
        """Record a layer that is stored, or (sizes 0) about to be, so that a crash leaves none unknown."""
        self._db.execute(
            "INSERT INTO image_diff (diff_id, size_bytes, disk_bytes) VALUES (?, ?, ?) ON CONFLICT (diff_id) "
            "DO UPDATE SET size_bytes = max(size_bytes, excluded.size_bytes), "
            "disk_bytes = max(disk_bytes, excluded.disk_bytes)",
            (diff_id, size_bytes, disk_bytes),
        )

    def forget_layers(self, diff_ids: Iterable[Digest]) -> None:
        """Strike layers that have been removed."""
        with self._db.transaction():
            for diff_id in diff_ids:
                self._db.execute("DELETE FROM image_diff WHERE diff_id = ?", (diff_id,))

    def find_blob(self, diff_id: Digest) -> Digest | None:
        """Return the blob as which an image here has got this layer."""
        rows = self._db.query("SELECT blob FROM image_layer WHERE diff_id = ? LIMIT 1", (diff_id,))
        return Digest(rows[0]["blob"]) if rows else None

    def layer_sizes(self, diff_ids: Collection[Digest] | None = None) -> Mapping[Digest, tuple[int, int]]:
        """Bytes uncompressed and on disk of these layers, or of all."""
        return {
            Digest(row["diff_id"]): (row["size_bytes"], row["disk_bytes"])
            for row in self._db.query("SELECT * FROM image_diff")
            if diff_ids is None or row["diff_id"] in diff_ids
        }

    def unused_layers(self) -> set[Digest]:
        """Layers that no image has, hidden ones included."""
        rows = self._db.query(
            "SELECT diff_id FROM image_diff WHERE diff_id NOT IN (SELECT diff_id FROM image_layer)"
        )
        return {Digest(row["diff_id"]) for row in rows}

    def used_blobs(self) -> set[Digest]:
        """Blobs that an image needs, damaged and hidden ones included."""
        rows = self._db.query(
            "SELECT id AS blob FROM image UNION SELECT manifest FROM image UNION SELECT blob FROM image_layer"
        )
        return {Digest(row["blob"]) for row in rows}

# SPDX-License-Identifier: Apache-2.0
"""Blobs, layers and the catalog kept in step: the ground for load, import and later pull, build and commit.

Whoever brings an image in opens a *session*, keeps blobs, adds layers and registers images in it. What a
session touches is pinned until its end, and whatever no image needs then is collected; so a session that
fails leaves nothing, and a killed one is cleared up by the next ``open``.

Order of writing: layer noted in the catalog, layer stored, blobs stored, image registered. Order of
removing: image struck, layers removed, layers struck, blobs removed. Either may stop anywhere.

Lock: ``_collecting``, for a moment before a pin is set, and around every removal.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

import anyio
from anyio import to_thread

from proa.host.database import Database
from proa.image.catalog import Catalog, Entry, LayerRecord
from proa.image.config import ImageConfig, make_image
from proa.image.content import ContentStore, Spool, Spooled
from proa.image.layer_store import LayerStore, OnRead
from proa.image.reference import Reference
from proa.model.errors import EngineError
from proa.model.ids import Digest, short
from proa.model.image import Image

WORKERS = 2  # threads that hash and write at a time; more would only fight over the disk

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Freed:
    """What a collection removed. ``size_bytes`` counts layers uncompressed, as Docker does."""

    layers: frozenset[Digest] = frozenset()
    size_bytes: int = 0


class ImageStore:
    """All that images consist of, below ``root`` (the data root) and in ``layers``."""

    def __init__(self, *, db: Database, root: Path, layers: LayerStore) -> None:
        self.content = ContentStore(root / "blobs")
        self.catalog = Catalog(db)
        self._layers = layers
        self._pinned_blobs: Counter[Digest] = Counter()
        self._pinned_layers: Counter[Digest] = Counter()
        self._collecting = anyio.Lock()
        self._limiter: anyio.CapacityLimiter | None = None

    async def open(self) -> None:
        """Read the catalog, clear what a crash left, and store again layers that have been lost."""
        await self.in_thread(self.content.open)
        self.catalog.read(self.content)
        await self.collect(self.catalog.unused_layers(), set(self.content.iter_digests()))
        for entry in self.catalog.with_hidden():
            for layer in entry.layers:
                if not self._layers.exists(layer.diff_id):
                    await self._restore(layer)

    @contextlib.asynccontextmanager
    async def open_session(self) -> AsyncIterator[Session]:
        """Bring images in, or keep those that are here from being removed for a while."""
        session = Session(self)
        try:
            yield session
        finally:
            with anyio.CancelScope(shield=True):
                self._pinned_blobs -= Counter(session.blobs)
                self._pinned_layers -= Counter(session.layers)
                await self.collect(session.layers, session.blobs)

    @contextlib.asynccontextmanager
    async def open_spool(self) -> AsyncIterator[Spool]:
        """A place for files on their way in; at the end of the block all that was not kept is deleted."""
        spool = self.content.create_spool()
        try:
            yield spool
        finally:
            with anyio.CancelScope(shield=True):
                await self.in_thread(spool.discard)

    async def pin(self, *, blobs: Iterable[Digest] = (), layers: Iterable[Digest] = ()) -> None:
        async with self._collecting:  # what is being removed now must be gone before it is looked for
            self._pinned_blobs.update(blobs)
            self._pinned_layers.update(layers)

    async def collect(self, layers: Collection[Digest], blobs: Collection[Digest]) -> Freed:
        """Remove those of the given layers and blobs that nothing needs."""
        async with self._collecting:
            unused = set(layers) & self.catalog.unused_layers()
            unused -= {diff_id for diff_id in unused if self._pinned_layers[diff_id] > 0}
            sizes = self.catalog.layer_sizes(unused)
            if unused:
                await self._layers.remove(unused)
                self.catalog.forget_layers(unused)
            spare = set(blobs) - self.catalog.used_blobs()
            spare -= {digest for digest in spare if self._pinned_blobs[digest] > 0}
            if spare:
                await self.in_thread(self.content.delete, spare)
        return Freed(layers=frozenset(unused), size_bytes=sum(size for size, _ in sizes.values()))

    async def free(self, entries: Iterable[Entry]) -> Freed:
        """Collect what images needed that have been struck from the catalog."""
        layers: set[Digest] = set()
        blobs: set[Digest] = set()
        for entry in entries:
            layers.update(entry.image.layers)
            blobs |= entry.blobs
        return await self.collect(layers, blobs) if blobs else Freed()

    def has_layer(self, diff_id: Digest) -> bool:
        return self._layers.exists(diff_id)

    async def ensure_layer(self, blob: Digest, diff_id: Digest, on_progress: OnRead | None = None) -> None:
        """Have the layer of this blob stored. The caller has pinned both.

        Raises InvalidParameter when the blob is no tar, or not that of ``diff_id``.
        """
        self.catalog.note_layer(diff_id)
        added = await self._layers.add(self.content.path(blob), expected=diff_id, on_progress=on_progress)
        self.catalog.note_layer(diff_id, added.size_bytes, added.disk_bytes)

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work on the disk in a thread. It is waited for even when cancelled."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(WORKERS)
        return await to_thread.run_sync(partial(function, *args, **kwargs), limiter=self._limiter)

    async def _restore(self, layer: LayerRecord) -> None:
        _log.warning("layer %s is missing from the layer store: making it again", short(layer.diff_id))
        try:
            await self.ensure_layer(layer.blob, layer.diff_id)
        except EngineError as error:
            _log.error("layer %s cannot be made again: %s", short(layer.diff_id), error.message)


class Session:
    """Open for the span of ``ImageStore.open_session``; used by one task."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self.blobs: list[Digest] = []
        self.layers: list[Digest] = []

    async def pin(self, entry: Entry) -> None:
        """Keep an image's blobs and layers until the session ends, even if it is removed meanwhile."""
        await self._pin(blobs=entry.blobs, layers=entry.image.layers)

    async def keep(self, spooled: Spooled) -> Digest:
        """Make a spooled file a blob, durably."""
        await self._pin(blobs=[spooled.digest])
        return await self._store.in_thread(self._store.content.keep, spooled)

    async def hold_blob(self, digest: Digest) -> bool:
        """Keep a blob from being removed until the session ends; False when it is not here."""
        await self._pin(blobs=[digest])
        return self._store.content.has(digest)

    async def keep_partial(self, digest: Digest) -> None:
        """Make a whole, verified partial file a blob, durably."""
        await self._pin(blobs=[digest])
        await self._store.in_thread(self._store.content.keep_partial, digest)

    async def hold_layer(self, diff_id: Digest) -> LayerRecord | None:
        """Keep a layer that an image here has, with its blob, until the session ends; None: none has it."""
        blob = self._store.catalog.find_blob(diff_id)
        if blob is None:
            return None
        await self._pin(blobs=[blob], layers=[diff_id])
        if not self._store.content.has(blob) or not self._store.has_layer(diff_id):
            return None
        return LayerRecord(diff_id=diff_id, blob=blob)

    async def put_blob(self, data: bytes) -> Digest:
        """Store a small blob, durably."""
        async with self._store.open_spool() as spool:
            return await self.keep(spool.write(data))

    def has_layer(self, diff_id: Digest) -> bool:
        """Whether the layer is stored already."""
        return self._store.has_layer(diff_id)

    async def add_layer(
        self, blob: Digest, diff_id: Digest, on_progress: OnRead | None = None
    ) -> LayerRecord:
        """Have the layer stored whose tar, compressed or not, is in the blob.

        Raises InvalidParameter when it is no tar, or not that of ``diff_id``.
        """
        await self._pin(layers=[diff_id])
        await self._store.ensure_layer(blob, diff_id, on_progress)
        return LayerRecord(diff_id=diff_id, blob=blob)

    def register(
        self,
        image_id: Digest,
        config: ImageConfig,
        layers: Sequence[LayerRecord],
        *,
        names: Iterable[Reference] = (),
        manifest: Digest | None = None,
        parent: str = "",
    ) -> Image:
        """Enter an image whose configuration blob, layers (and manifest) were kept in this session.

        One that is there already gets the names only. Names are taken from images that had them.
        """
        sizes = {
            diff_id: size
            for diff_id, (size, _) in self._store.catalog.layer_sizes(set(config.diff_ids)).items()
        }
        image = make_image(image_id, config, sizes, parent=parent)
        return self._store.catalog.add(image, layers, manifest, names).image

    async def _pin(self, *, blobs: Iterable[Digest] = (), layers: Iterable[Digest] = ()) -> None:
        blobs, layers = list(blobs), list(layers)
        await self._store.pin(blobs=blobs, layers=layers)
        self.blobs += blobs
        self.layers += layers

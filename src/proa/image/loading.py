# SPDX-License-Identifier: Apache-2.0
"""Bringing images in from a stream: archives (``docker load``) and root file systems (``docker import``).

The stream is spooled and hashed as it arrives; images are registered when everything of every image is
stored, so a load is done whole or not at all.

Source: Engine API, ImageLoad, ImageCreate with fromSrc.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import anyio

from proa.image.archive_images import ArchivedImage, read_images
from proa.image.archive_reader import ArchiveSpooler
from proa.image.catalog import LayerRecord
from proa.image.compression import Inflater
from proa.image.config import ImageConfig, encode_config
from proa.image.content import Spooled, SpoolFile
from proa.image.platform import Platform
from proa.image.reference import Reference
from proa.image.store import ImageStore, Session
from proa.model.config import ContainerConfig
from proa.model.errors import EngineError
from proa.model.ids import Digest, short
from proa.model.image import HistoryEntry, Image

BATCH_BYTES = 1024 * 1024  # handed to a worker thread at a time: about a millisecond of work

Progress = Callable[[Mapping[str, object]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """An image that came in, with the names that came with it."""

    image: Image
    names: tuple[Reference, ...]


class _Sink(Protocol):
    def feed(self, data: bytes) -> None: ...


async def load_archive(
    store: ImageStore, stream: AsyncIterator[bytes], on_progress: Progress
) -> list[Loaded]:
    """Take in every image of an archive.

    ``on_progress`` gets messages as the Engine API's stream has them (status, id, progressDetail; stream).

    :raises InvalidParameter: the archive is broken or no image archive; nothing was taken in.
    """
    async with store.open_spool() as spool, store.open_session() as session:
        with closing(ArchiveSpooler(spool)) as spooler:
            await _pump(store, stream, spooler)
            archive = await store.in_thread(spooler.finish)
        images = await store.in_thread(read_images, archive)
        layers = [await _store_image(session, image, on_progress) for image in images]
        _announce_moved_names(store, images, on_progress)
        return [_register(session, image, records) for image, records in zip(images, layers, strict=True)]


async def import_root(
    store: ImageStore,
    stream: AsyncIterator[bytes],
    *,
    name: Reference | None,
    message: str,
    config: ContainerConfig,
    platform: Platform,
) -> Image:
    """Make an image of one layer, the tar in ``stream`` (plain or compressed).

    :raises InvalidParameter: it is not a tar archive; nothing was taken in.
    """
    async with store.open_spool() as spool, store.open_session() as session:
        with closing(_PlainSink(spool.create())) as sink:
            await _pump(store, stream, sink)
            spooled = await store.in_thread(sink.finish)
        layer = await session.keep(spooled)
        record = await session.add_layer(layer, layer)  # a plain tar's digest is its diff id
        created = datetime.fromtimestamp(time.time(), UTC).isoformat().replace("+00:00", "Z")
        image = ImageConfig(
            diff_ids=(layer,),
            config=config,
            platform=platform,
            created=created,
            comment=message,
            history=(HistoryEntry(created=created, comment=message),),
        )
        image_id = await session.put_blob(encode_config(image))
        return session.register(image_id, image, [record], names=[name] if name else [])


class _PlainSink:
    """Writes a stream, decompressed, into a spool file."""

    def __init__(self, file: SpoolFile) -> None:
        self._file = file
        self._inflater = Inflater()

    def feed(self, data: bytes) -> None:
        for piece in self._inflater.feed(data):
            self._file.write(piece)

    def finish(self) -> Spooled:
        for piece in self._inflater.finish():
            self._file.write(piece)
        return self._file.finish()

    def close(self) -> None:
        self._file.abort()


async def _pump(store: ImageStore, stream: AsyncIterator[bytes], sink: _Sink) -> None:
    """Feed the stream to a sink in worker threads, in pieces large enough to be worth the hop."""
    batch: list[bytes] = []
    size = 0
    async for data in stream:
        batch.append(data)
        size += len(data)
        if size >= BATCH_BYTES:
            await store.in_thread(sink.feed, b"".join(batch))
            batch, size = [], 0
    if batch:
        await store.in_thread(sink.feed, b"".join(batch))


async def _store_image(session: Session, image: ArchivedImage, on_progress: Progress) -> list[LayerRecord]:
    """Keep an image's blobs and layers; layers side by side, as many as the layer store likes."""
    await session.keep(image.config_file)
    if image.manifest is not None:
        await session.keep(image.manifest)
    pairs = list(zip(image.config.diff_ids, image.layers, strict=True))
    failures: list[EngineError] = []

    async def store_layer(diff_id: Digest, spooled: Spooled) -> None:
        try:
            await session.keep(spooled)
            is_new = not session.has_layer(diff_id)
            if is_new:
                on_progress(_layer_progress(diff_id, 0, spooled.size))
            await session.add_layer(spooled.digest, diff_id)
            if is_new:
                on_progress(_layer_progress(diff_id, spooled.size, spooled.size))
        except EngineError as error:
            failures.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for diff_id, spooled in dict(pairs).items():
            group.start_soon(store_layer, diff_id, spooled)
    if failures:
        raise failures[0]
    return [LayerRecord(diff_id=diff_id, blob=dict(pairs)[diff_id].digest) for diff_id, _ in pairs]


def _register(session: Session, image: ArchivedImage, layers: Sequence[LayerRecord]) -> Loaded:
    registered = session.register(
        image.config_file.digest,
        image.config,
        layers,
        names=image.names,
        manifest=image.manifest.digest if image.manifest else None,
    )
    return Loaded(image=registered, names=image.names)


def _announce_moved_names(store: ImageStore, images: Sequence[ArchivedImage], on_progress: Progress) -> None:
    for image in images:
        for name in image.names:
            holder = store.catalog.find_name(name)
            if holder is not None and holder.image.id != image.config_file.digest:
                text = (
                    f"The image {name.familiar} already exists, renaming the old one with ID "
                    f"{holder.image.id} to empty string\n"
                )
                on_progress({"stream": text})


def _layer_progress(diff_id: Digest, current: int, total: int) -> Mapping[str, object]:
    return {
        "status": "Loading layer",
        "id": short(diff_id),
        "progressDetail": {"current": current, "total": total},
    }

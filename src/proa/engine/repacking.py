# SPDX-License-Identifier: Apache-2.0
"""Layers in a form that registries take: as they came with gzip or zstd, else packed with gzip.

The same layer packs to the same bytes each time, so that a second push finds them there.

Source: distribution, manifest-v2-2.md, media types; RFC 1952; RFC 8878.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from proa.distribution.manifests import DOCKER_LAYER
from proa.image.catalog import LayerRecord
from proa.image.compression import Inflater
from proa.image.store import ImageStore, Session
from proa.model.ids import Digest
from proa.model.registry import Descriptor

READ_BYTES = 1024 * 1024
_DOCKER_LAYER_ZSTD = "application/vnd.docker.image.rootfs.diff.tar.zstd"
_MEDIA_TYPES = ((b"\x1f\x8b", DOCKER_LAYER), (b"\x28\xb5\x2f\xfd", _DOCKER_LAYER_ZSTD))
_GZIP = 31  # zlib's word for 32 KiB of window and a gzip header, which has no time in it


def packed_already(store: ImageStore, record: LayerRecord) -> Descriptor | None:
    """Return what to push of a layer whose blob can go as it is; None when it must be packed."""
    with store.content.path(record.blob).open("rb") as file:
        start = file.read(4)
    for magic, media_type in _MEDIA_TYPES:
        if start.startswith(magic):
            return Descriptor(media_type=media_type, digest=record.blob, size=store.content.size(record.blob))
    return None


async def pack(store: ImageStore, session: Session, record: LayerRecord) -> Descriptor:
    """Pack a layer; the blob lasts as long as the session."""
    async with store.open_spool() as spool:
        packer = _Packer()
        output = spool.create()
        try:
            with store.content.path(record.blob).open("rb") as source:
                while data := await store.in_thread(source.read, READ_BYTES):
                    output.write(await store.in_thread(packer.feed, data))
            output.write(await store.in_thread(packer.finish))
            spooled = await store.in_thread(output.finish)
        finally:
            output.abort()
        digest: Digest = await session.keep(spooled)
    return Descriptor(media_type=DOCKER_LAYER, digest=digest, size=spooled.size)


class _Packer:
    """Turns a stream, plain or of another compression, into gzip."""

    def __init__(self) -> None:
        self._inflater = Inflater()
        self._deflater = zlib.compressobj(wbits=_GZIP)

    def feed(self, data: bytes) -> bytes:
        return self._deflate(self._inflater.feed(data))

    def finish(self) -> bytes:
        return self._deflate(self._inflater.finish()) + self._deflater.flush()

    def _deflate(self, pieces: Iterator[bytes]) -> bytes:
        return b"".join([self._deflater.compress(piece) for piece in pieces])

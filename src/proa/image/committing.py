# SPDX-License-Identifier: Apache-2.0
"""Makes an image from another one and a layer on top: what commit does. Source: Engine API, ImageCommit."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from proa.image.catalog import Entry, LayerRecord
from proa.image.config import MAX_LAYERS, ImageConfig, encode_config
from proa.image.content import Spooled
from proa.image.platform import Platform
from proa.image.reference import Reference
from proa.image.store import ImageStore
from proa.model.config import ContainerConfig
from proa.model.errors import InvalidParameter
from proa.model.ids import Digest
from proa.model.image import HistoryEntry, Image


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTar:
    """A layer's tar that has been written. ``is_empty`` when it changes nothing."""

    diff_id: Digest
    size_bytes: int
    is_empty: bool


WriteLayer = Callable[[int], Awaitable[LayerTar]]
"""Writes the layer's tar to a descriptor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRequest:
    """``base`` is the image below, of which the new one is a child; ``repository`` "" gives it no name."""

    base: Digest
    config: ContainerConfig
    repository: str = ""
    tag: str = ""
    author: str = ""
    comment: str = ""
    created_by: str = ""


async def commit_layer(
    store: ImageStore, base: Entry, request: CommitRequest, name: Reference | None, write: WriteLayer
) -> Image:
    """Store the layer and register the image. On failure, and after a kill, nothing of it stays.

    Raises what ``write`` raises; InvalidParameter when the layer exceeds a limit.
    """
    async with store.open_spool() as spool, store.open_session() as session:
        await session.pin(base)
        layers = list(base.layers)
        path, out = spool.open_file()
        try:
            tar = await write(out)
        finally:
            os.close(out)
        if not tar.is_empty:
            spooled = Spooled(path=path, digest=tar.diff_id, size=tar.size_bytes)
            layers.append(await session.add_layer(await session.keep(spooled), tar.diff_id))
        if len(layers) > MAX_LAYERS:
            raise InvalidParameter(f"max depth exceeded: an image has at most {MAX_LAYERS} layers")
        config = _configure(base.image, request, layers, is_empty=tar.is_empty)
        image_id = await session.put_blob(encode_config(config))
        parent = base.image.id if store.catalog.find_id(base.image.id) is not None else ""
        return session.register(image_id, config, layers, names=[name] if name else [], parent=parent)


def _configure(
    base: Image, request: CommitRequest, layers: Sequence[LayerRecord], *, is_empty: bool
) -> ImageConfig:
    now_ns = time.time_ns()
    moment = datetime.fromtimestamp(now_ns // 1_000_000_000, UTC)
    created = f"{moment:%Y-%m-%dT%H:%M:%S}.{now_ns % 1_000_000_000:09d}Z"
    step = HistoryEntry(
        created=created,
        created_by=request.created_by,
        author=request.author,
        comment=request.comment,
        empty_layer=is_empty,
    )
    return ImageConfig(
        diff_ids=tuple(layer.diff_id for layer in layers),
        config=request.config,
        platform=Platform(os=base.os, architecture=base.architecture, variant=base.variant),
        created=created,
        author=request.author,
        comment=request.comment,
        history=(*base.history, step),
    )

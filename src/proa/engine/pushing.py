# SPDX-License-Identifier: Apache-2.0
"""Pushing images to registries.

An image goes out under the manifest it came with, so that its digest stays the same, when all of its blobs
are here or the registry has them; else under a new one. A blob is sent only when the registry neither has
it in the repository nor can take it over from another one.

Source: Engine API, ImagePush; Docker Engine 28, distribution/push_v2.go, whose messages are kept.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from proa.distribution.errors import RegistryFailed
from proa.distribution.manifests import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    Manifest,
    encode_manifest,
    is_foreign,
    parse_manifest,
)
from proa.distribution.registries import Registries
from proa.engine.events import EventBus
from proa.engine.progress import OnProgress, Reporter
from proa.engine.repacking import pack, packed_already
from proa.image.catalog import Entry
from proa.image.config import CONFIG_MAX_BYTES
from proa.image.content import digest_of
from proa.image.images import Images
from proa.image.platform import Platform, parse_platform
from proa.image.reference import Reference, parse_reference
from proa.image.store import Session
from proa.model.errors import EngineError, InvalidParameter, NotFound
from proa.model.ids import Digest, short
from proa.model.registry import Credentials, Descriptor

if TYPE_CHECKING:
    from proa.distribution.repository import Repository

CONCURRENT = 5  # dockerd's --max-concurrent-uploads
PIECE_BYTES = 256 * 1024


class _Missing(Exception):
    """A blob of the manifest is neither here nor there: another manifest must do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Push:
    """One tag on its way."""

    target: Reference
    entry: Entry
    repository: Repository
    reporter: Reporter
    session: Session


class Pushing:
    """The use case, for all pushes of the daemon."""

    def __init__(self, *, images: Images, registries: Registries, events: EventBus) -> None:
        self._images = images
        self._registries = registries
        self._events = events
        self._limiter: anyio.CapacityLimiter | None = None

    async def push(
        self, name: str, tag: str, *, platform: str, credentials: Credentials, on_progress: OnProgress
    ) -> None:
        """Send ``name:tag``; all tags of the repository when there is no tag.

        :raises NotFound: no such name is here.
        :raises InvalidParameter: the name is wrong, or has a digest.
        :raises RegistryFailed: the registry refuses, cannot be reached or does not keep to the protocol.
        """
        reference = parse_reference(name)
        if reference.digest:
            raise InvalidParameter("cannot push a digest reference")
        if tag:
            reference = reference.with_tag(tag)
        reporter = Reporter(on_progress)
        reporter.say(f"The push refers to repository [{reference.name}]")
        targets = self._targets(reference, platform)
        async with self._registries.open(
            reference.domain, reference.path, credentials, push=True
        ) as repositories:
            for target, entry in targets:
                async with self._images.store.open_session() as session:
                    await session.pin(entry)
                    push = _Push(
                        target=target,
                        entry=entry,
                        repository=repositories[0],
                        reporter=reporter,
                        session=session,
                    )
                    await self._push_one(push)

    def _targets(self, reference: Reference, platform: str) -> Sequence[tuple[Reference, Entry]]:
        held = self._images.store.catalog.with_repository(reference.name)
        if not held:
            raise NotFound(f"An image does not exist locally with the tag: {reference.familiar_name}")
        if reference.tag:
            held = [(name, entry) for name, entry in held if name.tag == reference.tag]
        if not held:
            raise NotFound(f"tag does not exist: {reference.familiar}")
        wanted = parse_platform(platform)
        for name, entry in held if platform else ():
            image = entry.image
            actual = Platform(os=image.os, architecture=image.architecture, variant=image.variant)
            if not wanted.rank(actual):
                raise NotFound(
                    f"image with reference {name.familiar} was found but its platform ({actual}) does not "
                    f"match the specified platform ({wanted})"
                )
        return held

    async def _push_one(self, push: _Push) -> None:
        for record in reversed(push.entry.layers):
            push.reporter.layer(short(record.diff_id), "Preparing")
        manifest, data = None, b""
        for candidate in await self._known_manifests(push.entry):
            manifest, data = candidate
            try:
                await self._push_layers(push, manifest.layers)
                break
            except _Missing:
                manifest = None
        if manifest is None:
            layers = await self._pack_layers(push)
            await self._push_layers(push, layers)
            size = self._images.store.content.size(push.entry.image.id)
            config = Descriptor(media_type=DOCKER_CONFIG, digest=push.entry.image.id, size=size)
            data = encode_manifest(config, layers)
            manifest = Manifest(media_type=DOCKER_MANIFEST, config=config, layers=tuple(layers))
        if not await push.repository.has_blob(push.entry.image.id):
            await self._upload(push, manifest.config)
        await push.repository.put_manifest(push.target.tag, manifest.media_type, data)
        self._record(push, manifest, digest_of(data), len(data))

    def _record(self, push: _Push, manifest: Manifest, digest: Digest, size: int) -> None:
        target = push.target
        self._images.add_names(push.entry.image.id, [target.with_digest(digest)])
        seen = [
            (record.diff_id, layer.digest, layer.size)
            for record, layer in zip(push.entry.layers, manifest.layers, strict=True)
        ]
        self._images.sources.remember(target.name, seen)
        push.reporter.say(f"{target.tag}: digest: {digest} size: {size}")
        push.reporter.aux({"Tag": target.tag, "Digest": digest, "Size": size})
        self._events.publish("image", "push", target.familiar, {"name": target.familiar_name})

    async def _known_manifests(self, entry: Entry) -> list[tuple[Manifest, bytes]]:
        """The manifest whose blobs are here, then one by which a registry is known to have the image."""
        texts: list[bytes] = []
        if entry.manifest is not None:
            content = self._images.store.content
            texts.append(await self._images.store.in_thread(content.read, entry.manifest, CONFIG_MAX_BYTES))
        noted = self._images.sources.manifest_of(entry.image.id)
        texts += [noted] if noted else []
        found: list[tuple[Manifest, bytes]] = []
        for data in texts:
            try:
                manifest = parse_manifest(data, "")
            except RegistryFailed:
                continue  # one of an archive, with layers of a kind that no registry takes
            if isinstance(manifest, Manifest) and len(manifest.layers) == len(entry.layers):
                found.append((manifest, data))
        return found

    # --- layers ---

    async def _push_layers(self, push: _Push, layers: Sequence[Descriptor]) -> None:
        """Have all layers in the repository, several at a time. Raises _Missing."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(CONCURRENT)
        limiter = self._limiter
        failures: list[EngineError | _Missing] = []

        async def bring(diff_id: Digest, layer: Descriptor) -> None:
            try:
                if limiter.available_tokens < 1:
                    push.reporter.layer(short(diff_id), "Waiting")
                async with limiter:
                    await self._push_layer(push, diff_id, layer)
            except (EngineError, _Missing) as error:
                failures.append(error)
                group.cancel_scope.cancel()

        pairs = {record.diff_id: layer for record, layer in zip(push.entry.layers, layers, strict=True)}
        async with anyio.create_task_group() as group:
            for diff_id, layer in reversed(pairs.items()):
                group.start_soon(bring, diff_id, layer)
        if failures:
            raise failures[0]

    async def _push_layer(self, push: _Push, diff_id: Digest, layer: Descriptor) -> None:
        reporter, repository = push.reporter, push.repository
        if is_foreign(layer):
            reporter.layer(short(diff_id), "Skipped foreign layer")
            return
        if await repository.has_blob(layer.digest):
            reporter.layer(short(diff_id), "Layer already exists")
            return
        for path in self._images.sources.paths_of(layer.digest, push.target.domain):
            if path != push.target.path and await repository.mount_blob(layer.digest, path):
                reporter.layer(short(diff_id), f"Mounted from {path}")
                return
        if not await push.session.hold_blob(layer.digest):
            raise _Missing
        await self._upload(push, layer, diff_id)
        reporter.layer(short(diff_id), "Pushed")

    async def _pack_layers(self, push: _Push) -> list[Descriptor]:
        """Make the layers fit for a registry: pack those that came uncompressed, unless it has them."""
        packed: dict[Digest, Descriptor] = {}
        for record in push.entry.layers:
            if record.diff_id in packed:
                continue
            packed[record.diff_id] = (
                packed_already(self._images.store, record)
                or await self._pushed_before(push, record.diff_id)
                or await pack(self._images.store, push.session, record)
            )
        return [packed[record.diff_id] for record in push.entry.layers]

    async def _pushed_before(self, push: _Push, diff_id: Digest) -> Descriptor | None:
        """A layer as the repository has got it, or gets it now from another repository of its registry."""
        sources, repository = self._images.sources, push.repository
        for blob, size in sources.blobs_of(diff_id, push.target.domain):
            layer = Descriptor(media_type=DOCKER_LAYER, digest=blob, size=size)
            if await repository.has_blob(blob):
                return layer
            for path in sources.paths_of(blob, push.target.domain):
                if path != push.target.path and await repository.mount_blob(blob, path):
                    return layer
        return None

    async def _upload(self, push: _Push, blob: Descriptor, diff_id: Digest | None = None) -> None:
        """Send a blob that is here; begin again when the way breaks."""
        timings = self._registries.timings
        pause_s = timings.pause_s
        for left in range(timings.tries - 1, -1, -1):
            try:
                await push.repository.upload_blob(
                    blob.digest, blob.size, lambda: self._pieces(push, blob, diff_id)
                )
                return
            except RegistryFailed as error:
                if not error.is_passing or not left:
                    raise
            if diff_id:
                push.reporter.layer(short(diff_id), f"Retrying in {pause_s:g} seconds")
            await anyio.sleep(pause_s)
            pause_s *= 2

    async def _pieces(self, push: _Push, blob: Descriptor, diff_id: Digest | None) -> AsyncIterator[bytes]:
        store = self._images.store
        sent = 0
        with store.content.path(blob.digest).open("rb") as file:
            while piece := await store.in_thread(file.read, PIECE_BYTES):
                yield piece
                sent += len(piece)
                if diff_id:
                    push.reporter.amount(short(diff_id), "Pushing", sent, blob.size)

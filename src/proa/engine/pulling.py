# SPDX-License-Identifier: Apache-2.0
"""Pulling images from registries.

An image is registered when all of it is here, verified; a pull that fails or is cancelled before leaves no
image, but the bytes that came, for the next one.

Source: Engine API, ImageCreate; Docker Engine 28, distribution/pull_v2.go, whose messages are kept.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import anyio

from proa.distribution.errors import Refused, RegistryFailed
from proa.distribution.manifests import Index, Manifest, parse_manifest
from proa.distribution.registries import Registries
from proa.engine.downloads import Downloads
from proa.engine.events import EventBus
from proa.engine.progress import OnProgress, Reporter
from proa.image.catalog import Entry, LayerRecord
from proa.image.config import CONFIG_MAX_BYTES, ImageConfig, parse_config
from proa.image.content import digest_of
from proa.image.images import Images
from proa.image.platform import Platform, parse_platform
from proa.image.reference import Reference, parse_reference
from proa.image.store import Session
from proa.model.errors import EngineError, InvalidParameter, NotFound
from proa.model.ids import Digest, short
from proa.model.image import Image
from proa.model.registry import Credentials, Descriptor

if TYPE_CHECKING:
    from proa.distribution.repository import Fetched, Repository

_log = logging.getLogger(__name__)

INDEX_DEPTH = 2  # an index in an index is allowed; nobody needs more


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What a name leads to. ``digest`` is that of the manifest or index itself: the one users see."""

    repository: Repository
    digest: Digest
    manifest: Manifest
    data: bytes


class Pulling:
    """The use case, for all pulls of the daemon."""

    def __init__(
        self, *, images: Images, registries: Registries, downloads: Downloads, events: EventBus
    ) -> None:
        self._images = images
        self._registries = registries
        self._downloads = downloads
        self._events = events

    async def pull(
        self, name: str, tag: str, *, platform: str, credentials: Credentials, on_progress: OnProgress
    ) -> None:
        """Bring in ``name:tag`` (or name@digest); all tags of the repository when there is no tag.

        ``on_progress`` is first called when the registry has answered: an error before that is the request's.

        :param platform: "linux/arm64/v8", "" for the host's.
        :raises NotFound: there is no such image, or none for the platform, or it may not be seen.
        :raises RegistryFailed: the registry cannot be reached or does not keep to the protocol.
        :raises InvalidParameter: a name is wrong, or what came is no image.
        """
        reference = parse_target(name, tag)
        wanted = parse_platform(platform)
        if wanted.os != "linux":
            raise InvalidParameter(f"operating system is not supported: {wanted.os}")
        reporter = Reporter(on_progress)
        async with self._registries.open(reference.domain, reference.path, credentials) as repositories:
            targets = [reference]
            if not reference.tag and not reference.digest:
                targets = [reference.with_tag(one) for one in await _list_tags(repositories, reference)]
            for target in targets:
                await self._pull_one(repositories, target, wanted, reporter, is_asked=bool(platform))
        await self._images.prune_partials()

    async def _pull_one(
        self,
        repositories: Sequence[Repository],
        target: Reference,
        platform: Platform,
        reporter: Reporter,
        *,
        is_asked: bool,
    ) -> None:
        known = self._images.find(target)
        digest, image = await self._try_each(repositories, target, platform, reporter)
        reporter.say(f"Digest: {digest}")
        is_new = known is None or known.id != image.id
        news = "Downloaded newer image" if is_new else "Image is up to date"
        reporter.say(f"Status: {news} for {target.familiar}")
        actual = Platform(os=image.os, architecture=image.architecture, variant=image.variant)
        if is_asked and not platform.rank(actual):
            reporter.say(
                f"WARNING: image with reference {target.familiar} was found but its platform ({actual}) does "
                f"not match the specified platform ({platform})"
            )
        self._events.publish("image", "pull", target.familiar, {"name": target.familiar_name})

    async def _try_each(
        self, repositories: Sequence[Repository], target: Reference, platform: Platform, reporter: Reporter
    ) -> tuple[Digest, Image]:
        """Ask each server until one gives the image. Raises the last one's error."""
        failure: EngineError
        for left, repository in zip(range(len(repositories))[::-1], repositories, strict=True):
            try:
                found = await _find(repository, target, platform)
                reporter.say(f"Pulling from {target.path}", id=target.digest or target.tag)
                async with self._images.store.open_session() as session:
                    return found.digest, await self._bring_in(session, found, target, reporter)
            except (RegistryFailed, NotFound) as error:
                failure = error
                if left:
                    _log.info("%s cannot be pulled from %s: %s", target, repository.url, error.message)
        raise failure

    async def _bring_in(
        self, session: Session, found: _Found, target: Reference, reporter: Reporter
    ) -> Image:
        names = [target.with_digest(found.digest)]
        if target.tag and not target.digest:
            names.append(target)
        descriptor = found.manifest.config
        known = self._images.store.catalog.find_id(descriptor.digest)
        if known is not None:
            await self._note_manifest(session, known, found)
        if self._images.store.catalog.find_id(descriptor.digest) is not None:  # not removed meanwhile
            image = self._images.add_names(descriptor.digest, names)
            self._remember(target, image.layers, found.manifest.layers)
            return image
        config_data = await found.repository.get_document(
            descriptor.digest, descriptor.size, CONFIG_MAX_BYTES
        )
        config = parse_config(config_data)
        if len(config.diff_ids) != len(found.manifest.layers):
            raise InvalidParameter("layers from manifest don't match image configuration")
        records = await self._layers(session, found, config, reporter)
        await session.put_blob(config_data)
        if _is_made_of(found.manifest, records):
            manifest = await session.put_blob(found.data)
        else:
            manifest = None
            self._images.sources.remember_manifest(descriptor.digest, found.data)
        image = session.register(descriptor.digest, config, records, names=names, manifest=manifest)
        self._remember(target, config.diff_ids, found.manifest.layers)
        content = self._images.store.content
        for layer in found.manifest.layers:
            await self._images.store.in_thread(content.partials.drop, layer.digest)
        return image

    async def _layers(
        self, session: Session, found: _Found, config: ImageConfig, reporter: Reporter
    ) -> list[LayerRecord]:
        """Have all layers stored, several at a time; return them lowest first."""
        records: dict[Digest, LayerRecord] = {}
        missing: dict[Digest, Descriptor] = {}
        for diff_id, layer in zip(config.diff_ids, found.manifest.layers, strict=True):
            record = await session.hold_layer(diff_id)
            if record is not None:
                records[diff_id] = record
                reporter.layer(short(layer.digest), "Already exists")
            elif diff_id not in missing:
                missing[diff_id] = layer
                reporter.layer(short(layer.digest), "Pulling fs layer")
        failures: list[EngineError] = []

        async def bring(diff_id: Digest, layer: Descriptor) -> None:
            try:
                await self._downloads.fetch(session, found.repository, layer, reporter)
                told = partial(reporter.amount, short(layer.digest), "Extracting", total=layer.size)
                told(0)
                records[diff_id] = await session.add_layer(layer.digest, diff_id, told)
                told(layer.size)
                reporter.layer(short(layer.digest), "Pull complete")
            except EngineError as error:
                failures.append(error)
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for diff_id, layer in missing.items():
                group.start_soon(bring, diff_id, layer)
        if failures:
            raise failures[0]
        return [records[diff_id] for diff_id in config.diff_ids]

    async def _note_manifest(self, session: Session, known: Entry, found: _Found) -> None:
        """Keep the manifest of an image that was here, so that a push gives it the same digest."""
        await session.pin(known)
        catalog = self._images.store.catalog
        if known.manifest is None and _is_made_of(found.manifest, known.layers):
            manifest = await session.put_blob(found.data)
            if catalog.find_id(known.image.id) is not None:  # not removed meanwhile
                catalog.note_manifest(known.image.id, manifest)
        elif known.manifest != digest_of(found.data):
            self._images.sources.remember_manifest(known.image.id, found.data)

    def _remember(self, target: Reference, diff_ids: Sequence[Digest], layers: Sequence[Descriptor]) -> None:
        seen = [(diff_id, layer.digest, layer.size) for diff_id, layer in zip(diff_ids, layers, strict=False)]
        self._images.sources.remember(target.name, seen)


def _is_made_of(manifest: Manifest, records: Sequence[LayerRecord]) -> bool:
    """Whether the manifest speaks of the very blobs that are here."""
    return [layer.digest for layer in manifest.layers] == [record.blob for record in records]


def parse_target(name: str, tag: str) -> Reference:
    """Read what a request names: a repository and a tag or digest, which may also be part of the name."""
    reference = parse_reference(name)
    if tag.startswith("sha256:"):
        return parse_reference(f"{name}@{tag}")
    return reference.with_tag(tag) if tag else reference


async def _find(repository: Repository, target: Reference, platform: Platform) -> _Found:
    """Ask one server. Raises NotFound in Docker's words; RegistryFailed."""
    try:
        top = await repository.get_manifest(target.digest or target.tag)
        manifest, data = await _choose(repository, top, platform)
    except RegistryFailed as error:
        raise explain(error, target) from error
    return _Found(repository=repository, digest=top.digest, manifest=manifest, data=data)


async def _choose(repository: Repository, top: Fetched, platform: Platform) -> tuple[Manifest, bytes]:
    """Follow indexes to the manifest that fits the platform best."""
    fetched = top
    for _ in range(INDEX_DEPTH + 1):
        document = parse_manifest(fetched.data, fetched.media_type)
        if isinstance(document, Manifest):
            return document, fetched.data
        fetched = await repository.get_manifest(_best(document, platform).digest)
    raise RegistryFailed("the image index contains indexes that go too deep")


def _best(index: Index, platform: Platform) -> Descriptor:
    if len(index.entries) == 1 and index.entries[0].platform is None:
        return index.entries[0]

    def rank(entry: Descriptor) -> int:
        if entry.platform is None:
            return 0
        os, architecture, variant = entry.platform
        return platform.rank(Platform(os=os, architecture=architecture, variant=variant))

    best = max(index.entries, key=rank, default=None)
    if best is None or not rank(best):
        raise NotFound(f"no matching manifest for {platform} in the manifest list entries")
    return best


async def _list_tags(repositories: Sequence[Repository], target: Reference) -> Sequence[str]:
    for repository in repositories:
        try:
            return await repository.list_tags()
        except RegistryFailed as error:
            failure = error
    raise explain(failure, target) from failure


def explain(error: RegistryFailed, target: Reference) -> EngineError:
    """Return a registry's refusal as Docker tells it; docker-py knows a missing image by these words."""
    if not isinstance(error, Refused):
        return error
    refusal = error.refusal
    if refusal.status == 404 and refusal.code != "name unknown":
        return NotFound(f"manifest for {target.familiar} not found: {refusal}")
    if refusal.status in (401, 403, 404):
        return NotFound(
            f"pull access denied for {target.familiar_name}, repository does not exist or may require "
            f"'docker login': {refusal}"
        )
    return error

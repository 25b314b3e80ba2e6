# SPDX-License-Identifier: Apache-2.0
"""The images of this engine: the one face of this package that the engine sees.

Looks up, lists, loads, saves, imports, tags, removes, prunes. Nothing of the registry protocol, of builds
or of containers is here: pulls and pushes are made by the engine on ``store`` and ``sources``; which
containers use an image is asked from the caller.

Source: Engine API, Image.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from proa.host.database import Database
from proa.image.archive_writer import SavedImage, plan_archive, write_archive
from proa.image.catalog import Entry
from proa.image.changes import apply_changes
from proa.image.committing import CommitRequest, WriteLayer, commit_layer
from proa.image.config import created_ns
from proa.image.filters import (
    PRUNE_FILTERS,
    Filters,
    check_filters,
    fits_label,
    fits_until,
    is_dangling,
    parse_dangling,
    select,
)
from proa.image.layer_store import LayerStore
from proa.image.loading import Progress, import_root, load_archive
from proa.image.partials import KEPT_S
from proa.image.platform import parse_platform
from proa.image.reference import Reference, parse_any, parse_name
from proa.image.removal import Remover, UsedBy
from proa.image.sources import BlobSources
from proa.image.store import ImageStore
from proa.model.config import ContainerConfig
from proa.model.errors import Conflict, DataLoss, InvalidParameter
from proa.model.ids import Digest
from proa.model.image import Image

Events = Callable[[str, str, dict[str, str]], None]
"""Told of action, image id and attributes (name, and the image's labels)."""

MISSING = "<missing>"  # the id of a step whose image is not here


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesUsage:
    """What images take.

    :ivar layers_bytes: all layers, uncompressed, each once.
    :ivar disk_bytes: what layers and blobs occupy.
    :ivar images: each with the bytes of it that other images have too.
    """

    layers_bytes: int
    disk_bytes: int
    images: tuple[tuple[Image, int], ...]


class Images:
    """All images below ``root`` (the data root), with their layers in ``layers``. ``open`` comes first."""

    def __init__(self, *, db: Database, root: Path, layers: LayerStore, events: Events | None = None) -> None:
        self.store = ImageStore(db=db, root=root, layers=layers)
        self.sources = BlobSources(db)
        self._catalog = self.store.catalog
        self._events = events

    async def open(self) -> None:
        """Read what there is, and clear what a crash left half-done."""
        await self.store.open()

    # --- looking up ---

    def get(self, ref: str) -> Image:
        """Return an image by name, name@digest, id or unique id prefix.

        Raises NoSuchImage; InvalidParameter when the text is no reference or the prefix fits several.
        """
        return self._catalog.get(ref).image

    def find(self, name: Reference) -> Image | None:
        """Return the image that has exactly this name, with its tag or digest."""
        entry = self._catalog.find_name(name)
        return None if entry is None else entry.image

    def list(self, *, all: bool = False, filters: Filters | None = None) -> Sequence[Image]:
        """Return the images that fit, newest first. Without ``all``, not those that only children need.

        Raises InvalidParameter; NoSuchImage when a filter names an image that is not here.
        """
        images = select(self._catalog, filters or {}, time.time_ns())
        if not all:
            parents = {entry.image.parent for entry in self._catalog}
            images = [
                image for image in images if image.references or image.repo_digests or image.id not in parents
            ]
        return sorted(images, key=lambda image: created_ns(image.created), reverse=True)

    def history(self, ref: str) -> Sequence[Mapping[str, object]]:
        """Return what made the image, newest step first, in the API's words.

        Source: Engine API, ImageHistory. Raises NoSuchImage, InvalidParameter.
        """
        image = self.get(ref)
        sizes = iter([image.layer_sizes[diff_id] for diff_id in image.layers])
        steps: list[dict[str, object]] = [
            {
                "Id": MISSING,
                "Created": created_ns(step.created) // 1_000_000_000,
                "CreatedBy": step.created_by,
                "Tags": None,
                "Size": 0 if step.empty_layer else next(sizes, 0),
                "Comment": step.comment,
            }
            for step in image.history
        ]
        steps.reverse()
        ancestor: Entry | None = self._catalog.find_id(image.id)
        for step in steps:  # of an image built here, the ancestors are known
            if ancestor is None:
                break
            step["Id"] = ancestor.image.id
            step["Tags"] = list(ancestor.image.references) or None
            ancestor = self._catalog.find_id(Digest(ancestor.image.parent))
        return steps

    async def disk_usage(self) -> ImagesUsage:
        """Measure what images take."""
        entries = list(self._catalog)
        users: dict[Digest, int] = {}
        for entry in entries:
            for diff_id in set(entry.image.layers):
                users[diff_id] = users.get(diff_id, 0) + 1
        layers = self._catalog.layer_sizes()
        blobs = set().union(*(entry.blobs for entry in entries))
        blob_bytes = sum(self.store.content.size(digest) for digest in blobs)
        return ImagesUsage(
            layers_bytes=sum(size for size, _ in layers.values()),
            disk_bytes=blob_bytes + sum(disk for _, disk in layers.values()),
            images=tuple((entry.image, _shared_bytes(entry.image, users)) for entry in entries),
        )

    # --- in and out ---

    async def load(self, stream: AsyncIterator[bytes], *, on_progress: Progress) -> Sequence[str]:
        """Take in an archive of images; return the lines that docker load prints.

        Raises InvalidParameter when it is broken; nothing was taken in then.
        """
        lines: list[str] = []
        for loaded in await load_archive(self.store, stream, on_progress):
            self._publish("load", loaded.image)
            lines += [f"Loaded image: {name.familiar}" for name in loaded.names] or [
                f"Loaded image ID: {loaded.image.id}"
            ]
        return lines

    def save(self, refs: Sequence[str]) -> AsyncIterator[bytes]:
        """Return an archive of these images, piece by piece. A repository without a tag means all its tags.

        Raises NoSuchImage, InvalidParameter at once, before anything is read.
        """
        return self._save(self._to_save(refs))

    async def import_(
        self,
        stream: AsyncIterator[bytes],
        *,
        repository: str = "",
        tag: str = "",
        message: str = "",
        changes: Sequence[str] = (),
        platform: str = "",
    ) -> Digest:
        """Make an image of one layer from a root file system's tar; return its id.

        :param changes: Dockerfile instructions, see ``changes``.
        :raises InvalidParameter: a name, an instruction or the tar is wrong; nothing was made.
        """
        name = parse_name(repository, tag) if repository else None
        target = parse_platform(platform)
        if target.os != "linux":
            raise InvalidParameter(f"operating system is not supported: {target.os}")
        image = await import_root(
            self.store,
            stream,
            name=name,
            message=message or "Imported from -",
            config=apply_changes(ContainerConfig(), changes),
            platform=target,
        )
        if name is not None:
            self._publish("tag", image, name=name.familiar)
        self._publish("import", image)
        return image.id

    def apply_changes(self, config: ContainerConfig, changes: Sequence[str]) -> ContainerConfig:
        """Return a configuration after Dockerfile instructions, see ``changes``. Raises InvalidParameter."""
        return apply_changes(config, changes)

    async def commit(self, request: CommitRequest, write_layer: WriteLayer) -> tuple[Digest, str]:
        """Make an image from another one and a layer on top; return its id and its name ("" without one).

        The image below may be one that only containers still use.

        :raises InvalidParameter: the name is wrong, before anything is done.
        :raises DataLoss: the image below is gone.
        """
        name = parse_name(request.repository, request.tag) if request.repository else None
        base = next((one for one in self._catalog.with_hidden() if one.image.id == request.base), None)
        if base is None:
            raise DataLoss(f"image {request.base} is missing")
        image = await commit_layer(self.store, base, request, name, write_layer)
        if name is None:
            return image.id, ""
        self._publish("tag", image, name=name.familiar)
        return image.id, name.familiar

    # --- names ---

    async def tag(self, source: str, repository: str, tag: str = "") -> None:
        """Give an image another name, taking it from the image that had it.

        Raises NoSuchImage, InvalidParameter.
        """
        name = parse_name(repository, tag)
        entry = self._catalog.get(source)
        self._catalog.assign(name, entry.image.id)
        self._publish("tag", entry.image, name=name.familiar)

    def add_names(self, image_id: Digest, names: Sequence[Reference]) -> Image:
        """Give an image that is here more names, by which a registry has it."""
        for name in names:
            self._catalog.assign(name, image_id)
        return self._catalog.get(image_id).image

    # --- removing ---

    async def remove(
        self, ref: str, *, force: bool = False, prune_children: bool = True, used_by: UsedBy
    ) -> Sequence[Mapping[str, str]]:
        """Remove a name, and the image with its last one; return ``Untagged`` and ``Deleted`` entries.

        A stopped container that uses a removed image keeps its layers until ``release``.

        :param prune_children: remove its unnamed, unused ancestors too.
        :raises NoSuchImage, Conflict: nothing was removed.
        """
        remover = Remover(self.store, used_by, lambda action, entry: self._publish(action, entry.image))
        await remover.remove(ref, force=force, prune_parents=prune_children)
        return remover.removed.records

    async def prune(self, filters: Filters, *, used_by: UsedBy) -> tuple[Sequence[Mapping[str, str]], int]:
        """Remove images without a name, or with ``dangling=false`` all that no container uses.

        Returns what ``remove`` returns, and the bytes of the layers removed. Raises InvalidParameter.
        """
        check_filters(filters, PRUNE_FILTERS)
        only_dangling = parse_dangling(filters) is not False
        tests = [fits_label(filters), fits_until(filters, time.time_ns())]
        remover = Remover(self.store, used_by, lambda action, entry: self._publish(action, entry.image))
        for entry in list(self._catalog):
            if (only_dangling and not is_dangling(entry)) or used_by(entry.image.id):
                continue
            if self._catalog.children(entry.image.id) or not all(test(entry) for test in tests):
                continue
            for ref in [name.familiar for name in entry.names] or [entry.image.id]:
                if self._catalog.find_id(entry.image.id) is None:
                    break  # its last tag took the digests along
                try:
                    await remover.remove(ref, force=False, prune_parents=True)
                except Conflict:
                    break  # a container or a child has come meanwhile: it stays
        removed = remover.removed
        removed.freed_bytes += await self.prune_partials(kept_s=0)
        if self._events is not None:
            self._events("prune", "", {"reclaimed": str(removed.freed_bytes)})
        return removed.records, removed.freed_bytes

    async def prune_partials(self, kept_s: float = KEPT_S) -> int:
        """Remove what interrupted pulls left and nobody resumed; return the bytes freed."""
        return await self.store.in_thread(self.store.content.partials.prune, kept_s)

    async def release(self, container_id: str) -> None:
        """A container is gone: free what was kept only for it. Cheap when there is nothing. Idempotent."""
        await self.store.free(self._catalog.release(container_id))

    async def release_all_but(self, container_ids: Collection[str]) -> None:
        """The same for every container that is not among these; for the start of the daemon."""
        await self.store.free(self._catalog.release_all_but(container_ids))

    # --- machinery ---

    def _to_save(self, refs: Sequence[str]) -> Sequence[SavedImage]:
        wanted: dict[Digest, tuple[Entry, dict[Reference, None]]] = {}
        for ref in refs:
            named = parse_any(ref)
            found: list[tuple[Reference | None, Entry]] = []
            if isinstance(named, Reference) and not named.tag and not named.digest:
                found += self._catalog.with_repository(named.name)
            if not found:
                entry = self._catalog.get(ref)
                found = [(named if isinstance(named, Reference) and named in entry.tags else None, entry)]
            for name, entry in found:
                _, names = wanted.setdefault(entry.image.id, (entry, {}))
                if name is not None:
                    names[name] = None
        return [SavedImage(entry=entry, names=tuple(names)) for entry, names in wanted.values()]

    async def _save(self, images: Sequence[SavedImage]) -> AsyncIterator[bytes]:
        async with self.store.open_session() as session:
            for image in images:
                await session.pin(image.entry)
            parts = await self.store.in_thread(plan_archive, images, self.store.content)
            async for piece in write_archive(parts):
                yield piece
        for image in images:
            self._publish("save", image.entry.image)

    def _publish(self, action: str, image: Image, *, name: str = "") -> None:
        if self._events is not None:
            labels: Mapping[str, str] = image.config.labels or {}
            self._events(action, image.id, {**labels, "name": name or image.id})


def _shared_bytes(image: Image, users: Mapping[Digest, int]) -> int:
    return sum(size for diff_id, size in image.layer_sizes.items() if users[Digest(diff_id)] > 1)

# SPDX-License-Identifier: Apache-2.0
"""The image use cases: the store, seen together with the containers that were made from it.

Source: Engine API, Image.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from proa.engine.events import EventBus
from proa.engine.filters import Filters
from proa.engine.registry import Registry
from proa.image.images import Images as ImageStore
from proa.image.images import ImagesUsage
from proa.model.ids import Digest
from proa.model.image import Image
from proa.storage.snapshots import Snapshots

Progress = Callable[[Mapping[str, object]], None]


class Images:
    """Loads, lists, names and removes images."""

    def __init__(
        self, *, store: ImageStore, registry: Registry, events: EventBus, snapshots: Snapshots
    ) -> None:
        self._store = store
        self._snapshots = snapshots
        self._registry = registry
        self._events = events

    def get(self, ref: str) -> Image:
        """Return an image by name, digest, id or unique id prefix. Raises NoSuchImage."""
        return self._store.get(ref)

    async def list(self, *, all: bool, filters: Filters) -> Sequence[Image]:
        """Return the images that fit, newest first."""
        return self._store.list(all=all, filters=filters)

    def history(self, ref: str) -> Sequence[Mapping[str, object]]:
        """Return what made the image, newest step first."""
        return self._store.history(ref)

    async def load(self, stream: AsyncIterator[bytes], *, on_progress: Progress) -> Sequence[str]:
        """Take in an archive; return a line for each image, as docker load prints them."""
        return await self._store.load(stream, on_progress=on_progress)

    def save(self, refs: Sequence[str]) -> AsyncIterator[bytes]:
        """Return an archive of the images, piece by piece. Raises NoSuchImage."""
        return self._store.save(refs)

    async def import_(
        self,
        stream: AsyncIterator[bytes],
        *,
        repository: str,
        tag: str,
        message: str,
        changes: Sequence[str],
        platform: str,
    ) -> Digest:
        """Make an image of a root file system's tar."""
        return await self._store.import_(
            stream, repository=repository, tag=tag, message=message, changes=changes, platform=platform
        )

    async def tag(self, source: str, repository: str, tag: str) -> None:
        """Give an image another name. Raises NoSuchImage, InvalidParameter."""
        await self._store.tag(source, repository, tag)

    async def remove(self, ref: str, *, force: bool, no_prune: bool) -> Sequence[Mapping[str, str]]:
        """Take a name away, and the image with its last one; return Untagged and Deleted entries."""
        return await self._store.remove(ref, force=force, prune_children=not no_prune, used_by=self.users_of)

    async def prune(self, filters: Filters) -> tuple[Sequence[Mapping[str, str]], int]:
        """Remove unused images (dangling ones, unless dangling=false); return entries and bytes freed."""
        return await self._store.prune(filters, used_by=self.users_of)

    async def disk_usage(self) -> ImagesUsage:
        """Measure what images take on disk."""
        return await self._store.disk_usage()

    def users_of(self, image_id: Digest) -> Sequence[tuple[str, bool]]:
        """Return the containers made from an image or that mount it, each with whether it is alive, and the
        snapshots of such containers."""
        containers = [
            (str(container.id), container.is_alive)
            for container in self._registry
            if container.image_id == image_id or any(point.source == image_id for point in container.mounts)
        ]
        return [*containers, *((f"snapshot {name}", False) for name in self._snapshots.of_image(image_id))]

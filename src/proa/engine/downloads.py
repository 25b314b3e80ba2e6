# SPDX-License-Identifier: Apache-2.0
"""Blobs from registries into the content store, each by one task at a time however many pulls want it.

A pull that finds a blob on its way already waits, is told of its progress, and takes over when the other
gives up: what came stays in the partial file, also when the daemon is killed. A blob is verified before
anyone may use it.

Source: Docker Engine, distribution/xfer, whose limit and states are kept.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from proa.distribution.errors import Refused, RegistryFailed
from proa.distribution.manifests import is_foreign
from proa.distribution.timings import Timings
from proa.engine.progress import Reporter
from proa.image.images import Images
from proa.image.partials import PartialFile
from proa.image.store import Session
from proa.model.ids import Digest, short
from proa.model.registry import Descriptor

if TYPE_CHECKING:
    from proa.distribution.repository import BlobBody, Repository

CONCURRENT = 3  # dockerd's --max-concurrent-downloads
BATCH_BYTES = 1024 * 1024  # handed to a thread at a time


class _Running:
    """A blob on its way: who else wants to know, and its end, good or bad."""

    def __init__(self) -> None:
        self.reporters: list[Reporter] = []
        self.ended = anyio.Event()


class Downloads:
    """All downloads of the daemon."""

    def __init__(self, images: Images, timings: Timings, *, concurrent: int = CONCURRENT) -> None:
        self._images = images
        self._timings = timings
        self._concurrent = concurrent
        self._limiter: anyio.CapacityLimiter | None = None
        self._running: dict[Digest, _Running] = {}

    async def fetch(
        self, session: Session, repository: Repository, blob: Descriptor, reporter: Reporter
    ) -> None:
        """Have a blob in the content store, pinned by the session.

        :raises RegistryFailed: the registry does not have it, or sends something else.
        """
        while not await session.hold_blob(blob.digest):
            other = self._running.get(blob.digest)
            if other is not None:
                other.reporters.append(reporter)
                await other.ended.wait()
                continue
            running = self._running[blob.digest] = _Running()
            running.reporters.append(reporter)
            try:
                await self._fetch(session, repository, blob, running)
            finally:
                del self._running[blob.digest]
                running.ended.set()
        if self._images.store.content.size(blob.digest) != blob.size:
            raise RegistryFailed(f"invalid manifest: {blob.digest} does not have {blob.size} bytes")
        reporter.layer(short(blob.digest), "Download complete")

    async def _fetch(
        self, session: Session, repository: Repository, blob: Descriptor, running: _Running
    ) -> None:
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self._concurrent)
        if self._limiter.available_tokens < 1:
            _tell(running, blob, "Waiting")
        content = self._images.store.content
        async with self._limiter:
            with content.partials.using(blob.digest):
                file = await self._images.store.in_thread(content.partials.resume, blob.digest, blob.size)
                try:
                    while not await self._images.store.in_thread(file.catch_up):
                        pass
                    await self._complete(repository, blob, file, running)
                finally:
                    file.close()
                await session.keep_partial(blob.digest)

    async def _complete(
        self, repository: Repository, blob: Descriptor, file: PartialFile, running: _Running
    ) -> None:
        """Bring the file to its end and verify it; what was begun by another pull may be begun anew once."""
        was_begun = file.offset > 0
        await self._transfer_patiently(repository, blob, file, running)
        _tell(running, blob, "Verifying Checksum")
        if not file.is_right and was_begun:
            await self._images.store.in_thread(file.restart)
            await self._transfer_patiently(repository, blob, file, running)
        if not file.is_right:
            await self._images.store.in_thread(self._images.store.content.partials.drop, blob.digest)
            raise RegistryFailed(f"filesystem layer verification failed for digest {blob.digest}")

    async def _transfer_patiently(
        self, repository: Repository, blob: Descriptor, file: PartialFile, running: _Running
    ) -> None:
        """Try again when the way breaks, from where it broke."""
        pause_s = self._timings.pause_s
        for left in range(self._timings.tries - 1, -1, -1):
            try:
                if file.missing:
                    await self._transfer(repository, blob, file, running)
                return
            except RegistryFailed as error:
                if isinstance(error, Refused) and error.refusal.status == 416 and file.offset:
                    await self._images.store.in_thread(file.restart)
                elif not error.is_passing:
                    raise
                if not left:
                    raise
            _tell(running, blob, f"Retrying in {pause_s:g} seconds")
            await anyio.sleep(pause_s)
            pause_s *= 2

    async def _transfer(
        self, repository: Repository, blob: Descriptor, file: PartialFile, running: _Running
    ) -> None:
        async with self._open(repository, blob, file.offset) as body:
            if body.offset != file.offset:
                await self._images.store.in_thread(file.restart)
            batch: list[bytes] = []
            size = 0
            try:
                async for piece in body.pieces:
                    size += len(piece)
                    if size > file.missing:
                        raise RegistryFailed(f"{blob.digest} is longer than the {blob.size} bytes announced")
                    batch.append(piece)
                    if size >= BATCH_BYTES:
                        data, batch, size = b"".join(batch), [], 0
                        await self._images.store.in_thread(file.write, data)
                        _tell_amount(running, blob, file.offset)
            finally:
                # What has come is kept also when the connection breaks or the client leaves.
                if batch and size <= file.missing:
                    with anyio.CancelScope(shield=True):
                        await self._images.store.in_thread(file.write, b"".join(batch))
            _tell_amount(running, blob, file.offset)
        if file.missing:
            raise RegistryFailed(f"{blob.digest} ended {file.missing} bytes early", is_passing=True)

    @asynccontextmanager
    async def _open(self, repository: Repository, blob: Descriptor, offset: int) -> AsyncIterator[BlobBody]:
        """From the registry; a foreign layer that it does not have, from where the manifest says."""
        if is_foreign(blob) and not await repository.has_blob(blob.digest):
            opened = repository.open_foreign(blob.urls[0], offset)
        else:
            opened = repository.open_blob(blob.digest, offset)
        async with opened as body:
            yield body


def _tell(running: _Running, blob: Descriptor, status: str) -> None:
    for reporter in running.reporters:
        reporter.layer(short(blob.digest), status)


def _tell_amount(running: _Running, blob: Descriptor, current: int) -> None:
    for reporter in running.reporters:
        reporter.amount(short(blob.digest), "Downloading", current, blob.size)

# SPDX-License-Identifier: Apache-2.0
"""The context of a build: a stranger's tar, made a read-only file system for as long as the build takes.

It goes the way of an image's layer (parsed in the confined child, written as an EROFS image, bounded by the
same limits) into a store of its own, and is mounted: so it is never unpacked, and COPY reads it as it reads
any other tree. A daemon that is killed leaves it behind, and the next one removes it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from proa.build.ignore import IgnoreRules, read_ignore_file
from proa.image.store import ImageStore
from proa.model.errors import NotFound
from proa.model.ids import Digest
from proa.storage.files.gather import Gatherer
from proa.storage.layers import Layers

BATCH_BYTES = 1 << 20  # handed to a worker thread at a time
IGNORE_FILE_MAX = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """``root`` is a descriptor of its root directory, ``path`` where that is mounted."""

    root: int
    path: Path
    ignore: IgnoreRules

    def keeps(self, path: str) -> bool:
        """Whether a file is there for COPY."""
        return not self.ignore.ignores(path)


class Contexts:
    """The contexts of the builds under way."""

    def __init__(self, layers: Layers, store: ImageStore) -> None:
        self._layers = layers
        self._store = store
        self._users: Counter[Digest] = Counter()

    async def open(self) -> None:
        """Remove what a killed daemon left."""
        await self._layers.unmount_unused()
        await self._layers.remove(self._layers.ids())

    @asynccontextmanager
    async def receive(self, stream: AsyncIterator[bytes]) -> AsyncIterator[int]:
        """Take a tar, of any compression; give a descriptor of its root directory, which is mounted.

        :raises InvalidParameter: it is broken, or exceeds a limit.
        """
        async with self._store.open_spool() as spool:
            file = spool.create()
            try:
                async for batch in _batches(stream):
                    await self._store.in_thread(file.write, batch)
                spooled = file.finish()
            finally:
                file.abort()
            if not spooled.size:
                await self._store.in_thread(spooled.path.write_bytes, bytes(1024))  # a tar of nothing
            stored = await self._layers.add(spooled.path)
        self._users[stored.diff_id] += 1
        try:
            path = self._layers.mount(stored.diff_id)
            root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                yield root
            finally:
                os.close(root)
        finally:
            self._users[stored.diff_id] -= 1
            if not self._users[stored.diff_id]:
                del self._users[stored.diff_id]
                with anyio.CancelScope(shield=True):
                    await self._layers.remove([stored.diff_id])


async def read_text(root: int, path: str, max_bytes: int) -> str | None:
    """Return a text file of a tree, None when there is none. Raises InvalidParameter when it is too long."""
    gatherer = Gatherer(root, kept=lambda _: True, with_owners=False)
    try:
        data = await anyio.to_thread.run_sync(gatherer.read, path, max_bytes)
    except NotFound:
        return None
    return data.decode(errors="replace")


async def read_ignore(root: int, dockerfile: str) -> IgnoreRules:
    """Return the rules of ``DOCKERFILE.dockerignore``, else of ``.dockerignore``. Raises InvalidParameter."""
    for name in (f"{dockerfile}.dockerignore", ".dockerignore"):
        text = await read_text(root, name, IGNORE_FILE_MAX)
        if text is not None:
            return IgnoreRules(read_ignore_file(text))
    return IgnoreRules([])


async def _batches(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    pending = bytearray()
    async for piece in stream:
        pending += piece
        if len(pending) >= BATCH_BYTES:
            yield bytes(pending)
            pending.clear()
    if pending:
        yield bytes(pending)


Kept = Callable[[str], bool]

# SPDX-License-Identifier: Apache-2.0
"""The context of a build: a stranger's tar, made a read-only file system for as long as the build takes.

It goes the way of an image's layer (parsed in the confined child, written as an EROFS image, bounded by the
same limits) into a store of its own, and is mounted: so it is never unpacked, and COPY reads it as it reads
any other tree. The latest ones stay for a while; a daemon that starts removes what an earlier one had.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from proa.build.ignore import IgnoreRules, read_ignore_file
from proa.image.images import Images
from proa.model.errors import NotFound
from proa.model.ids import Digest
from proa.storage.files.gather import Gatherer
from proa.storage.layers import Layers

BATCH_BYTES = 1 << 20  # handed to a worker thread at a time
IGNORE_FILE_MAX = 1 << 20
KEPT = 8  # contexts kept for the next build
KEYS_KEPT = 64  # several may mean one context
KEPT_BYTES = 512 << 20  # that they may take together


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
    """The contexts of the builds under way, and of the latest ones: the next build often has the same."""

    def __init__(self, layers: Layers, images: Images) -> None:
        self._layers = layers
        self._images = images
        self._users: Counter[Digest] = Counter()
        self._choosing = anyio.Lock()  # for a moment before a user counts, and around every removal
        self._keys: dict[str, Digest] = {}  # of those among the latest that came with a key
        self._latest: OrderedDict[Digest, int] = OrderedDict()  # and their bytes, the latest last

    async def open(self) -> None:
        """Remove what a killed daemon left."""
        await self._layers.unmount_unused()
        await self._layers.remove(self._layers.ids())

    @asynccontextmanager
    async def receive(self, stream: AsyncIterator[bytes], key: str = "") -> AsyncIterator[int]:
        """Take a tar, of any compression; give a descriptor of its root directory, which is mounted.

        :param key: a context that came with the same one is taken in its place, and the stream is not read.
        :raises InvalidParameter: it is broken, or exceeds a limit.
        """
        diff_id = await self._find(key) or await self._store_tar(stream)
        try:
            if key:
                self._keys[key] = diff_id
                if len(self._keys) > KEYS_KEPT:
                    self._keys.pop(next(iter(self._keys)))
            root = os.open(self._layers.mount(diff_id), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                yield root
            finally:
                os.close(root)
        finally:
            self._users[diff_id] -= 1
            with anyio.CancelScope(shield=True):
                await self._keep_latest(diff_id)

    def knows(self, key: str) -> bool:
        """Whether a context with this key is there now."""
        return key in self._keys

    async def _find(self, key: str) -> Digest | None:
        async with self._choosing:
            found = self._keys.get(key)
            if found is None or not self._layers.exists(found):
                return None
            self._users[found] += 1
            return found

    async def _store_tar(self, stream: AsyncIterator[bytes]) -> Digest:
        store = self._images.store
        async with store.open_spool() as spool:
            file = spool.create()
            try:
                async for batch in _batches(stream):
                    await store.in_thread(file.write, batch)
                spooled = file.finish()
            finally:
                file.abort()
            async with self._choosing:
                # Of a plain tar the digest is its name in the store.
                if self._layers.exists(spooled.digest):
                    self._users[spooled.digest] += 1
                    return spooled.digest
            if not spooled.size:
                await store.in_thread(spooled.path.write_bytes, bytes(1024))  # a tar of nothing
            stored = await self._layers.add(spooled.path)
            self._users[stored.diff_id] += 1
            return stored.diff_id

    async def _keep_latest(self, diff_id: Digest) -> None:
        """Keep this one for the next build, and let go of those that are too many or too large."""
        async with self._choosing:
            self._latest[diff_id] = self._layers.disk_bytes(diff_id)
            self._latest.move_to_end(diff_id)
            gone: list[Digest] = []
            for one in list(self._latest):
                if len(self._latest) <= KEPT and sum(self._latest.values()) <= KEPT_BYTES:
                    break
                if not self._users[one]:
                    del self._latest[one]
                    gone.append(one)
            self._keys = {key: one for key, one in self._keys.items() if one not in gone}
            if gone:
                await self._layers.remove(gone)


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

# SPDX-License-Identifier: Apache-2.0
"""Places to mount for RUN --mount, and the directories of its caches.

data_root/build/caches/<digest>    a cache mount, kept until it is pruned
exec_root/build/mounts/<token>     a tree mounted for one RUN; gone with it, or with the next start
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import anyio
import anyio.to_thread

from proa.build.mounts import RunMount
from proa.host import mount, process
from proa.host.mount import Resolve, openat2
from proa.model.errors import InvalidParameter, NotFound
from proa.model.ids import Digest
from proa.storage.layers import Layers, NewLayer
from proa.storage.overlay import attach_merged, attach_overlay

COPY_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """What a new cache mount begins with: a path of the tree that ``lowers`` (topmost first) make."""

    lowers: Sequence[Path]
    digest: str


class BuildTrees:
    """Trees of layers as directories of the host, and cache directories."""

    def __init__(self, *, layers: Layers, data_root: Path, exec_root: Path) -> None:
        self._layers = layers
        self._caches = data_root / "build" / "caches"
        self._mounts = exec_root / "build" / "mounts"
        self._scratch = data_root / "build" / "scratch"
        self._locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._making: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._users: defaultdict[str, int] = defaultdict(int)
        for directory in (self._caches, self._mounts, self._scratch):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def clear(self) -> None:
        """Take away what a killed daemon left. Blocks: call it in a thread."""
        for directory in (self._mounts, self._scratch):
            for left in directory.iterdir():
                mount.ensure_unmounted(left)
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink()

    @contextmanager
    def open_layers(self, diff_ids: Sequence[Digest]) -> Iterator[int]:
        """Give a descriptor of what the layers make together; -1 when there are none."""
        if not diff_ids:
            yield -1
            return
        with self._layers.open_merged(diff_ids) as merged:
            yield merged

    def open_new_layer(self) -> AbstractAsyncContextManager[NewLayer]:
        """Give a place for a layer that is being made."""
        return self._layers.open_new()

    @property
    def empty(self) -> Path:
        """An empty directory."""
        return self._layers.empty

    @asynccontextmanager
    async def mounted(self, lowers: Sequence[Path], source: str, *, writable: bool) -> AsyncIterator[Path]:
        """Give the path of ``source`` in the tree that ``lowers`` (topmost first) make, for the span of the
        block. What is written to it is thrown away.

        :raises InvalidParameter: there is no such path.
        """
        token = secrets.token_hex(8)
        target, scratch = self._mounts / token, self._scratch / token
        target.mkdir(mode=0o700)
        try:
            if writable:
                for directory in (scratch, scratch / "upper", scratch / "work"):
                    directory.mkdir(mode=0o755)
                attach_overlay(
                    lowers or [self._layers.empty],
                    upper=scratch / "upper",
                    work=scratch / "work",
                    target=target,
                )
            elif lowers:
                attach_merged(lowers, empty=self._layers.empty, target=target)
            yield _resolve(target, source)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_take_away, target, scratch)

    def lowers(self, diff_ids: Sequence[Digest]) -> list[Path]:
        """Return where layers (lowest first) are mounted, topmost first."""
        return [self._layers.mount(diff_id) for diff_id in reversed(diff_ids)]

    @asynccontextmanager
    async def scratch(self) -> AsyncIterator[Path]:
        """Give an empty directory on disk; it is gone after the block, with what is in it."""
        path = self._scratch / secrets.token_hex(8)
        path.mkdir(mode=0o700)
        try:
            yield path
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(partial(shutil.rmtree, path, ignore_errors=True))

    def spool(self) -> BinaryIO:
        """Return an empty file on disk that has no name: it is gone when it is closed."""
        return tempfile.TemporaryFile(dir=self._scratch)

    @asynccontextmanager
    async def cache(self, wanted: RunMount, seed: Seed | None = None) -> AsyncIterator[Path]:
        """Give the directory of a cache mount, shared, alone, or a new one, as it asks.

        :param seed: what a new one begins with; another one is another cache.
        :raises InvalidParameter: the seed is no directory.
        """
        name = (wanted.id or wanted.target) + (f" {seed.digest}" if seed else "")
        key = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
        if wanted.sharing == "private" and self._users[key]:
            key += f"-{self._users[key]}"
        self._users[key] += 1
        try:
            if wanted.sharing == "locked":
                async with self._locks[key]:
                    yield await self._ensure_cache(key, wanted, seed)
            else:
                yield await self._ensure_cache(key, wanted, seed)
        finally:
            self._users[key] -= 1

    def caches(self) -> list[tuple[str, Path, bool]]:
        """Return key, directory and whether it is in use, of every cache mount."""
        return [(path.name, path, self._users[path.name] > 0) for path in sorted(self._caches.iterdir())]

    async def remove_cache(self, path: Path) -> None:
        """Delete a cache mount's directory."""
        await anyio.to_thread.run_sync(lambda: shutil.rmtree(path, ignore_errors=True))

    async def _ensure_cache(self, key: str, wanted: RunMount, seed: Seed | None) -> Path:
        path = self._caches / key
        async with self._making[key]:
            if not path.exists():
                await self._make_cache(path, wanted, seed)
        os.utime(path)
        return path

    async def _make_cache(self, path: Path, wanted: RunMount, seed: Seed | None) -> None:
        async with self.scratch() as place:
            new = place / "cache"
            new.mkdir()
            new.chmod(0o755 if wanted.mode < 0 else wanted.mode)
            os.chown(new, wanted.uid, wanted.gid)
            if seed is not None:
                async with self.mounted(seed.lowers, wanted.source, writable=False) as source:
                    if not source.is_dir():
                        raise InvalidParameter(f"mount source {wanted.source}: not a directory")
                    # Links are copied as links; the directory gets the mode and owner of the other.
                    words = ["cp", "-a", "--reflink=auto", "--", f"{source}/.", os.fspath(new)]
                    await process.run(words, timeout_s=COPY_S)
                    if wanted.mode >= 0:
                        new.chmod(wanted.mode)
                    if wanted.uid or wanted.gid:
                        os.chown(new, wanted.uid, wanted.gid)
            new.rename(path)

    @contextmanager
    def secret(self, data: bytes, wanted: RunMount) -> Iterator[Path]:
        """Give a file with a secret, in memory where the exec root is."""
        path = self._mounts / secrets.token_hex(8)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            os.chown(path, wanted.uid, wanted.gid)
            path.chmod(0o400 if wanted.mode < 0 else wanted.mode)
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def socket_path(self) -> Iterator[Path]:
        """Give a path for a socket; what is there in the end is removed."""
        path = self._mounts / secrets.token_hex(8)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def _resolve(target: Path, source: str) -> Path:
    """Follow a path inside a mounted tree; links cannot lead out."""
    root = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        resolve = Resolve.IN_ROOT | Resolve.NO_MAGICLINKS
        fd = openat2(root, source.lstrip("/") or ".", os.O_PATH, resolve=resolve)
    except (OSError, ValueError) as error:
        raise NotFound(source) from error
    finally:
        os.close(root)
    try:
        path = Path(f"/proc/self/fd/{fd}").readlink()
    finally:
        os.close(fd)
    if not path.is_relative_to(target):
        raise InvalidParameter(f"mount source {source} is outside of its tree")
    return path


def _take_away(target: Path, scratch: Path) -> None:
    mount.ensure_unmounted(target)
    target.rmdir()
    shutil.rmtree(scratch, ignore_errors=True)

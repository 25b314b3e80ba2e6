# SPDX-License-Identifier: Apache-2.0
"""The store of snapshots: what was saved of running containers, and archives of it.

    snapshots/<name>/            a complete one
        snapshot.json            Manifest: what it is of, and the digest of each part
        <part>…                  files, which may have holes
    snapshots/.making-<random>/  one being made or taken in; removed by the next daemon

It is synchronised and then renamed, so one half made is never found. The digest of a part is that of its
packed stream (``host/sparse``), which is the same on every file system; and so are archives: a tar of
snapshot.json and the packed parts. Parts are checked before anything is made of them.

What the parts are and mean is the business of who saved them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import anyio
import anyio.to_thread
import msgspec

from proa.host import sparse
from proa.model.errors import DataLoss, Internal, InvalidParameter, NameInUse, NotFound
from proa.model.ids import Digest

T = TypeVar("T")

log = logging.getLogger(__name__)

FORMAT = 1
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_MAKING = ".making-"
_MANIFEST = "snapshot.json"
_MAX_MANIFEST_BYTES = 4 << 20
_MAX_PART_BYTES = 1 << 42  # no disk and no memory here comes near it
_BATCH_BYTES = 1 << 20


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One file: the digest and the length of its packed stream."""

    sha256: str
    packed_bytes: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Content of snapshot.json.

    :ivar container: the record of what it is of, and ``machine`` what its hull wants to know again. Any: JSON
        of others.
    :ivar layers: the digest of each layer's file, by diff id: the saved kernel has read in them.
    """

    format: int
    created_at_ns: int
    container: dict[str, Any]
    machine: dict[str, Any]
    layers: dict[str, str]
    parts: dict[str, Part]


class Snapshots:
    """The store in ``root``."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._threads = anyio.CapacityLimiter(1)  # hashing and copying: a disk is not faster for two
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in root.glob(f"{_MAKING}*"):
            shutil.rmtree(left, ignore_errors=True)

    def names(self) -> list[str]:
        """Return the names of all, the oldest first."""
        found = {path.parent.name: path.stat().st_mtime_ns for path in self._root.glob(f"[!.]*/{_MANIFEST}")}
        return sorted(found, key=lambda name: (found[name], name))

    def whole(self) -> list[str]:
        """Return the names of those whose description can be read; the log tells of the others."""
        found = []
        for name in self.names():
            try:
                self.get(name)
            except DataLoss as error:
                log.warning("snapshot %s: %s", name, error)
            else:
                found.append(name)
        return found

    def of_image(self, image_id: Digest) -> list[str]:
        """Return the names of those whose container was made from an image."""
        return [name for name in self.whole() if self.get(name).container.get("image_id") == image_id]

    def get(self, name: str) -> Manifest:
        """Return what is known of one. Raises NotFound, DataLoss."""
        try:
            content = (self._path(name) / _MANIFEST).read_bytes()
        except FileNotFoundError as error:
            raise _no_such(name) from error
        return parse_manifest(content)

    def check_new(self, name: str) -> None:
        """Raise InvalidParameter for what cannot be a name, NameInUse for one that is taken."""
        if _NAME.fullmatch(name) is None:
            raise InvalidParameter(
                f"Invalid snapshot name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
            )
        if self._path(name).exists():
            raise NameInUse(f"a snapshot is called {name} already")

    def size_of(self, name: str) -> int:
        """Return the bytes that its removal would free; what others have too is not counted."""
        total = 0
        with contextlib.suppress(FileNotFoundError):
            for path in self._path(name).iterdir():
                status = path.stat()
                total += status.st_blocks * 512 if status.st_nlink == 1 else 0
        return total

    @asynccontextmanager
    async def making(self) -> AsyncIterator[Path]:
        """Give an empty directory for the span of the block; ``complete`` makes a snapshot of it."""
        directory = self._root / f"{_MAKING}{secrets.token_hex(6)}"
        directory.mkdir(mode=0o700)
        try:
            yield directory
        finally:
            with anyio.CancelScope(shield=True):
                await self._run(lambda: shutil.rmtree(directory, ignore_errors=True))

    async def complete(self, directory: Path, name: str, manifest: Manifest) -> None:
        """Store a directory from ``making`` under a name. Raises NameInUse."""

        def store() -> None:
            (directory / _MANIFEST).write_bytes(msgspec.json.encode(manifest))
            _synchronise(directory)
            try:
                directory.rename(self._path(name))  # a directory that is not empty is not replaced
            except OSError as error:
                raise NameInUse(f"a snapshot is called {name} already") from error
            _synchronise_directory(self._root)

        with anyio.CancelScope(shield=True):
            await self._run(store)

    async def digest(self, directory: Path, parts: Iterable[str]) -> dict[str, Part]:
        """Return the digests of parts. Raises Internal."""
        try:
            return await self._run(lambda: {name: _digest(directory / name) for name in parts})
        except OSError as error:
            raise Internal(f"the snapshot cannot be read: {error}") from error

    async def checked(self, name: str, parts: Sequence[str]) -> Path:
        """Return the directory of one whose parts are what they were. Raises NotFound, DataLoss."""
        manifest = self.get(name)
        if set(manifest.parts) != set(parts):
            raise DataLoss(f"snapshot {name} does not have the parts {', '.join(parts)}")
        try:
            found = await self._run(lambda: {part: _digest(self._path(name) / part) for part in parts})
        except OSError as error:
            raise DataLoss(f"snapshot {name} cannot be read: {error}") from error
        for part in parts:
            if found[part] != manifest.parts[part]:
                raise DataLoss(f"snapshot {name} is damaged: {part} is not what was saved")
        return self._path(name)

    async def remove(self, name: str) -> None:
        """Remove one; what was made of it goes on. Raises NotFound."""
        aside = self._root / f"{_MAKING}{secrets.token_hex(6)}"
        try:
            self._path(name).rename(aside)
        except FileNotFoundError as error:
            raise _no_such(name) from error
        await self._run(lambda: shutil.rmtree(aside, ignore_errors=True))

    # --- archives ---

    async def export(self, name: str) -> AsyncIterator[bytes]:
        """Yield an archive of one. Raises NotFound, DataLoss."""
        manifest = self.get(name)
        pieces = _archive(self._path(name), manifest)
        while piece := await self._run(lambda: next(pieces, b"")):
            yield piece

    async def take_in(self, archive: Path, directory: Path, parts: Sequence[str]) -> Manifest:
        """Fill a directory from ``making`` from an archive; every part is checked.

        :raises InvalidParameter: it is none, or cut short, or changed.
        """
        try:
            return await self._run(lambda: _unpack(archive, directory, parts))
        except (tarfile.TarError, OSError, EOFError, KeyError) as error:
            raise InvalidParameter(f"this is not a whole archive of a snapshot: {error}") from error
        except DataLoss as error:
            raise InvalidParameter(error.message) from error

    # --- machinery ---

    def _path(self, name: str) -> Path:
        if _NAME.fullmatch(name) is None:
            raise _no_such(name)
        return self._root / name

    async def _run(self, work: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(work, limiter=self._threads)


def parse_manifest(content: bytes) -> Manifest:
    """Read snapshot.json. Raises DataLoss."""
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except msgspec.DecodeError as error:
        raise DataLoss(f"the description of the snapshot makes no sense: {error}") from error
    if manifest.format != FORMAT:
        raise DataLoss(f"the snapshot has format {manifest.format}, this is proa for {FORMAT}")
    return manifest


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file as it is. Blocks. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _no_such(name: str) -> NotFound:
    return NotFound(f"No such snapshot: {name}")


def _digest(path: Path) -> Part:
    digest, length = hashlib.sha256(), 0
    with path.open("rb") as file:
        for piece in sparse.pack(file.fileno()):
            digest.update(piece)
            length += len(piece)
    return Part(sha256=digest.hexdigest(), packed_bytes=length)


def _archive(directory: Path, manifest: Manifest) -> Iterator[bytes]:
    text = msgspec.json.encode(manifest)
    yield _header(_MANIFEST, len(text)) + text + _padding(len(text))
    for name, part in manifest.parts.items():
        batch = bytearray(_header(name, part.packed_bytes))
        with (directory / name).open("rb") as file:
            for piece in sparse.pack(file.fileno()):
                batch += piece
                if len(batch) >= _BATCH_BYTES:
                    yield bytes(batch)
                    batch.clear()
        batch += _padding(part.packed_bytes)
        if batch:
            yield bytes(batch)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def _unpack(archive: Path, directory: Path, parts: Sequence[str]) -> Manifest:
    with tarfile.open(archive, "r:") as tar:
        members = {member.name: member for member in tar if member.isreg()}
        if members[_MANIFEST].size > _MAX_MANIFEST_BYTES:
            raise DataLoss("the description of the snapshot is too long")
        manifest = parse_manifest(_reader(tar, members[_MANIFEST]).read())
        if set(manifest.parts) != set(parts):
            raise DataLoss(f"the snapshot does not have the parts {', '.join(parts)}")
        for name in parts:
            with (directory / name).open("xb") as file:
                sparse.unpack(_reader(tar, members[name]).read, file.fileno(), _MAX_PART_BYTES)
            (directory / name).chmod(0o600)
            if _digest(directory / name) != manifest.parts[name]:
                raise DataLoss(f"the snapshot is damaged: {name} is not what was saved")
    return manifest


def _reader(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    reader = tar.extractfile(member)
    assert reader is not None  # a regular file
    return reader


def _synchronise(directory: Path) -> None:
    for path in (*directory.iterdir(), directory):
        _synchronise_directory(path)


def _synchronise_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

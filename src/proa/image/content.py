# SPDX-License-Identifier: Apache-2.0
"""The content store: blobs named by the digest of what is in them.

    <data root>/blobs/sha256/<64 hex digits>   whole, verified, on disk
    <data root>/blobs/ingest/<operation>/<n>   being written; worthless after a crash
    <data root>/blobs/partial/<64 hex digits>  on their way from a registry; see ``partials``

A blob is written and hashed in ``ingest``, synced, and renamed to its name, so a file under ``sha256`` is
whole whatever happened in between. Which blobs are wanted is decided by ``store``.

All methods are synchronous; those that touch more than a little data are called in worker threads.

Source: OCI image-spec, image-layout.md, Blobs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from proa.image.partials import Partials, check_space, disk_errors, sync
from proa.model.errors import DataLoss, InvalidParameter
from proa.model.ids import Digest, is_digest

_CHECK_EVERY_BYTES = 16 * 1024 * 1024  # how often free space is looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Spooled:
    """A file of a spool that has been written to its end."""

    path: Path
    digest: Digest
    size: int


class ContentStore:
    """Blobs below ``root``. Raises Internal when the disk fails or is full."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "sha256"
        self._ingest = root / "ingest"
        self.partials = Partials(root / "partial")

    def open(self) -> None:
        """Make the directories and clear what a crash left half-written. Idempotent."""
        with disk_errors():
            for directory in (self._blobs, self._ingest):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in self._ingest.iterdir():
                shutil.rmtree(left, ignore_errors=True)
            self.partials.open()

    def path(self, digest: Digest) -> Path:
        """Where the blob is, or would be."""
        if not is_digest(digest):
            raise InvalidParameter(f"invalid digest {digest!r}")
        return self._blobs / digest.removeprefix("sha256:")

    def has(self, digest: Digest) -> bool:
        return self.path(digest).exists()

    def size(self, digest: Digest) -> int:
        """Bytes of a blob. Raises DataLoss when it is missing."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError as error:
            raise DataLoss(f"blob {digest} is missing") from error

    def read(self, digest: Digest, max_bytes: int) -> bytes:
        """Return a small blob, verified. Raises DataLoss when it is missing, damaged or larger."""
        if self.size(digest) > max_bytes:
            raise DataLoss(f"blob {digest} is larger than {max_bytes} bytes")
        data = self.path(digest).read_bytes()
        if digest_of(data) != digest:
            raise DataLoss(f"blob {digest} is damaged")
        return data

    def iter_digests(self) -> Iterator[Digest]:
        """Every blob there is."""
        for path in self._blobs.iterdir():
            if is_digest(f"sha256:{path.name}"):
                yield Digest(f"sha256:{path.name}")

    def delete(self, digests: Iterable[Digest]) -> int:
        """Delete blobs and return the bytes freed. One that is not there is no error."""
        freed = 0
        for digest in digests:
            path = self.path(digest)
            with contextlib.suppress(FileNotFoundError):
                size = path.stat().st_size
                path.unlink()
                freed += size
        return freed

    def create_spool(self) -> Spool:
        """Make a place for files on their way in; the caller discards it."""
        directory = self._ingest / secrets.token_hex(8)
        with disk_errors():
            directory.mkdir(mode=0o700)
        return Spool(directory)

    def keep(self, spooled: Spooled) -> Digest:
        """Make a spooled file a blob, durably. Idempotent, also when called from several threads."""
        target = self.path(spooled.digest)
        with disk_errors():
            if target.exists():
                return spooled.digest
            try:
                sync(spooled.path)
                spooled.path.rename(target)
            except FileNotFoundError:
                # An archive may name one file twice; another thread has kept it meanwhile.
                if not target.exists():
                    raise
            sync(self._blobs)
        return spooled.digest

    def keep_partial(self, digest: Digest) -> None:
        """Make a whole, verified partial file a blob too, durably. Idempotent.

        It stays until it is dropped, so that a pull that fails after all can go on from here.
        """
        target = self.path(digest)
        with disk_errors():
            sync(self.partials.path(digest))
            with contextlib.suppress(FileExistsError):
                target.hardlink_to(self.partials.path(digest))
            sync(self._blobs)

    def put(self, data: bytes) -> Digest:
        """Store a small blob, durably. Idempotent."""
        spool = self.create_spool()
        try:
            return self.keep(spool.write(data))
        finally:
            spool.discard()


class Spool:
    """A directory of numbered files. Not thread-safe; its files may be written from one thread at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._count = 0

    def create(self) -> SpoolFile:
        """Begin a file."""
        self._count += 1
        return SpoolFile(self._directory / str(self._count))

    def open_file(self) -> tuple[Path, int]:
        """Begin a file that a program writes; return its path, and a descriptor that the caller closes."""
        self._count += 1
        path = self._directory / str(self._count)
        with disk_errors():
            return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> Spooled:
        """Make a small file at once."""
        file = self.create()
        try:
            file.write(data)
            return file.finish()
        finally:
            file.abort()

    def discard(self) -> None:
        """Delete all files that have not been kept. Idempotent."""
        shutil.rmtree(self._directory, ignore_errors=True)


class SpoolFile:
    """A file being written and hashed. ``finish`` or ``abort`` closes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with disk_errors():
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._hash = hashlib.sha256()
        self._size = 0
        self._check_at = _CHECK_EVERY_BYTES

    def write(self, data: bytes | memoryview) -> None:
        """Append. Raises Internal when the disk is nearly full."""
        self._hash.update(data)
        self._size += len(data)
        with disk_errors():
            if self._size >= self._check_at:
                self._check_at = self._size + _CHECK_EVERY_BYTES
                check_space(self._fd)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._fd, rest) :]

    def finish(self) -> Spooled:
        """Close the file and say what is in it."""
        self.abort()
        return Spooled(path=self._path, digest=Digest(f"sha256:{self._hash.hexdigest()}"), size=self._size)

    def abort(self) -> None:
        """Close the file; its spool deletes it. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def digest_of(data: bytes) -> Digest:
    """Return the digest of these bytes."""
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")

# SPDX-License-Identifier: Apache-2.0
"""Images by address: fetched once, kept by what is in them, gone on with when the line breaks.

    <data root>/machine-images/
        sha256/<digest>       whole files
        partial/<key>         what has come of one that is expected to have a certain digest

``https://host/image.qcow2#sha256:…`` names the digest that the file must have; without one it is fetched
anew each time. What has not been used for UNUSED_S is removed when a daemon starts, or when a user says so.

Source: RFC 9110, 14 (ranges).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from proa.image.partials import check_space, disk_errors
from proa.model.errors import EngineError, InvalidParameter

MAX_BYTES = 1 << 40  # of one file
UNUSED_S = 14 * 24 * 3600
ATTEMPTS = 5  # without a byte in between
RETRY_S = 1.0
_BATCH_BYTES = 4 << 20  # worth the way to a thread
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Fetcher(Protocol):
    """What reads addresses."""

    def fetch_from(
        self, url: str, offset: int
    ) -> AbstractAsyncContextManager[tuple[int, AsyncIterator[bytes]]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where an image is. ``digest``: what it must be, ``sha256:`` and 64 digits; empty: not known."""

    url: str
    digest: str = ""


def find_address(source: str) -> Address | None:
    """Return the address that a source is; None when it is a path. Raises InvalidParameter."""
    if not source.startswith(("http://", "https://")):
        return None
    url, _, digest = source.partition("#")
    try:
        host = urlsplit(url).hostname
    except ValueError:
        host = None
    if not host or not all("!" <= char <= "~" for char in url):
        raise InvalidParameter(f"{source!r}: not an address of an image")
    if digest and _DIGEST.fullmatch(digest) is None:
        raise InvalidParameter(f"{digest!r}: not a checksum, which is sha256: and 64 digits")
    if url.startswith("http:") and not digest:
        raise InvalidParameter(f"{url}: over plain http a checksum is needed (#sha256:…)")
    return Address(url=url, digest=digest)


class Downloads:
    """The files that have been fetched."""

    def __init__(self, root: Path, client: Fetcher) -> None:
        self._whole = root / "sha256"
        self._partial = root / "partial"
        self._client = client
        self._turns: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)

    async def get(self, address: Address, target: Path) -> None:
        """Make ``target`` a link to the file, which is fetched when it is not there. It is not to be changed.

        :raises InvalidParameter: the server has no such file, or another one than is expected.
        :raises Internal: it cannot be reached, or the host's disk is full. What has come is kept.
        """
        async with self._turns[address.url + address.digest]:
            path = self._path(address.digest) if address.digest else None
            if path is None or not path.exists():
                path = await self._fetch(address)
            os.utime(path)
            target.hardlink_to(path)

    def prune(self, *, unused_s: float = 0) -> int:
        """Remove what has not been used for so long; return the bytes. Machines have links of their own."""
        freed = 0
        for folder in (self._whole, self._partial):
            for path in folder.iterdir() if folder.is_dir() else ():
                with contextlib.suppress(OSError):
                    found = path.stat()
                    if found.st_mtime <= time.time() - unused_s:
                        path.unlink()
                        freed += found.st_size
        return freed

    # --- machinery ---

    async def _fetch(self, address: Address) -> Path:
        with disk_errors():
            for folder in (self._whole, self._partial):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = hashlib.sha256(f"{address.url}#{address.digest}".encode()).hexdigest()
        partial = self._partial / key
        if not address.digest:
            partial.unlink(missing_ok=True)  # nobody could tell whether the rest belongs to it
        with _Incoming(partial) as incoming:
            await anyio.to_thread.run_sync(incoming.read_again)
            await self._fill(address, incoming)
            found = incoming.digest
            await anyio.to_thread.run_sync(incoming.settle)
        if address.digest and found != address.digest:
            partial.unlink()
            raise InvalidParameter(f"{address.url}: its checksum is {found}, not {address.digest}")
        path = self._path(found)
        partial.replace(path)
        return path

    async def _fill(self, address: Address, incoming: _Incoming) -> None:
        failures = 0
        while True:
            before = incoming.size
            try:
                async with self._client.fetch_from(address.url, incoming.size) as (start, pieces):
                    if start != incoming.size:  # this server gives nothing but the whole
                        incoming.begin_again()
                    await _pour(pieces, incoming)
                return
            except InvalidParameter:
                raise
            except EngineError:
                failures = 1 if incoming.size > before else failures + 1
                if failures >= ATTEMPTS or not incoming.size:
                    raise
                await anyio.sleep(RETRY_S)

    def _path(self, digest: str) -> Path:
        return self._whole / digest.removeprefix("sha256:")


async def _pour(pieces: AsyncIterator[bytes], incoming: _Incoming) -> None:
    batch: list[bytes] = []
    size = 0
    try:
        async for piece in pieces:
            batch.append(piece)
            size += len(piece)
            if size >= _BATCH_BYTES:
                data, batch, size = b"".join(batch), [], 0
                await anyio.to_thread.run_sync(incoming.write, data)
    finally:
        if batch:  # also of a line that broke: it is gone on from there
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(incoming.write, b"".join(batch))


class _Incoming:
    """A file that grows, and the digest of what is in it. Its methods block."""

    def __init__(self, path: Path) -> None:
        with disk_errors():
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._hash = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> _Incoming:
        return self

    def __exit__(self, *error: Any) -> None:  # Any: as every context manager
        os.close(self._fd)

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def read_again(self) -> None:
        """Take up what an earlier attempt has left."""
        with disk_errors():
            while data := os.pread(self._fd, _BATCH_BYTES, self.size):
                self._hash.update(data)
                self.size += len(data)

    def begin_again(self) -> None:
        """Forget all of it."""
        with disk_errors():
            os.ftruncate(self._fd, 0)
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append. Raises Internal when the disk is nearly full, InvalidParameter beyond MAX_BYTES."""
        if self.size + len(data) > MAX_BYTES:
            raise InvalidParameter(f"the image is longer than {MAX_BYTES} bytes")
        with disk_errors():
            check_space(self._fd)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        self._hash.update(data)
        self.size += len(data)

    def settle(self) -> None:
        """Bring it to the disk."""
        with disk_errors():
            os.fsync(self._fd)

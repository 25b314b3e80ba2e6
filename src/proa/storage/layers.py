# SPDX-License-Identifier: Apache-2.0
"""The store of image layers: each one read-only EROFS file, named by its diff id.

Owns ``data_root/layers``. Which layers an image has, and which are still needed, is the caller's to know.
A layer is either wholly there, on disk, or not at all: it is written and synced under another name first.

    layers/<64 hex digits>.erofs    the layer; the length of its tar stream is in its superblock
    layers/incoming/*               being written; what a dead daemon left is removed at the next start

A blob is parsed only in a confined child, ``proa.storage.layer_writer``. Decision 0004 says why the image is
written by proa itself.

Source: OCI image-spec, config.md, Layer DiffID; layer.md.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import sysconfig
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

import proa
from proa.host import process
from proa.model.errors import DataLoss, EngineError, InvalidParameter, NotFound, ToolFailed
from proa.model.ids import Digest, is_digest
from proa.storage.erofs import VOLUME_NAME_LENGTH, VOLUME_NAME_OFFSET
from proa.storage.layer_mounts import LayerMounts
from proa.storage.overlay import open_merged

WATCH_S = 0.2  # between two looks at a layer being added
WAITING_S = 600  # for a slow disk to take a large layer
ADDERS_MAX = max(2, os.cpu_count() or 1)  # children at a time; each keeps a processor busy
# Without ``site`` a start takes 20 ms instead of 60; the modules used are the standard library's and ours.
_BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from proa.storage.layer_writer import main; main()"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLimits:
    """What one layer may take. A layer beyond is refused, not cut.

    :ivar max_bytes: of the uncompressed tar stream.
    :ivar max_inodes: files and directories.
    :ivar memory_bytes: address space of the child; a million files need about half of the default.
    :ivar time_s: processor time of the child; WAITING_S more may pass while it waits for the disk.
    """

    max_bytes: int = 64 << 30
    max_inodes: int = 1_000_000
    memory_bytes: int = 2 << 30
    time_s: int = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLayer:
    """``size_bytes`` is the length of the uncompressed tar stream, ``disk_bytes`` what the file occupies."""

    diff_id: Digest
    size_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class NewLayer:
    """A layer's image being written to the descriptor ``image``."""

    layers: Layers
    image: int
    path: Path

    async def keep(self, diff_id: Digest) -> StoredLayer:
        """Store it for good, durably. It must be the image of the tar with this digest."""
        return await self.layers.keep(self.path, diff_id)


class Layers:
    """The layers under ``root``, and their mounts under ``exec_root/layers``.

    :raises OSError: the directories cannot be made.
    """

    def __init__(self, root: Path, *, exec_root: Path, limits: LayerLimits | None = None) -> None:
        self._root = root
        self._incoming = root / "incoming"
        self._limits = limits or LayerLimits()
        self._adding: dict[Digest, anyio.Event] = {}
        self._adders = anyio.CapacityLimiter(ADDERS_MAX)
        self.mounts = LayerMounts(exec_root / "layers", self.path)
        self.empty = exec_root / "empty"  # an empty directory, for images without layers
        self._scratch = exec_root / "merged"
        root.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._incoming.mkdir(mode=0o700, exist_ok=True)
        for directory in (exec_root / "layers", self.empty, self._scratch):
            # Not for the host's users: images have set-user-id files.
            directory.mkdir(mode=0o700 if directory != self.empty else 0o755, parents=True, exist_ok=True)
        for leftover in self._incoming.iterdir():
            leftover.unlink()

    async def add(
        self, blob: Path, *, expected: Digest | None = None, on_progress: Callable[[int], None] | None = None
    ) -> StoredLayer:
        """Store the layer in ``blob``: a tar, plain or compressed with gzip, zstd, bzip2 or xz.

        Idempotent. Concurrent calls with the same ``expected`` share the work.

        :param expected: the diff id it must have.
        :param on_progress: told now and then how many bytes of the blob have been read.
        :raises InvalidParameter: it is no whole tar archive, exceeds a limit, or has another diff id.
        :raises DataLoss: the blob is not there.
        :raises ToolFailed: the child failed for another reason, such as a full disk.
        """
        if expected is None:
            return await self._add(blob, None, on_progress)
        while not self.exists(expected):
            running = self._adding.get(expected)
            if running is not None:
                await running.wait()
                continue
            self._adding[expected] = anyio.Event()
            try:
                return await self._add(blob, expected, on_progress)
            finally:
                self._adding.pop(expected).set()
        return self.get(expected)

    @contextlib.asynccontextmanager
    async def open_new(self) -> AsyncIterator[NewLayer]:
        """Give a place for a layer whose image a confined child writes itself, together with its tar. It is
        gone after the block unless it was kept."""
        incoming = self._incoming / secrets.token_hex(8)
        image = os.open(incoming, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            yield NewLayer(self, image, incoming)
        finally:
            os.close(image)
            incoming.unlink(missing_ok=True)

    async def keep(self, incoming: Path, diff_id: Digest) -> StoredLayer:
        """Store an image that has been written and synced; see ``NewLayer``."""
        if not self.exists(diff_id):
            await anyio.to_thread.run_sync(self._keep, incoming, self.path(diff_id))
        return self.get(diff_id)

    def path(self, diff_id: Digest) -> Path:
        """Return where the layer's image is, or would be."""
        if not is_digest(diff_id):
            raise InvalidParameter(f"invalid digest: {diff_id}")
        return self._root / f"{diff_id.removeprefix('sha256:')}.erofs"

    def get_path(self, diff_id: Digest) -> Path:
        """Return where the layer's image is. Raises NotFound."""
        path = self.path(diff_id)
        if not path.exists():
            raise NotFound(f"No such layer: {diff_id}")
        return path

    def exists(self, diff_id: Digest) -> bool:
        return self.path(diff_id).exists()

    def get(self, diff_id: Digest) -> StoredLayer:
        """Return what is known of a stored layer.

        :raises NotFound: there is no such layer.
        :raises DataLoss: its file is not what was stored.
        """
        try:
            with self.path(diff_id).open("rb") as file:
                size_bytes = int(os.pread(file.fileno(), VOLUME_NAME_LENGTH, VOLUME_NAME_OFFSET), 16)
                disk_bytes = os.fstat(file.fileno()).st_blocks * 512
        except FileNotFoundError:
            raise NotFound(f"No such layer: {diff_id}") from None
        except ValueError as error:
            raise DataLoss(f"layer {diff_id} is damaged: {self.path(diff_id)}") from error
        return StoredLayer(diff_id=diff_id, size_bytes=size_bytes, disk_bytes=disk_bytes)

    def disk_bytes(self, diff_id: Digest) -> int:
        """Return what the layer occupies on disk. Raises NotFound."""
        return self.get(diff_id).disk_bytes

    def ids(self) -> set[Digest]:
        """Return all stored layers."""
        return {Digest(f"sha256:{path.stem}") for path in self._root.glob("*.erofs")}

    async def remove(self, diff_ids: Iterable[Digest]) -> None:
        """Delete layers. What runs from one keeps it until it ends. Idempotent."""
        await anyio.to_thread.run_sync(self._remove, [(d, self.path(d)) for d in diff_ids])

    def mount(self, diff_id: Digest) -> Path:
        """Return the directory where the layer is mounted read-only, mounting it when it is not.

        :raises NotFound: there is no such layer.
        """
        self.get_path(diff_id)
        return self.mounts.ensure(diff_id)

    @contextlib.contextmanager
    def open_merged(self, diff_ids: Sequence[Digest]) -> Iterator[int]:
        """Give a descriptor of the directory that the layers (lowest first) make together, read-only, for the
        span of the block. There must be one layer at least.

        :raises NotFound: a layer is missing.
        """
        lowers = [self.mount(diff_id) for diff_id in reversed(diff_ids)]
        with open_merged(lowers, empty=self.empty, scratch=self._scratch) as merged:
            yield merged

    async def unmount_unused(self, in_use: Collection[Digest] = ()) -> None:
        """Take away the mounts of all layers but those ``in_use``; nothing that runs is disturbed."""
        unused = self.mounts.mounted() - set(in_use)
        if unused:
            await anyio.to_thread.run_sync(self.mounts.unmount, unused)

    # --- adding ---

    async def _add(
        self, blob: Path, expected: Digest | None, on_progress: Callable[[int], None] | None
    ) -> StoredLayer:
        async with self._adders, contextlib.AsyncExitStack() as undo:
            try:
                source = os.open(blob, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise DataLoss(f"blob {blob} is missing") from error
            undo.callback(os.close, source)
            incoming = self._incoming / secrets.token_hex(8)
            image = os.open(incoming, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            undo.callback(incoming.unlink, missing_ok=True)
            undo.callback(os.close, image)
            if on_progress is None:
                diff_id = await self._write(source, image)
            else:
                diff_id = await self._write_watched(source, image, on_progress)
            if expected is not None and diff_id != expected:
                raise InvalidParameter(f"layer has diff id {diff_id}, expected {expected}")
            await anyio.to_thread.run_sync(self._keep, incoming, self.path(diff_id))
        return self.get(diff_id)

    async def _write_watched(self, source: int, image: int, on_progress: Callable[[int], None]) -> Digest:
        """Tell how far the child has come: it reads by our own open file, whose position is shared."""
        written: Digest | EngineError

        async def watch() -> None:
            while True:
                await anyio.sleep(WATCH_S)
                on_progress(os.lseek(source, 0, os.SEEK_CUR))

        async with anyio.create_task_group() as watching:
            watching.start_soon(watch)
            try:
                written = await self._write(source, image)
            except EngineError as error:
                written = error
            watching.cancel_scope.cancel()
        if isinstance(written, EngineError):
            raise written
        return written

    async def _write(self, source: int, image: int) -> Digest:
        limits = self._limits
        numbers = (limits.max_bytes, limits.max_inodes, limits.memory_bytes, limits.time_s)
        argv: list[process.Argument] = [
            *(sys.executable, "-I", "-S", "-c", _BOOTSTRAP),
            Path(proa.__file__).parents[1],
            *(str(number) for number in (source, image, *numbers)),
            sysconfig.get_path("platlib"),
        ]
        done = await process.run(
            argv, timeout_s=2 * limits.time_s + WAITING_S, pass_fds=(source, image), check=False
        )
        if done.status == -signal.SIGXCPU:
            raise InvalidParameter(
                f"Error processing tar file: it takes more than {limits.time_s} s of processor time"
            )
        kind, _, rest = done.stdout.decode(errors="replace").strip().partition(" ")
        if kind == "bad":
            raise InvalidParameter(f"Error processing tar file: {rest}")
        if kind != "ok" or done.status != 0:
            raise ToolFailed(["write layer"], done.status, done.stderr)
        return Digest(f"sha256:{rest.split(' ')[0]}")

    def _keep(self, incoming: Path, path: Path) -> None:
        incoming.rename(path)
        _sync_directory(self._root)

    def _remove(self, layers: Collection[tuple[Digest, Path]]) -> None:
        for diff_id, path in layers:
            self.mounts.unmount([diff_id])
            path.unlink(missing_ok=True)
        _sync_directory(self._root)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

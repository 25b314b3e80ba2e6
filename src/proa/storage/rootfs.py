# SPDX-License-Identifier: Apache-2.0
"""Root file systems of containers: the image's layers with something writable on top.

Owns ``data_root/containers/<id>`` as a whole (others may keep files of the container there; they go with it)
and the mounts at ``exec_root/rootfs/<id>``. What a container wrote survives ``release`` and a reboot, and
goes with ``remove``. After a daemon's death everything is found again by its name.

    containers/<id>/overlay/upper, work    what a container in a directory wrote; 0700, so that set-user-id
                                           files of images are out of reach of the host's users
    containers/<id>/writable.ext4          what a virtual machine wrote
    containers/.removed-*                  being deleted; what is left over is deleted at the next start
    exec_root/rootfs/<id>                  the mounted overlay
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from proa.host import mount
from proa.model.errors import Internal
from proa.model.ids import ContainerId, Digest
from proa.model.task import BlockRootfs, DirectoryRootfs, Rootfs, RootfsKind
from proa.storage.disks import WRITABLE_BYTES, Disks, is_disk
from proa.storage.layers import Layers
from proa.storage.overlay import attach_overlay

_REMOVED = ".removed-"

log = logging.getLogger(__name__)


class Roots:
    """Root file systems below ``containers`` (durable) and ``exec_root`` (mounts).

    :param tasks: owns what goes on behind: unmounting (10 to 50 ms, for the kernel writes the file system
        out) and deleting. A deletion cut short is taken up at the next start; a mount that a dead daemon left
        is used again by ``prepare``.
    :param writable_bytes: size of a virtual machine's writable disk.
    """

    def __init__(
        self,
        *,
        containers: Path,
        exec_root: Path,
        layers: Layers,
        tasks: TaskGroup,
        writable_bytes: int = WRITABLE_BYTES,
    ) -> None:
        self._containers = containers
        self._mounts = exec_root / "rootfs"
        self._layers = layers
        self._tasks = tasks
        self._disks = Disks(containers, size_bytes=writable_bytes)
        self._releasing: dict[ContainerId, anyio.Event] = {}
        self._in_use: set[ContainerId] = set()  # by what runs from it
        self._holders: Counter[ContainerId] = Counter()  # by who reads or writes its files
        self._let_go: dict[ContainerId, anyio.Event] = {}  # set when the last holder leaves
        self._unmounting = anyio.CapacityLimiter(4)
        self._deleting = anyio.CapacityLimiter(1)  # a disk does not delete faster for being asked twice
        containers.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._mounts.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in containers.glob(_REMOVED + "*"):
            tasks.start_soon(self._delete, leftover)

    async def prepare(self, container_id: ContainerId, layers: Sequence[Digest], kind: RootfsKind) -> Rootfs:
        """Make the root file system ready to run from. Idempotent; keeps what was written before.

        :param layers: lowest first; none at all is an empty image.
        :raises NotFound: a layer is missing.
        :raises Internal: the host cannot mount it.
        """
        if kind is RootfsKind.DIRECTORY:
            path = await self._ensure_mounted(container_id, layers)
            self._in_use.add(container_id)
            return DirectoryRootfs(path=path)
        home = self._containers / container_id
        home.mkdir(mode=0o711, exist_ok=True)
        try:
            return await self._prepare_block(home, layers)
        except OSError as error:
            raise Internal(f"root file system of {container_id}: {error}") from error

    async def release(self, container_id: ContainerId) -> None:
        """Unmount, behind the caller's back; a mount still in use goes with its last user. Idempotent.

        A mount that is held stays: a second one of the same upper directory beside it would corrupt both.
        """
        self._in_use.discard(container_id)
        if self._holders[container_id] > 0:
            return
        if container_id not in self._releasing and self.path_of(container_id).exists():
            self._releasing[container_id] = anyio.Event()
            self._tasks.start_soon(self._unmount, container_id)

    async def release_all_but(self, in_use: Collection[ContainerId]) -> None:
        """Say what runs, at the start of the daemon; unmount what an earlier one had mounted for others."""
        self._in_use = set(in_use)
        for path in self._mounts.iterdir():
            if path.name not in self._in_use:
                await self.release(ContainerId(path.name))

    @contextlib.asynccontextmanager
    async def hold(self, container_id: ContainerId, layers: Sequence[Digest]) -> AsyncIterator[Path]:
        """Have the container's directory mounted for the span of the block, whether it runs or not.

        It may be started and end meanwhile; its removal takes its name at once and its files at the end.

        :raises NotFound, Internal: as ``prepare``.
        """
        self._holders[container_id] += 1
        self._let_go.setdefault(container_id, anyio.Event())
        try:
            yield await self._ensure_mounted(container_id, layers)
        finally:
            self._holders[container_id] -= 1
            if self._holders[container_id] == 0:
                del self._holders[container_id]
                self._let_go.pop(container_id).set()
                if container_id not in self._in_use:
                    await self.release(container_id)

    def upper_of(self, container_id: ContainerId) -> Path:
        """Return the directory of what the container wrote; it is there once it has been prepared."""
        return self._containers / container_id / "overlay" / "upper"

    @contextlib.asynccontextmanager
    async def open_scratch(self, container_id: ContainerId) -> AsyncIterator[Path]:
        """Give an empty directory for the span of the block, which goes with it or with the next start."""
        path = self._containers / f"{_REMOVED}{container_id}-{secrets.token_hex(4)}"
        path.mkdir(mode=0o700)
        upper = path / "upper"
        upper.mkdir(mode=0o755)
        try:
            yield upper
        finally:
            self._tasks.start_soon(self._delete, path)

    @property
    def empty(self) -> Path:
        """An empty directory."""
        return self._layers.empty

    @contextlib.contextmanager
    def open_below(self, layers: Sequence[Digest]) -> Iterator[int]:
        """Give a descriptor of what the layers make together, for the span of the block; -1 without layers.

        :raises NotFound: a layer is missing.
        :raises OSError: the host cannot mount them.
        """
        if not layers:
            yield -1
            return
        with self._layers.open_merged(layers) as merged:
            yield merged

    async def remove(self, container_id: ContainerId) -> None:
        """Unmount, and delete all of the container's files. Returns at once: the files are out of the way,
        their deletion goes on behind. Idempotent."""
        home = self._containers / container_id
        aside = self._containers / f"{_REMOVED}{container_id}-{secrets.token_hex(4)}"
        mounted = self.path_of(container_id)
        self._in_use.discard(container_id)
        with contextlib.suppress(FileNotFoundError):
            home.rename(aside)
        if mounted.exists() or aside.exists():
            self._tasks.start_soon(self._delete, aside, mounted, self._let_go.get(container_id))

    async def writable_bytes(self, container_id: ContainerId) -> int:
        """Return the bytes the container wrote (Engine API, SizeRw); 0 when nothing is there."""
        home = self._containers / container_id
        return await anyio.to_thread.run_sync(
            lambda: (
                _tree_bytes(home / "overlay" / "upper") + self._disks.written_bytes(home / "writable.ext4")
            )
        )

    def path_of(self, container_id: ContainerId) -> Path:
        """Return where the container's directory is mounted while it is prepared."""
        return self._mounts / container_id

    # --- machinery ---

    async def _ensure_mounted(self, container_id: ContainerId, layers: Sequence[Digest]) -> Path:
        while pending := self._releasing.get(container_id):
            await pending.wait()
        target = self.path_of(container_id)
        try:
            if not mount.is_mount_point(target):
                self._mount(self._containers / container_id, layers, target)
        except OSError as error:
            raise Internal(f"root file system of {container_id}: {error}") from error
        return target

    def _mount(self, home: Path, layers: Sequence[Digest], target: Path) -> None:
        home.mkdir(mode=0o711, exist_ok=True)
        target.mkdir(exist_ok=True)
        overlay = home / "overlay"
        overlay.mkdir(mode=0o700, exist_ok=True)
        upper, work = overlay / "upper", overlay / "work"
        for directory in (upper, work):
            directory.mkdir(mode=0o755, exist_ok=True)
        lowers = [self._layers.mount(diff_id) for diff_id in reversed(layers)]
        attach_overlay(lowers or [self._layers.empty], upper=upper, work=work, target=target)

    async def _prepare_block(self, home: Path, layers: Sequence[Digest]) -> BlockRootfs:
        files = tuple(self._layers.get_path(diff_id) for diff_id in layers)
        writable = home / "writable.ext4"
        blank = await self._disks.ensure_blank()
        is_new = not is_disk(writable)
        if is_new:
            await self._disks.make(writable)
        return BlockRootfs(layers=files, writable=writable, blank=blank, is_new=is_new)

    async def _unmount(self, container_id: ContainerId) -> None:
        try:
            with anyio.CancelScope(shield=True):
                path = self.path_of(container_id)
                await anyio.to_thread.run_sync(_unmount, path, limiter=self._unmounting)
        except OSError:
            log.exception("unmounting the root file system of %s", container_id)
        finally:
            self._releasing.pop(container_id).set()

    async def _delete(
        self, path: Path, mounted: Path | None = None, let_go: anyio.Event | None = None
    ) -> None:
        if let_go is not None:
            await let_go.wait()
        try:
            await anyio.to_thread.run_sync(_delete_tree, path, mounted, limiter=self._deleting)
        except OSError:
            log.exception("deleting %s", path)


def _unmount(path: Path) -> None:
    """Unmount and remove the directory; release and remove may be at it at the same time."""
    mount.ensure_unmounted(path)
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()


def _delete_tree(path: Path, mounted: Path | None) -> None:
    if mounted is not None:
        _unmount(mounted)
    # Errors are left to the next start: nobody waits for this, and the name is out of everybody's way.
    shutil.rmtree(path, ignore_errors=True)


def _tree_bytes(root: Path) -> int:
    """Add up the files below ``root``: their length, but of a sparse file what is allocated. Directories
    count nothing and several names of a file count once, as Docker counts."""
    total = 0
    seen: set[int] = set()
    pending = [root]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(Path(entry.path))
                    elif status.st_nlink == 1 or status.st_ino not in seen:
                        seen.add(status.st_ino)
                        total += min(status.st_size, status.st_blocks * 512)
        except FileNotFoundError:
            continue  # it changes while the container runs
    return total

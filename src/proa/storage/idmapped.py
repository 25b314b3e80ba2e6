# SPDX-License-Identifier: Apache-2.0
"""The files of a container whose ids are mapped: its user namespace, its root and its volumes.

On disk everything keeps the ids that the container sees, so that layers, commits and volumes are the same
with and without a map; the mounts translate. overlayfs itself cannot be idmapped, so copies of the mounts
below it are. It makes its own files (whiteouts, what is being copied up) as the host's root, who therefore
needs an id on disk as well: OVERLAY_ROOT, which no container has.

    exec_root/userns/<id>/      0710, the container's root's group: its way in, and nobody else's
        ns                      the user namespace, mounted, which the container joins
        root                    the mounted overlay
        <number>                mounts that the container's are copied from while it is made

Source: mount_setattr(2), "ID-mapped mounts"; Linux, fs/overlayfs (5.19), fs/erofs (5.19), ext4 and tmpfs
(5.12, 6.3); Linux 6.15, "fs: support getting overlayfs layers from detached mounts".
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from proa.host import mount
from proa.host.userns import Extent, bind_namespace, open_user_namespace
from proa.model.errors import Unavailable
from proa.model.ids import ContainerId
from proa.model.task import IdMap
from proa.storage.overlay import attach_overlay

OVERLAY_ROOT = 4294967290  # ids end at 4294967294; those of images end at 2147483647
ROOT = "root"
_NAMESPACE = "ns"
_STAGING = "staging"
_CANNOT = (errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS)


class IdMappedHomes:
    """Places below ``directory``; what an earlier daemon left there is known by its name.

    :param takes_detached: False to attach the mounts below an overlay while it is made, as before 6.15.
    """

    def __init__(self, directory: Path, *, takes_detached: bool = True) -> None:
        self._directory = directory
        self._takes_detached = takes_detached
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._known = {ContainerId(path.name) for path in directory.iterdir()}

    def known(self) -> set[ContainerId]:
        """Return the containers that have, or had, a place here."""
        return set(self._known)

    def root_of(self, container_id: ContainerId) -> Path | None:
        """Return where the root of a container with a place here is mounted; None for another one's."""
        return self._directory / container_id / ROOT if container_id in self._known else None

    def namespace_of(self, container_id: ContainerId) -> Path:
        """Return where the container's user namespace is mounted."""
        return self._directory / container_id / _NAMESPACE

    def forget(self, container_id: ContainerId) -> None:
        """Stop counting on a container; what is mounted is ``take_down``'s matter."""
        self._known.discard(container_id)

    async def open(self, container_id: ContainerId, ids: IdMap) -> None:
        """Make the place and the user namespace. Idempotent.

        :raises Unavailable: the kernel gives no user namespace.
        :raises OSError: the place cannot be made.
        """
        home = self._directory / container_id
        namespace = home / _NAMESPACE
        if mount.is_mount_point(namespace):
            return
        _check_way(self._directory)
        self._known.add(container_id)
        home.mkdir(mode=0o710, exist_ok=True)
        os.chown(home, 0, ids.gid)
        try:
            descriptor = await open_user_namespace([_inside(ids)])
        except OSError as error:
            raise Unavailable(f"cannot make a user namespace: {error.strerror or error}") from error
        try:
            bind_namespace(descriptor, namespace)
        finally:
            os.close(descriptor)

    async def mount_root(
        self, container_id: ContainerId, ids: IdMap, lowers: Sequence[Path], *, upper: Path, work: Path
    ) -> None:
        """Mount the overlay of ``lowers`` (topmost first) and ``upper``, all with the ids on disk mapped.

        :param work: beside ``upper``.
        :raises Unavailable: this kernel, or the file system of ``upper``, cannot.
        :raises OSError: it cannot be mounted.
        """
        home = self._directory / container_id
        (home / ROOT).mkdir(exist_ok=True)
        root = Extent(OVERLAY_ROOT, 0, 0, 1)
        namespace = await open_user_namespace([_inside(ids), root])
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, namespace)
            below = [_mapped(lower, namespace, stack) for lower in lowers]
            above = _mapped(upper.parent, namespace, stack)
            if self._takes_detached:
                try:
                    _attach(below, above, upper.name, work.name, home / ROOT)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    self._takes_detached = False
            if not self._takes_detached:
                staging = home / _STAGING
                staging.mkdir(exist_ok=True)
                stack.callback(_remove, staging)
                for descriptor in (*below, above):
                    mount.move_mount(descriptor, staging)
                try:
                    _attach(below, above, upper.name, work.name, home / ROOT)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    raise Unavailable(
                        "user namespaces need idmapped mounts below overlayfs, which Linux has from 5.19 on; "
                        f"this is {os.uname().release}: {error.strerror}"
                    ) from error

    def map_source(self, container_id: ContainerId, source: Path, number: int) -> Path:
        """Copy the mount of ``source`` with its ids mapped; return where. Undone by ``unmap_sources``.

        :raises Unavailable: the file system, or the kernel, cannot.
        """
        target = self._directory / container_id / str(number)
        with contextlib.ExitStack() as stack:
            namespace = os.open(self.namespace_of(container_id), os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, namespace)
            copy = _mapped(source, namespace, stack, recursive=True)
            _remove(target)
            target.mkdir() if stat.S_ISDIR(os.fstat(copy).st_mode) else target.touch()
            mount.move_mount(copy, target)
        return target

    def unmap_sources(self, container_id: ContainerId) -> None:
        """Take away what ``map_source`` has mounted: the container has copies of its own. Idempotent."""
        for path in _entries(self._directory / container_id):
            if path.name.isdecimal():
                _remove(path)


def take_down(home: Path) -> None:
    """Unmount everything of one container and remove its place. Idempotent; waits for the kernel."""
    for path in _entries(home):
        _remove(path)
    with contextlib.suppress(FileNotFoundError):
        home.rmdir()


def _check_way(directory: Path) -> None:
    """Raise Unavailable when a container's root, who is nobody special to the host, could not get there."""
    for path in (directory, *directory.parents):
        if not path.stat().st_mode & stat.S_IXOTH:
            raise Unavailable(
                f"a container in a user namespace cannot reach {directory}: others may not search {path} "
                f"(chmod o+x {path}, or choose another --exec-root)"
            )


def _inside(ids: IdMap) -> Extent:
    return Extent(0, ids.uid, ids.gid, ids.size)


def _mapped(source: Path, namespace: int, stack: contextlib.ExitStack, *, recursive: bool = False) -> int:
    """Return a descriptor of an idmapped copy of the mount of ``source``, attached nowhere."""
    copy = mount.open_tree(source, recursive=recursive)
    stack.callback(os.close, copy)
    try:
        mount.mount_setattr(
            copy,
            set_attributes=mount.MountAttr.IDMAP,
            propagation=mount.Propagation.PRIVATE,
            user_namespace=namespace,
            recursive=recursive,
        )
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        raise Unavailable(
            f"cannot map the ids of {source}: {_file_system(source)} cannot be idmapped by this kernel "
            f"({os.uname().release})"
        ) from error
    return copy


def _attach(lowers: Sequence[int], above: int, upper: str, work: str, target: Path) -> None:
    there = Path(f"/proc/self/fd/{above}")
    attach_overlay(
        [Path(f"/proc/self/fd/{lower}") for lower in lowers],
        upper=there / upper,
        work=there / work,
        target=target,
    )


def _file_system(path: Path) -> str:
    """Name the file system for the sentence above: the one whose mount point is the longest."""
    whole = path.resolve()
    over = [entry for entry in mount.mount_table() if whole.is_relative_to(entry.mount_point)]
    return max(over, key=lambda entry: len(entry.mount_point.parts)).fs_type if over else "its file system"


def _entries(home: Path) -> list[Path]:
    try:
        return list(home.iterdir())
    except FileNotFoundError:
        return []


def _remove(path: Path) -> None:
    mount.ensure_unmounted(path)
    with contextlib.suppress(FileNotFoundError):
        path.rmdir() if path.is_dir() else path.unlink()

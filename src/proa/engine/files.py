# SPDX-License-Identifier: Apache-2.0
"""Files of containers: copied in and out, listed as changes, exported.

A container's files are there whether it runs or not. Of a running one they are seen as it sees them, with all
that is mounted; of another one with its volumes and bind mounts. The unit's lock is held only until the tree
is open: a copy may take long, and a container may start and end meanwhile.

Source: Engine API, ContainerArchive, ContainerArchiveInfo, PutContainerArchive, ContainerChanges,
ContainerExport.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from proa.engine.container import Container, MountPoint, State
from proa.engine.creation import event_attributes
from proa.engine.events import EventBus
from proa.engine.guest_files import GuestFiles
from proa.engine.isolation import Hulls
from proa.engine.registry import Registry
from proa.engine.unit import Units
from proa.model.errors import Conflict, NotFound
from proa.model.task import RootfsKind
from proa.storage.files import trees
from proa.storage.files.trees import PathMissing, PathStat, Tree, TreeMount, WriteRules
from proa.storage.rootfs import Roots

# What a runtime makes in a container to mount on; Docker hides the same in its init layer.
MOUNT_POINTS = (
    "dev",
    "dev/console",
    "dev/mqueue",
    "dev/pts",
    "dev/shm",
    "etc/hostname",
    "etc/hosts",
    "etc/mtab",
    "etc/resolv.conf",
    "proc",
    "run/.containerenv",
    "sys",
)


class Files:
    """Reads and writes the files of containers. ``ref`` is a name, an id or a unique id prefix."""

    def __init__(
        self,
        *,
        registry: Registry,
        units: Units,
        hulls: Hulls,
        roots: Roots,
        events: EventBus,
        guest: GuestFiles,
    ) -> None:
        self._registry = registry
        self._units = units
        self._hulls = hulls
        self._roots = roots
        self._events = events
        self._guest = guest

    async def stat(self, ref: str, path: str) -> PathStat:
        """Look a path up. Raises NotFound, InvalidParameter."""
        if (guest := self._in_guest(ref)) is not None:
            with _missing(ref, path):
                return await self._guest.stat(guest, path)
        async with self._open_tree(ref) as (_, tree):
            with _missing(ref, path):
                return await trees.stat_path(tree, path)

    @asynccontextmanager
    async def open_archive(self, ref: str, path: str) -> AsyncIterator[tuple[PathStat, AsyncIterator[bytes]]]:
        """Give what is at the path, and its tar. Raises NotFound, InvalidParameter on entering."""
        async with AsyncExitStack() as stack:
            with _missing(ref, path):
                if (guest := self._in_guest(ref)) is not None:
                    container = guest
                    opened = await stack.enter_async_context(self._guest.open_archive(guest, path))
                else:
                    container, tree = await stack.enter_async_context(self._open_tree(ref))
                    opened = await stack.enter_async_context(trees.open_archive(tree, path))
            # Not after the reading: a client may hang up as soon as it has seen the archive's end.
            self._publish("archive-path", container)
            yield opened

    async def put_archive(
        self, ref: str, path: str, stream: AsyncIterator[bytes], *, strict: bool, as_user: bool
    ) -> None:
        """Unpack an archive into a directory.

        :param strict: refuse to replace a directory by something else and the other way round.
        :param as_user: all that is made belongs to the container's user.
        :raises NotFound: the directory is not there.
        :raises InvalidParameter: the archive is broken, or may not go there.
        """
        if (guest := self._in_guest(ref)) is not None:
            container = guest
            rules = _write_rules(container, strict=strict, as_user=as_user, is_running=container.is_alive)
            with _missing(ref, path):
                await self._guest.put_archive(container, path, stream, rules)
        else:
            async with self._open_tree(ref) as (container, tree):
                rules = _write_rules(
                    container, strict=strict, as_user=as_user, is_running=tree.namespace >= 0
                )
                with _missing(ref, path):
                    await trees.put_archive(tree, path, stream, rules)
        self._publish("extract-to-dir", container)

    @asynccontextmanager
    async def open_changes(self, ref: str) -> AsyncIterator[AsyncIterator[tuple[int, str]]]:
        """Give kind (0 modified, 1 added, 2 deleted) and path of what the container changed in its image."""
        async with self.hold(ref) as container, self.open_upper(container) as upper:
            with self._roots.open_below(container.layers) as below:
                async with trees.open_changes(upper, below, ignored=MOUNT_POINTS) as changes:
                    yield changes

    @asynccontextmanager
    async def open_export(self, ref: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give the tar of the whole root file system, without what is mounted in it."""
        async with AsyncExitStack() as stack:
            if (guest := self._in_guest(ref)) is not None:
                container = guest
                opened = self._guest.open_export(guest)
            else:
                container, root = await self._enter(ref, stack)
                opened = trees.open_export(Tree(root=root))
            yield await stack.enter_async_context(opened)
        self._publish("export", container)

    @asynccontextmanager
    async def hold(self, ref: str) -> AsyncIterator[Container]:
        """Have a container's root file system mounted for the span of the block, if the host can mount it.

        Raises Conflict.
        """
        async with AsyncExitStack() as stack:
            if (guest := self._in_guest(ref)) is not None:
                yield guest
            else:
                container, _ = await self._enter(ref, stack)
                yield container

    @asynccontextmanager
    async def open_upper(self, container: Container, *, freeze: bool = False) -> AsyncIterator[Path]:
        """Give the upper directory of a container that is held, or what is the same as it.

        :param freeze: of one that only a guest can reach: let nothing run in it while it is read.
        """
        if self._in_guest(container.id) is None:
            yield self._roots.upper_of(container.id)
            return
        async with self._guest.open_upper(container, freeze=freeze) as upper:
            yield upper

    def is_guests(self, container: Container) -> bool:
        """Whether a container's files are on a disk that only its own kernel mounts."""
        return self._hulls[container.runtime].features.rootfs is RootfsKind.BLOCK

    # --- machinery ---

    async def _enter(self, ref: str, stack: AsyncExitStack) -> tuple[Container, Path]:
        unit = self._units[self._registry.get(ref).id]
        async with unit.lock:
            with self._units.checked(unit):
                container = self._registry.get(unit.id)
                self._check(container)
                root = await stack.enter_async_context(self._roots.hold(container.id, container.layers))
        return container, root

    @asynccontextmanager
    async def _open_tree(self, ref: str) -> AsyncIterator[tuple[Container, Tree]]:
        async with AsyncExitStack() as stack:
            container, root = await self._enter(ref, stack)
            if container.is_alive and (namespace := trees.open_namespace(container.pid, root)) >= 0:
                stack.callback(os.close, namespace)
                yield container, Tree(namespace=namespace)
                return
            mounts = [
                _tree_mount(point) for point in container.mounts if point.type not in ("tmpfs", "image")
            ]
            yield container, Tree(root=root, mounts=mounts)

    def _check(self, container: Container) -> None:
        if container.state in (State.DEAD, State.REMOVING):
            raise Conflict(f"container {container.id} is {container.state.value}")

    def _in_guest(self, ref: str) -> Container | None:
        container = self._registry.get(ref)
        return container if self.is_guests(container) else None

    def _publish(self, action: str, container: Container) -> None:
        self._events.publish("container", action, container.id, event_attributes(container))


def _tree_mount(point: MountPoint) -> TreeMount:
    source = point.source.removesuffix(f"/{point.subpath}") if point.subpath else point.source
    return TreeMount(
        source=Path(source), subpath=point.subpath, target=point.destination, read_only=not point.rw
    )


def _write_rules(container: Container, *, strict: bool, as_user: bool, is_running: bool) -> WriteRules:
    return WriteRules(
        strict=strict,
        user=container.config.user if as_user else "",
        read_only_root=container.host_config.readonly_rootfs,
        volumes=[
            (point.destination, point.rw)
            for point in container.mounts
            if is_running or point.type != "tmpfs"  # which is there only while it runs
        ],
    )


@contextlib.contextmanager
def _missing(ref: str, path: str) -> Iterator[None]:
    try:
        yield
    except PathMissing as error:
        raise _not_found(ref, path) from error


def _not_found(ref: str, path: str) -> NotFound:
    return NotFound(f"Could not find the file {path} in container {ref}")

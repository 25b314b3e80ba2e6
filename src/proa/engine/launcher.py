# SPDX-License-Identifier: Apache-2.0
"""Gets one container running, and takes down all that it had when it ends.

The order is root file system, network, task; each step is undone when a later one fails, in reverse. Callers
hold the unit's lock and keep the record; here is only what happens between them and the drivers.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import anyio.to_thread

from proa.engine.container import Container, MountPoint
from proa.engine.isolation import Hulls
from proa.engine.links import host_names, link_env, linked, live_links
from proa.engine.live_networks import LiveNetworks
from proa.engine.mounts import ALONE
from proa.engine.networking import endpoint_requests, endpoint_sysctls
from proa.engine.ports import parse_ports
from proa.engine.registry import Registry
from proa.engine.taskspec import build_task_spec
from proa.engine.unit import Unit
from proa.host.cgroup import find_cgroups
from proa.model.errors import (
    EngineError,
    FeatureMissing,
    InvalidParameter,
    NotFound,
    WrongState,
)
from proa.model.ids import Digest
from proa.model.network import Endpoint, PublishedPort
from proa.model.task import BlockRootfs, Namespaces, NetworkAttachment, NetworkKind, TaskSpec
from proa.network.attach import Attached
from proa.network.files import addresses_of, hosts_change, peer_moved
from proa.network.networks import Networks
from proa.runtime.seam import FileTask, Runtime, SavingRuntime, Task
from proa.storage.rootfs import Roots
from proa.storage.volumes import Volumes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A running task and where it is on the network."""

    task: Task
    endpoints: tuple[Endpoint, ...]
    ports: tuple[PublishedPort, ...]


class Launcher:
    """Starts and takes down tasks."""

    def __init__(
        self, *, registry: Registry, hulls: Hulls, roots: Roots, networks: Networks, volumes: Volumes
    ) -> None:
        self._registry = registry
        self._hulls = hulls
        self._roots = roots
        self._networks = networks
        self._volumes = volumes
        self.live_networks = LiveNetworks(networks, hulls)

    async def launch(self, unit: Unit, container: Container) -> Launched:
        """Make and start the task; the clients attached ahead are connected before the program begins.

        Raises StartFailed, InvalidParameter, Conflict and what the drivers raise; then nothing is left.
        """
        runtime = self._hulls[container.runtime]
        peers = link_env(linked(container, self._registry), container.name) if container.links else ()
        async with AsyncExitStack() as starting, AsyncExitStack() as undo:
            undo.push_async_callback(self._leave_volumes, container)
            mounts = [await self._ready(point, starting) for point in container.mounts]
            rootfs = await self._roots.prepare(
                container.id, container.layers, runtime.features.rootfs, ids=container.ids
            )
            undo.push_async_callback(self._roots.release, container.id)
            if container.ids is not None:
                mounts = self._map_sources(container, mounts, starting)
            attached = await self._attach(container, runtime.features.network)
            undo.push_async_callback(self._networks.detach, container.id)
            spec = build_task_spec(
                replace(container, mounts=tuple(mounts)),
                rootfs=rootfs,
                network=attached.attachment,
                files=self._etc_files(container, attached.endpoints),
                namespaces=self._namespaces(container),
                linked=peers,
                interface_sysctls=endpoint_sysctls(container.networking, attached.attachment.interfaces),
            )
            if attached.attachment.joins is not None:  # whose hosts file it has
                spec = replace(spec, hostname=self._registry.get(attached.attachment.joins).config.hostname)
            task = await runtime.create(spec)
            undo.push_async_callback(task.delete)
            await unit.bind_pending(task.attach)
            await task.start()
            undo.pop_all()
        return Launched(task=task, endpoints=attached.endpoints, ports=attached.ports)

    async def go_on(
        self, container: Container, begin: Callable[[Runtime, TaskSpec], Awaitable[Task]]
    ) -> Launched:
        """Make a task whose program does not begin but goes on from where another was.

        :param begin: makes it, given what was made for it. On failure nothing is left.

        Raises what the drivers raise.
        """
        runtime = self._hulls[container.runtime]
        async with AsyncExitStack() as undo:
            rootfs = await self._roots.prepare(container.id, container.layers, runtime.features.rootfs)
            undo.push_async_callback(self._roots.release, container.id)
            attached = await self._attach(container, runtime.features.network)
            undo.push_async_callback(self._networks.detach, container.id)
            spec = build_task_spec(
                container,
                rootfs=rootfs,
                network=attached.attachment,
                files=self._etc_files(container, attached.endpoints),
                namespaces=Namespaces(),
            )
            task = await begin(runtime, spec)
            undo.pop_all()
        return Launched(task=task, endpoints=attached.endpoints, ports=attached.ports)

    async def layer_files(self, container: Container) -> Mapping[Digest, Path]:
        """Return where the layers of a container's image are, if its hull reads them as files.

        Raises NotFound.
        """
        kind = self._hulls[container.runtime].features.rootfs
        rootfs = await self._roots.prepare(container.id, container.layers, kind)
        files = rootfs.layers if isinstance(rootfs, BlockRootfs) else ()
        return dict(zip(container.layers, files, strict=False))

    def get_forking(self, container: Container) -> SavingRuntime:
        """Return what can copy or save a container while it runs. Raises FeatureMissing."""
        runtime = self._hulls[container.runtime]
        if not isinstance(runtime, SavingRuntime):
            raise FeatureMissing(
                container.runtime,
                "copying or saving a running container",
                "only what has a virtual machine of its own can be copied while it runs (--isolation vm)",
            )
        shared = [point.destination for point in container.mounts if point.type != "tmpfs"]
        if shared:
            raise FeatureMissing(
                container.runtime,
                f"copying or saving a running container with a volume or bind mount ({', '.join(shared)})",
                "what its programs have open there is known to the server of these files alone",
            )
        if container.host_config.privileged:
            raise FeatureMissing(
                container.runtime,
                "copying or saving a running privileged container",
                "the modules of its kernel come from a server of files, too",
            )
        return runtime

    @contextlib.asynccontextmanager
    async def serve_files(self, container: Container, *, mounted: bool) -> AsyncIterator[FileTask]:
        """Give a task of a container that does not run, for its files alone: it has the disks and the
        volumes, no network, and its program never begins. The caller holds the unit's lock.

        :param mounted: with its volumes and bind mounts.

        Raises StartFailed, FeatureMissing and what the drivers raise; at the end what was written is on disk.
        """
        runtime = self._hulls[container.runtime]
        async with AsyncExitStack() as starting, AsyncExitStack() as undo:
            undo.push_async_callback(self._leave_volumes, container)
            await runtime.forget(container.id)  # a daemon that died while it copied may have left one
            wanted = [point for point in container.mounts if mounted and point.type != "tmpfs"]
            points = [await self._ready(point, starting) for point in wanted]
            rootfs = await self._roots.prepare(container.id, container.layers, runtime.features.rootfs)
            undo.push_async_callback(self._roots.release, container.id)
            spec = build_task_spec(
                replace(container, mounts=tuple(points)),
                rootfs=rootfs,
                network=NetworkAttachment(),
                files={},
                namespaces=Namespaces(),
            )
            task = await runtime.create(replace(spec, log_path=Path("/dev/null")))
            undo.push_async_callback(task.delete, keep_writes=False)
            if not isinstance(task, FileTask):
                raise FeatureMissing(container.runtime, "copying files", "its tasks do not serve them")
            try:
                yield task
            finally:  # what was written before a fault stays, as in a container
                with anyio.CancelScope(shield=True), contextlib.suppress(EngineError):
                    await task.sync()

    async def take_down(self, container: Container, task: Task | None) -> None:
        """Free all that a container had while it ran. Every step is tried, whatever the others do."""
        keep = not container.host_config.auto_remove
        with anyio.CancelScope(shield=True):
            steps: list[Callable[[], Awaitable[None]]] = [
                (lambda: task.delete(keep_writes=keep)) if task else lambda: self._forget(container),
                lambda: self._networks.detach(container.id),
                lambda: self._roots.release(container.id),
                lambda: self._leave_volumes(container),
            ]
            for step in steps:
                try:
                    await step()
                except (EngineError, OSError):
                    log.exception("taking down container %s", container.id)

    async def _ready(self, point: MountPoint, starting: AsyncExitStack) -> MountPoint:
        """See that the volume behind a mount is there, and hold what lies at its subpath during the start; so
        with an image, and with what is bound without the mounts below it."""
        if point.type == "image":
            image = starting.enter_context(self._volumes.pinned_image(point.layers, point.subpath))
            return replace(point, source=str(image))
        if ALONE in point.options and point.type == "bind":
            alone = starting.enter_context(self._volumes.pinned_alone(Path(point.source)))
            options = tuple(option for option in point.options if option != ALONE)
            return replace(point, source=str(alone), options=options)
        if point.type != "volume" or not point.name:
            return point
        await self._volumes.mount(point.name)
        if not point.subpath:
            return point
        source = starting.enter_context(self._volumes.pinned(point.name, point.subpath))
        return replace(point, source=str(source))

    def _map_sources(
        self, container: Container, mounts: Sequence[MountPoint], starting: AsyncExitStack
    ) -> list[MountPoint]:
        """Have the ids of volumes, and of what is to be mapped, seen as the container's own."""
        idmapped = self._roots.idmapped
        starting.callback(idmapped.unmap_sources, container.id)
        return [
            replace(point, source=str(idmapped.map_source(container.id, Path(point.source), number)))
            if point.is_idmapped
            else point
            for number, point in enumerate(mounts)
        ]

    async def _leave_volumes(self, container: Container) -> None:
        """Unmount what no other container that runs, or is about to, has in use."""
        others = [
            other
            for other in self._registry
            if other.id != container.id and (other.is_alive or other.launching)
        ]
        used = {point.name for other in others for point in other.mounts}
        for name in {point.name for point in container.mounts if point.type == "volume"} - used:
            with contextlib.suppress(NotFound):
                await self._volumes.unmount(name)

    async def update_files(self, task: Task, before: Container, after: Container) -> None:
        """Make a running container's /etc/hosts and /etc/resolv.conf tell of the networks it is on now.

        What the user has written into them stays.
        """
        old, new = self._etc_files(before, before.endpoints), self._etc_files(after, after.endpoints)
        if "/etc/hosts" in new:
            lines = hosts_change(old["/etc/hosts"], new["/etc/hosts"])
            await task.edit_file("/etc/hosts", lines)
        if "/etc/resolv.conf" in new:
            was, will_be = old["/etc/resolv.conf"], new["/etc/resolv.conf"]
            await task.edit_file("/etc/resolv.conf", lambda found: will_be if found == was else found)

    async def tell_of_peer(self, task: Task, container: Container, peer: Container) -> None:
        """Make a running container's /etc/hosts tell where a peer is that it links to."""
        for link, found, endpoint in live_links(container, self._registry):
            if found.id == peer.id:
                change = peer_moved(host_names(link, peer), addresses_of([endpoint]))
                await task.edit_file("/etc/hosts", change)

    async def _forget(self, container: Container) -> None:
        runtime = self._hulls.runtimes.get(container.runtime)
        if runtime is not None:
            await runtime.forget(container.id)
        # A runtime knows the cgroup from the exec root, which may be gone while the host has not rebooted.
        for cgroup in await anyio.to_thread.run_sync(find_cgroups, container.id):
            await cgroup.delete()

    async def _attach(self, container: Container, kind: NetworkKind) -> Attached:
        mode = container.host_config.network_mode
        if mode == "host":
            return _attached(NetworkAttachment(host=True))
        if mode.startswith("container:"):
            return _attached(self._joined(mode.removeprefix("container:"), kind))
        return await self._networks.attach(
            container.id,
            kind=kind,
            endpoints=endpoint_requests(container.networking),
            ports=() if mode == "none" else parse_ports(container.config, container.host_config),
            container_name=container.name,
            hostname=container.config.hostname,
            dns=container.host_config.dns or (),
            user_namespace=self._roots.idmapped.namespace_of(container.id) if container.ids else None,
        )

    def _joined(self, ref: str, kind: NetworkKind) -> NetworkAttachment:
        other = self._running(ref, "network")
        if other.host_config.network_mode == "host":
            return NetworkAttachment(host=True)
        if other.host_config.network_mode.startswith("container:"):
            return self._joined(other.host_config.network_mode.removeprefix("container:"), kind)
        if kind is NetworkKind.TAP:
            return NetworkAttachment(joins=other.id)
        attached = self._networks.find(other.id)
        if attached is None or attached.attachment.namespace is None:
            raise InvalidParameter(f"container {ref} has no network namespace that could be joined")
        return NetworkAttachment(namespace=attached.attachment.namespace)

    def _running(self, ref: str, what: str) -> Container:
        other = self._registry.get(ref)
        if not other.is_alive:
            raise WrongState(f"cannot join {what} namespace of a non running container: container {ref}")
        return other

    def _namespaces(self, container: Container) -> Namespaces:
        host = container.host_config
        return Namespaces(
            pid=self._namespace("pid", host.pid_mode),
            ipc=self._namespace("ipc", host.ipc_mode),
            uts="host" if host.uts_mode == "host" else "",
            cgroup="host" if host.cgroupns_mode == "host" else "",
            user=self._user_namespace(container) if container.ids else "",
        )

    def _user_namespace(self, container: Container) -> str:
        """Return the one to join: that of a container with which another namespace is shared, or its own."""
        host = container.host_config
        for mode in (host.network_mode, host.pid_mode, host.ipc_mode):
            kind, _, ref = mode.partition(":")
            if kind == "container":
                return f"/proc/{self._registry.get(ref).pid}/ns/user"
        return str(self._roots.idmapped.namespace_of(container.id))

    def _namespace(self, what: str, mode: str) -> str:
        if mode == "host":
            return "host"
        if mode.startswith("container:"):
            other = self._running(mode.removeprefix("container:"), what)
            return f"/proc/{other.pid}/ns/{what}"
        return ""

    def _etc_files(self, container: Container, endpoints: Sequence[Endpoint]) -> dict[str, bytes]:
        host, config = container.host_config, container.config
        hostname = config.hostname
        if host.network_mode.startswith("container:"):
            other = self._registry.get(host.network_mode.removeprefix("container:"))
            hostname, endpoints = other.config.hostname, other.endpoints
        files = {
            "/etc/hostname": f"{hostname}\n".encode(),
            "/etc/hosts": self._networks.hosts_file(
                endpoints,
                hostname=hostname,
                domainname=config.domainname,
                extra_hosts=host.extra_hosts or (),
                on_host=host.network_mode == "host",
                links=[
                    (host_names(link, peer), endpoint)
                    for link, peer, endpoint in live_links(container, self._registry)
                ],
            ),
            "/etc/resolv.conf": self._networks.resolv_conf(
                endpoints,
                dns=host.dns or (),
                search=host.dns_search or (),
                options=host.dns_options or (),
            ),
        }
        targets = {point.destination for point in container.mounts}
        return {path: content for path, content in files.items() if path not in targets}


def _attached(attachment: NetworkAttachment) -> Attached:
    return Attached(attachment=attachment, endpoints=(), ports=())

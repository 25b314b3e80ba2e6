# SPDX-License-Identifier: Apache-2.0
"""The real engine on a real database, with fakes of what needs root beneath it.

``Ground`` is what outlives a daemon (the files, the world of processes, mounts and networks attached);
``Ground.daemon`` is one daemon on it. Leaving its block, or a step it does not live to take, is its death.
"""

from __future__ import annotations

import builtins
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from proa.build.cache import BuildCache
from proa.distribution.git import Git
from proa.distribution.registries import Registries
from proa.engine.building.trees import BuildTrees
from proa.engine.container import Container
from proa.engine.engine import Engine, Stores, build_engine
from proa.engine.events import Event, EventBus
from proa.engine.isolation import Hulls
from proa.engine.system import HostFacts
from proa.host.database import Database, Parameters
from proa.image.images import Images
from proa.model.config import ContainerConfig, HostConfig, NetworkingConfig
from proa.model.errors import Forbidden, NameInUse, NoSuchImage, NoSuchNetwork
from proa.model.ids import ContainerId, Digest, NetworkId, new_id
from proa.model.image import Image
from proa.model.network import Endpoint, EndpointRequest, Network, NetworkRequest, PublishedPort
from proa.model.registry import RegistrySettings
from proa.model.task import DirectoryRootfs, IdMap, Interface, NetworkAttachment, NetworkKind, RootfsKind
from proa.model.volume import Volume
from proa.network.attach import Attached
from proa.network.files import addresses_of
from proa.network.networks import Networks
from proa.storage.layers import Layers
from proa.storage.rootfs import Roots
from proa.storage.snapshots import Snapshots
from proa.storage.volumes import Volumes
from tests.support.fake_runtime import FEATURES, FakeForkingRuntime, FakeRuntime, World
from tests.support.stage import Killed, Stage

TIMEOUT_S = 5.0  # a thousand times what a test takes

IMAGE = Image(
    id=Digest("sha256:" + "1a" * 32),
    layers=(Digest("sha256:" + "2b" * 32),),
    config=ContainerConfig(cmd=["sh"], env=["PATH=/bin"], labels={"from": "image"}),
    architecture="amd64",
    os="linux",
    size=1000,
    references=("busybox:latest",),
)


class StagedDatabase(Database):
    """A database whose every change is a step once it has a ``stage``."""

    stage: Stage | None = None

    def execute(self, statement: str, parameters: Parameters = ()) -> int:
        if self.stage is not None:
            self.stage.act_now(f"db {statement.split()[0].lower()}")
        return super().execute(statement, parameters)


class FakeImages:
    """Images that are simply there. ``kept``: containers whose hold on their image was not released."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.images = [IMAGE]

    def get(self, ref: str) -> Image:
        for image in self.images:
            if ref == image.id or ref in image.references or f"{ref}:latest" in image.references:
                return image
        raise NoSuchImage(ref)

    def list(self, *, all: bool = False, filters: Mapping[str, Sequence[str]] | None = None) -> list[Image]:
        return list(self.images)

    async def release(self, container_id: str) -> None:
        await self._stage.act("images.release")

    async def release_all_but(self, container_ids: Collection[str]) -> None:
        await anyio.lowlevel.checkpoint()


class FakeRoots:
    """Root file systems as two sets of ids: those with a home on disk and those mounted."""

    def __init__(self, ground: Ground, stage: Stage) -> None:
        self._ground = ground
        self._stage = stage

    async def prepare(
        self,
        container_id: ContainerId,
        layers: Sequence[Digest],
        kind: RootfsKind,
        *,
        ids: IdMap | None = None,
    ) -> DirectoryRootfs:
        await self._stage.act("roots.prepare")
        self._ground.homes.add(container_id)
        self._ground.mounted.add(container_id)
        return DirectoryRootfs(path=Path("/rootfs") / container_id)

    async def release(self, container_id: ContainerId) -> None:
        await self._stage.act("roots.release")
        self._ground.mounted.discard(container_id)

    async def release_all_but(self, in_use: Collection[ContainerId]) -> None:
        await anyio.lowlevel.checkpoint()
        self._ground.mounted &= set(in_use)

    @asynccontextmanager
    async def hold(
        self, container_id: ContainerId, layers: Sequence[Digest], ids: IdMap | None = None
    ) -> AsyncIterator[Path]:
        await self._stage.act("roots.hold")
        yield Path("/rootfs") / container_id

    async def remove(self, container_id: ContainerId) -> None:
        await self._stage.act("roots.remove")
        self._ground.mounted.discard(container_id)
        self._ground.homes.discard(container_id)

    async def writable_bytes(self, container_id: ContainerId) -> int:
        await anyio.lowlevel.checkpoint()
        return 10 if container_id in self._ground.homes else 0


class StagedVolumes(Volumes):
    """The real volumes, without filling them from layers."""

    def __init__(self, db: Database, root: Path, stage: Stage) -> None:
        super().__init__(db, root, layers=cast(Layers, None))
        self._stage = stage

    async def copy_up(self, volume: Volume, layers: Sequence[Digest], path: str) -> None:
        await self._stage.act("volumes.copy_up")


class FakeNetworks:
    """Networks as records; an attachment gets the next address."""

    def __init__(self, ground: Ground, stage: Stage) -> None:
        self._ground = ground
        self._stage = stage

    def get(self, ref: str) -> Network:
        for network in self._ground.networks.values():
            if ref in (network.name, network.id) or (ref and network.id.startswith(ref)):
                return network
        raise NoSuchNetwork(ref)

    def list(self) -> list[Network]:
        return list(self._ground.networks.values())

    async def create(self, request: NetworkRequest) -> Network:
        await anyio.lowlevel.checkpoint()
        if request.name in self._ground.networks:
            raise NameInUse(f"network with name {request.name} already exists")
        network = _network(request.name, "bridge", labels=request.labels)
        self._ground.networks[network.name] = network
        return network

    async def remove(self, ref: str) -> Network:
        await anyio.lowlevel.checkpoint()
        network = self.get(ref)
        if network.name in ("bridge", "host", "none"):
            raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
        return self._ground.networks.pop(network.name)

    def endpoints(self, network_id: NetworkId) -> builtins.list[Endpoint]:
        everything = [one for attached in self._ground.attached.values() for one in attached.endpoints]
        return [one for one in everything if one.network_id == network_id]

    async def attach(
        self,
        container_id: str,
        *,
        kind: NetworkKind,
        endpoints: Sequence[EndpointRequest],
        ports: Sequence[PublishedPort],
        container_name: str,
        hostname: str,
        dns: Sequence[str] = (),
        user_namespace: Path | None = None,
    ) -> Attached:
        await self._stage.act("networks.attach")
        made = [self._endpoint(container_id, container_name, wanted) for wanted in endpoints]
        attached = Attached(
            attachment=NetworkAttachment(
                namespace=Path("/netns") / container_id,
                interfaces=tuple(
                    Interface(
                        name=f"eth{number}",
                        device=f"pv{number}",
                        network_id=one.network_id,
                        mac=one.mac,
                        address=one.address,
                        gateway=one.gateway,
                    )
                    for number, one in enumerate(made)
                ),
            ),
            endpoints=tuple(made),
            ports=tuple(replace(port, host_port=port.host_port or 32768) for port in ports),
        )
        self._ground.attached[container_id] = attached
        return attached

    def check(self, container_id: str, wanted: EndpointRequest) -> None:
        self.get(wanted.network)

    async def connect(
        self, container_id: str, wanted: EndpointRequest, ports: Sequence[PublishedPort]
    ) -> Attached:
        await self._stage.act("networks.connect")
        old = self._ground.attached[container_id]
        made = self._endpoint(container_id, old.endpoints[0].name, wanted)
        self._ground.attached[container_id] = new = replace(old, endpoints=(*old.endpoints, made))
        return new

    async def disconnect(self, container_id: str, network_id: NetworkId) -> Attached:
        await self._stage.act("networks.disconnect")
        old = self._ground.attached[container_id]
        kept = tuple(one for one in old.endpoints if one.network_id != network_id)
        self._ground.attached[container_id] = new = replace(old, endpoints=kept)
        return new

    async def detach(self, container_id: str) -> None:
        await self._stage.act("networks.detach")
        self._ground.attached.pop(container_id, None)

    def find(self, container_id: str) -> Attached | None:
        return self._ground.attached.get(container_id)

    def rename(self, container_id: str, name: str) -> tuple[Endpoint, ...]:
        attached = self._ground.attached.get(container_id)
        if attached is None:
            return ()
        endpoints = tuple(replace(one, name=name) for one in attached.endpoints)
        self._ground.attached[container_id] = replace(attached, endpoints=endpoints)
        return endpoints

    async def cleanup(self, known_ids: Collection[str]) -> None:
        await anyio.lowlevel.checkpoint()
        for container_id in set(self._ground.attached) - set(known_ids):
            del self._ground.attached[container_id]

    def resolv_conf(self, endpoints: Sequence[Endpoint], **options: object) -> bytes:
        return b"nameserver 192.0.2.1\n"

    def hosts_file(self, endpoints: Sequence[Endpoint], **options: object) -> bytes:
        peers = cast(Sequence[tuple[str, Endpoint]], options.get("links", ()))
        return b"".join(f"{addresses_of([one])[0]}\t{names}\n".encode() for names, one in peers)

    def _endpoint(self, container_id: str, name: str, wanted: EndpointRequest) -> Endpoint:
        self._ground.addresses += 1
        return Endpoint(
            container_id=container_id,
            network_id=self.get(wanted.network).id,
            endpoint_id=new_id(),
            name=name,
            mac=wanted.mac or f"02:42:ac:11:00:{self._ground.addresses % 256:02x}",
            address=IPv4Interface(
                f"172.17.{self._ground.addresses // 256}.{self._ground.addresses % 256}/16"
            ),
            gateway=IPv4Address("172.17.0.1"),
        )


@dataclass(slots=True, kw_only=True, eq=False)
class Daemon:
    """One daemon: its engine, and the stage on which its steps are told."""

    engine: Engine
    stage: Stage
    bus: EventBus
    world: World
    tasks: TaskGroup

    @property
    def events(self) -> list[Event]:
        """Everything published so far."""
        return self.bus.recent()

    @property
    def actions(self) -> list[str]:
        """Type and action of everything published so far."""
        return [f"{event.type} {event.action}" for event in self.events]

    async def create(
        self,
        name: str | None = "web",
        *,
        host: HostConfig | None = None,
        networking: NetworkingConfig | None = None,
        **config: Any,  # Any: fields of ContainerConfig
    ) -> Container:
        """Make a container of the one image."""
        wanted = ContainerConfig(**{"image": "busybox", **config})
        created = await self.engine.containers.create(
            name, wanted, host or HostConfig(), networking or NetworkingConfig()
        )
        return self.engine.containers.get(created.id)

    async def run(self, name: str | None = "web", **options: Any) -> Container:  # Any: as in create
        """Make and start a container."""
        container = await self.create(name, **options)
        await self.engine.containers.start(container.id)
        return self.engine.containers.get(container.id)

    def get(self, ref: str) -> Container:
        return self.engine.containers.get(ref)


@dataclass(slots=True, eq=False)
class Ground:
    """What outlives a daemon."""

    root: Path
    world: World = field(default_factory=World)
    networks: dict[str, Network] = field(default_factory=dict)
    attached: dict[str, Attached] = field(default_factory=dict)
    mounted: set[str] = field(default_factory=set)
    homes: set[str] = field(default_factory=set)
    addresses: int = 1

    def __post_init__(self) -> None:
        drivers = {"bridge": "bridge", "host": "host", "none": "null"}
        self.networks.update({name: _network(name, driver) for name, driver in drivers.items()})

    @property
    def remains(self) -> dict[str, set[str]]:
        """What is there of containers apart from their records and homes: {} when nothing runs."""
        found: dict[str, Collection[str]] = {
            "tasks": set(self.world.traces),
            "attached": set(self.attached),
            "mounted": self.mounted,
        }
        return {what: set(ids) for what, ids in found.items() if ids}

    @asynccontextmanager
    async def daemon(
        self,
        *,
        kill_at: int | None = None,
        restore: bool = True,
        runtimes: Mapping[str, FakeRuntime] | None = None,
    ) -> AsyncIterator[Daemon]:
        """Run a daemon for the span of the block; with ``restore`` it looks first for what there is."""
        stage = Stage(kill_at=kill_at)
        db = StagedDatabase(self.root / "engine.db")
        try:
            # A lock never released or a stream never ended must fail the test, not hang it.
            with anyio.fail_after(TIMEOUT_S), db:
                async with anyio.create_task_group() as tasks:
                    daemon = self._build(db, stage, tasks, runtimes)
                    db.stage = stage
                    if restore:
                        await daemon.engine.restore.find_all()
                    try:
                        yield daemon
                    finally:
                        stage.dead = True
                        tasks.cancel_scope.cancel()
        except* Killed:
            pass

    def _build(
        self, db: Database, stage: Stage, tasks: TaskGroup, runtimes: Mapping[str, FakeRuntime] | None
    ) -> Daemon:
        bus = EventBus()
        names = runtimes or {
            "crun": FakeRuntime(self.world, stage, name="crun", features=FEATURES),
            "vm": FakeForkingRuntime(self.world, stage, name="vm", features=FEATURES),
        }
        stores = Stores(
            db=db,
            images=cast(Images, FakeImages(stage)),
            roots=cast(Roots, FakeRoots(self, stage)),
            volumes=StagedVolumes(db, self.root / "volumes", stage),
            networks=cast(Networks, FakeNetworks(self, stage)),
            registries=Registries(RegistrySettings()),
            containers_dir=self.root / "containers",
            build_cache=cast(BuildCache, None),
            build_trees=cast(BuildTrees, None),
            context_layers=cast(Layers, None),
            git=Git(),
            snapshots=Snapshots(self.root / "snapshots"),
        )
        hulls = Hulls(
            names, container_runtime="crun", default_isolation="container", missing={"runc": "gone"}
        )
        facts = HostFacts(engine_id="id", data_root=self.root, cgroup_version="2")
        engine = build_engine(stores, hulls=hulls, events=bus, facts=facts, tasks=tasks)
        return Daemon(engine=engine, stage=stage, bus=bus, world=self.world, tasks=tasks)


async def settle() -> None:
    """Let every task go on until it waits for something."""
    for _ in range(30):
        await anyio.lowlevel.checkpoint()


def _network(name: str, driver: str, labels: Mapping[str, str] | None = None) -> Network:
    return Network(
        id=NetworkId(new_id()),
        name=name,
        driver=driver,
        created_at_ns=time.time_ns(),
        subnet=IPv4Network("172.17.0.0/16") if driver == "bridge" else None,
        labels=labels or {},
    )

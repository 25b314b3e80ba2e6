# SPDX-License-Identifier: Apache-2.0
"""The engine: every use case of the API by resource, put together from its collaborators."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from anyio.abc import TaskGroup

from proa.build.cache import BuildCache
from proa.distribution.git import Git
from proa.distribution.registries import Registries as RegistryClient
from proa.engine.building.bases import Bases
from proa.engine.building.build import Tools as BuildTools
from proa.engine.building.builds import Builds
from proa.engine.building.context import Contexts
from proa.engine.building.repositories import Repositories
from proa.engine.building.running import Runner
from proa.engine.building.trees import BuildTrees
from proa.engine.commits import Commits
from proa.engine.containers import Containers
from proa.engine.creation import Creation
from proa.engine.events import EventBus
from proa.engine.execs import Execs
from proa.engine.files import Files
from proa.engine.forking import Forking
from proa.engine.guest_files import GuestFiles
from proa.engine.health_checks import HealthChecks
from proa.engine.images import Images
from proa.engine.isolation import Hulls
from proa.engine.launcher import Launcher
from proa.engine.lifecycle import Lifecycle
from proa.engine.log_files import LogKeeper
from proa.engine.log_shipping import LogShipping
from proa.engine.machines.machines import Machines
from proa.engine.networks import Networks
from proa.engine.queries import Queries
from proa.engine.registries import Registries
from proa.engine.registry import Registry
from proa.engine.removal import Removal
from proa.engine.restore import Restore
from proa.engine.snapshots import Snapshots
from proa.engine.system import HostFacts, System
from proa.engine.unit import Units
from proa.engine.updates import Updates
from proa.engine.userns import UserNamespaces
from proa.engine.volumes import Volumes
from proa.host.database import Database
from proa.image.images import Images as ImageStore
from proa.model.config import LogConfig
from proa.network.networks import Networks as NetworkStore
from proa.storage.layers import Layers
from proa.storage.rootfs import Roots
from proa.storage.snapshots import Snapshots as SnapshotStore
from proa.storage.volumes import Volumes as VolumeStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What the API's routers are given."""

    containers: Containers
    execs: Execs
    files: Files
    commits: Commits
    images: Images
    volumes: Volumes
    networks: Networks
    registries: Registries
    builds: Builds
    system: System
    restore: Restore
    forking: Forking
    snapshots: Snapshots
    machines: Machines | None = None  # the daemon adds them


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """What lies below the engine, made by the daemon."""

    db: Database
    images: ImageStore
    roots: Roots
    volumes: VolumeStore
    networks: NetworkStore
    registries: RegistryClient
    containers_dir: Path
    build_cache: BuildCache
    build_trees: BuildTrees
    context_layers: Layers
    git: Git
    snapshots: SnapshotStore
    userns: UserNamespaces = field(default_factory=UserNamespaces)


def build_engine(
    stores: Stores, *, hulls: Hulls, events: EventBus, facts: HostFacts, tasks: TaskGroup
) -> Engine:
    """Wire the use cases. ``tasks`` owns what watches the running containers."""
    registry, units = Registry(stores.db), Units()
    execs = Execs(registry=registry, units=units, events=events, tasks=tasks)
    shipping = LogShipping(registry=registry, units=units, tasks=tasks)
    launcher = _build_launcher(stores, registry=registry, hulls=hulls)
    lifecycle = _build_lifecycle(registry, units, launcher, execs, shipping, events, tasks)
    removal = _build_removal(stores, registry, units, lifecycle, events)
    forking = _build_forking(stores, registry, units, launcher, lifecycle, removal, events)
    queries = Queries(registry=registry, units=units, images=stores.images, roots=stores.roots)
    removal.on_removed = execs.forget_container
    creation = _build_creation(stores, registry, hulls, events, facts.default_log)
    images = Images(store=stores.images, registry=registry, events=events, snapshots=stores.snapshots)
    registries = Registries(client=stores.registries, images=stores.images, events=events)
    volumes = Volumes(store=stores.volumes, registry=registry, events=events)
    guest_files = GuestFiles(registry=registry, units=units, launcher=launcher, roots=stores.roots)
    files = Files(
        registry=registry, units=units, hulls=hulls, roots=stores.roots, events=events, guest=guest_files
    )
    builds = _make_builds(stores, hulls, registry, units, lifecycle, removal, registries, events, files)
    return Engine(
        containers=Containers(
            registry=registry,
            units=units,
            creation=creation,
            lifecycle=lifecycle,
            removal=removal,
            queries=queries,
            updates=Updates(
                registry=registry, units=units, hulls=hulls, networks=stores.networks, events=events
            ),
            execs=execs,
            events=events,
        ),
        execs=execs,
        files=files,
        commits=Commits(
            files=files, lifecycle=lifecycle, images=stores.images, roots=stores.roots, events=events
        ),
        images=images,
        volumes=volumes,
        networks=Networks(
            store=stores.networks, registry=registry, units=units, launcher=launcher, events=events
        ),
        registries=registries,
        builds=builds,
        system=System(
            registry=registry,
            builds=builds,
            hulls=hulls,
            images=images,
            volumes=volumes,
            registries=registries,
            queries=queries,
            events=events,
            facts=facts,
        ),
        restore=Restore(
            registry=registry,
            units=units,
            hulls=hulls,
            lifecycle=lifecycle,
            removal=removal,
            networks=stores.networks,
            images=stores.images,
            roots=stores.roots,
            shipping=shipping,
        ),
        forking=forking,
        snapshots=_build_snapshots(stores, registry, hulls, launcher, forking),
    )


def _build_removal(
    stores: Stores, registry: Registry, units: Units, lifecycle: Lifecycle, events: EventBus
) -> Removal:
    removal = Removal(
        registry=registry,
        units=units,
        lifecycle=lifecycle,
        roots=stores.roots,
        volumes=stores.volumes,
        images=stores.images,
        events=events,
    )
    lifecycle.on_auto_remove = removal.remove_automatically
    return removal


def _build_forking(
    stores: Stores,
    registry: Registry,
    units: Units,
    launcher: Launcher,
    lifecycle: Lifecycle,
    removal: Removal,
    events: EventBus,
) -> Forking:
    return Forking(
        registry=registry,
        units=units,
        launcher=launcher,
        lifecycle=lifecycle,
        removal=removal,
        events=events,
        containers_dir=stores.containers_dir,
    )


def _build_snapshots(
    stores: Stores, registry: Registry, hulls: Hulls, launcher: Launcher, forking: Forking
) -> Snapshots:
    return Snapshots(
        store=stores.snapshots,
        registry=registry,
        hulls=hulls,
        launcher=launcher,
        forking=forking,
        networks=stores.networks,
        images=stores.images,
    )


def _make_builds(
    stores: Stores,
    hulls: Hulls,
    registry: Registry,
    units: Units,
    lifecycle: Lifecycle,
    removal: Removal,
    registries: Registries,
    events: EventBus,
    files: Files,
) -> Builds:
    runner = Runner(
        registry=registry,
        units=units,
        lifecycle=lifecycle,
        removal=removal,
        networks=stores.networks,
        hulls=hulls,
        roots=stores.roots,
        events=events,
        files=files,
        containers_dir=stores.containers_dir,
    )
    contexts = Contexts(stores.context_layers, stores.images)
    tools = BuildTools(
        images=stores.images,
        cache=stores.build_cache,
        trees=stores.build_trees,
        runner=runner,
        bases=Bases(stores.images, registries),
        client=stores.registries,
        repositories=Repositories(stores.git, contexts, stores.build_trees),
    )
    return Builds(tools=tools, contexts=contexts, hulls=hulls, events=events)


def _build_launcher(stores: Stores, *, registry: Registry, hulls: Hulls) -> Launcher:
    return Launcher(
        registry=registry,
        hulls=hulls,
        roots=stores.roots,
        networks=stores.networks,
        volumes=stores.volumes,
    )


def _build_creation(
    stores: Stores, registry: Registry, hulls: Hulls, events: EventBus, default_log: LogConfig
) -> Creation:
    return Creation(
        registry=registry,
        images=stores.images,
        volumes=stores.volumes,
        networks=stores.networks,
        hulls=hulls,
        events=events,
        containers_dir=stores.containers_dir,
        userns=stores.userns,
        default_log=default_log,
    )


def _build_lifecycle(
    registry: Registry,
    units: Units,
    launcher: Launcher,
    execs: Execs,
    shipping: LogShipping,
    events: EventBus,
    tasks: TaskGroup,
) -> Lifecycle:
    health = HealthChecks(registry=registry, execs=execs, events=events, tasks=tasks)
    lifecycle = Lifecycle(
        registry=registry,
        units=units,
        launcher=launcher,
        events=events,
        tasks=tasks,
        health=health,
        logs=LogKeeper(tasks),
        shipping=shipping,
    )
    health.stop, health.restart = lifecycle.stop, lifecycle.restart
    return lifecycle

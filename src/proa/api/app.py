# SPDX-License-Identifier: Apache-2.0
"""The whole API on one engine: every route of ``proa.wire.routes`` and the handlers behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from proa import __version__
from proa.api.absent import AbsentRoutes
from proa.api.application import Application
from proa.api.buildkit.routes import Backend as BuildKitBackend
from proa.api.buildkit.routes import BuildKitRoutes
from proa.api.builds import Backend as BuildBackend
from proa.api.builds import BuildRoutes
from proa.api.container_streams import Backend as ContainerStreamBackend
from proa.api.container_streams import ContainerStreamRoutes
from proa.api.containers import Backend as ContainerBackend
from proa.api.containers import ContainerRoutes, ExecIds
from proa.api.execs import Backend as ExecBackend
from proa.api.execs import ExecRoutes
from proa.api.files import Backend as FileBackend
from proa.api.files import CommitBackend, FileRoutes
from proa.api.forking import Backend as ForkingBackend
from proa.api.forking import ForkingRoutes
from proa.api.images import Backend as ImageBackend
from proa.api.images import ImageRoutes
from proa.api.networks import Backend as NetworkBackend
from proa.api.networks import NetworkRoutes
from proa.api.refusals import RefusedRoutes
from proa.api.registries import Backend as RegistryBackend
from proa.api.registries import RegistryRoutes
from proa.api.router import Router
from proa.api.snapshots import Backend as SnapshotBackend
from proa.api.snapshots import SnapshotRoutes
from proa.api.system import Backend as SystemBackend
from proa.api.system import SystemRoutes
from proa.api.vm_copies import VmCopyRoutes
from proa.api.vm_files import VmFileRoutes
from proa.api.vm_images import VmImageRoutes
from proa.api.vms import Backend as VmBackend
from proa.api.vms import VmRoutes
from proa.api.volumes import Backend as VolumeBackend
from proa.api.volumes import VolumeRoutes
from proa.wire import own_routes, vm_routes
from proa.wire.routes import ROUTES


class Containers(ContainerBackend, ContainerStreamBackend, Protocol):
    """The container use cases of both modules of routes."""


class Builds(BuildBackend, BuildKitBackend, Protocol):
    """The build use cases, behind both APIs."""


class Execs(ExecBackend, ExecIds, Protocol):
    """The exec use cases."""


class Engine(Protocol):
    """The use cases by resource; ``proa.engine.engine.Engine`` is the real one."""

    @property
    def system(self) -> SystemBackend: ...
    @property
    def containers(self) -> Containers: ...
    @property
    def execs(self) -> Execs: ...
    @property
    def files(self) -> FileBackend: ...
    @property
    def commits(self) -> CommitBackend: ...
    @property
    def images(self) -> ImageBackend: ...
    @property
    def volumes(self) -> VolumeBackend: ...
    @property
    def networks(self) -> NetworkBackend: ...
    @property
    def registries(self) -> RegistryBackend: ...
    @property
    def builds(self) -> Builds: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """The use cases behind the routes of containers that are proa's own."""

    forking: ForkingBackend
    snapshots: SnapshotBackend


def build_app(engine: Engine, machines: VmBackend | None = None, own: Own | None = None) -> Application:
    """Register every route; those of machines only with ``machines``, our own of containers with ``own``.

    Raises AssertionError when one of ``proa.wire.routes`` has no handler.
    """
    router = Router()
    SystemRoutes(engine.system, machines).register(router)
    ContainerRoutes(engine.containers, engine.execs).register(router)
    ContainerStreamRoutes(engine.containers).register(router)
    ExecRoutes(engine.execs).register(router)
    FileRoutes(engine.files, engine.commits).register(router)
    registries = RegistryRoutes(engine.registries)
    registries.register(router)
    ImageRoutes(engine.images, pull=registries.pull).register(router)
    BuildRoutes(engine.builds).register(router)
    BuildKitRoutes(engine.builds).register(router)
    VolumeRoutes(engine.volumes).register(router)
    NetworkRoutes(engine.networks).register(router)
    RefusedRoutes().register(router)
    AbsentRoutes().register(router)
    wanted = set(ROUTES.values())
    if machines is not None:
        VmRoutes(machines).register(router)
        VmCopyRoutes(machines.copies).register(router)
        VmFileRoutes(machines.files).register(router)
        VmImageRoutes(machines.to_image).register(router)
        wanted |= set(vm_routes.ROUTES.values())
    if own is not None:
        ForkingRoutes(own.forking).register(router)
        SnapshotRoutes(own.snapshots).register(router)
        wanted |= set(own_routes.ROUTES.values())
    missing = wanted - router.routes
    if missing:
        raise AssertionError(f"routes without a handler: {sorted(route.path for route in missing)}")
    return Application(router, server=f"proa/{__version__} (linux)")

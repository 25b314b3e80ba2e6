# SPDX-License-Identifier: Apache-2.0
"""Puts the engine together: the one place that knows every package.

Collaborators are made here and handed down; nothing below looks anything up.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from anyio.abc import TaskGroup

from proa.build.cache import BuildCache
from proa.daemon.config import Config
from proa.daemon.facts import engine_id, tool_versions
from proa.daemon.id_ranges import security_options, user_namespaces
from proa.distribution.git import Git
from proa.distribution.registries import Registries
from proa.engine.building.trees import BuildTrees
from proa.engine.engine import Engine, Stores, build_engine
from proa.engine.events import EventBus
from proa.engine.isolation import ISOLATION_VM, RUNTIME_SHARED, Hulls
from proa.engine.machines.from_image import FromImage
from proa.engine.machines.lives import Lives
from proa.engine.machines.machines import Machines
from proa.engine.machines.to_image import ToImage
from proa.engine.system import HostFacts
from proa.host.cgroup import ensure_hierarchies
from proa.host.database import Database
from proa.image.images import Images
from proa.machines.dhcp import Dhcp
from proa.machines.downloads import UNUSED_S, Downloads
from proa.machines.driver import Driver
from proa.machines.reader import DiskReader
from proa.machines.store import MachineStore
from proa.model.errors import EngineError, Unavailable
from proa.network.networks import Networks
from proa.runtime.oci.cdi import DeviceSpecs
from proa.runtime.oci.runtime import OciRuntime, find_runtimes
from proa.runtime.seam import Runtime
from proa.runtime.vm.accel import Accelerator, probe_accelerator
from proa.runtime.vm.runtime import VmRuntime
from proa.storage.layers import Layers
from proa.storage.rootfs import Roots
from proa.storage.snapshots import Snapshots
from proa.storage.volumes import Volumes

log = logging.getLogger(__name__)

SECCOMP_PROFILE = Path("/usr/share/containers/seccomp.json")  # Debian's containers-common
INIT = Path("/usr/bin/tini-static")
CACHE_DIR = Path("/var/cache/proa")  # verdicts about the host, the same for every daemon on it


@asynccontextmanager
async def open_engine(config: Config, tasks: TaskGroup) -> AsyncIterator[Engine]:
    """Open everything below the API for the span of the block. ``tasks`` owns all background work.

    Raises Unavailable when this host lacks what no hull can do without.
    """
    async with AsyncExitStack() as stack:
        events = EventBus()
        db = stack.enter_context(Database(config.data_root / "engine.db"))
        hierarchies = await ensure_hierarchies()
        layers = Layers(config.data_root / "layers", exec_root=config.exec_root)
        images = Images(
            db=db,
            root=config.data_root,
            layers=layers,
            events=lambda action, actor, attributes: events.publish("image", action, actor, attributes),
        )
        build_cache = BuildCache(db)
        images.store.kept_elsewhere = build_cache.layers
        await images.open()
        networks = Networks(db=db, exec_root=config.exec_root, tasks=tasks)
        await networks.open()
        stack.push_async_callback(networks.close)
        userns = await user_namespaces(remap=config.userns_remap, pool=config.userns_pool)
        stores = Stores(
            db=db,
            images=images,
            roots=Roots(
                containers=config.data_root / "containers",
                exec_root=config.exec_root,
                layers=layers,
                tasks=tasks,
            ),
            volumes=Volumes(db, config.data_root / "volumes", layers=layers),
            networks=networks,
            registries=Registries(config.registries),
            containers_dir=config.data_root / "containers",
            build_cache=build_cache,
            build_trees=BuildTrees(layers=layers, data_root=config.data_root, exec_root=config.exec_root),
            context_layers=Layers(
                config.data_root / "build" / "contexts", exec_root=config.exec_root / "build"
            ),
            userns=userns,
            git=Git(),
            snapshots=Snapshots(config.data_root / "snapshots"),
        )
        runtimes, missing, accelerator = await _make_runtimes(config, tasks)
        facts = HostFacts(
            engine_id=engine_id(config.data_root),
            data_root=config.data_root,
            cgroup_version="2" if hierarchies.is_v2 else "1",
            accelerator=accelerator.name if accelerator else "",
            accelerator_reason=accelerator.reason if accelerator else missing.get(ISOLATION_VM, ""),
            tools=await tool_versions(),
            security_options=(
                *(("name=seccomp,profile=builtin",) if SECCOMP_PROFILE.exists() else ()),
                *security_options(userns),
            ),
            cdi_spec_dirs=config.cdi_spec_dirs,
            list_devices=DeviceSpecs(config.cdi_spec_dirs).names,
            default_log=config.default_log,
        )
        hulls = Hulls(
            runtimes,
            container_runtime=_container_runtime(config, runtimes),
            default_isolation=config.default_isolation,
            missing=missing,
        )
        engine = build_engine(stores, hulls=hulls, events=events, facts=facts, tasks=tasks)
        downloads = Downloads(config.data_root / "machine-images", stores.registries)
        downloads.prune(unused_s=UNUSED_S)
        driver = Driver(
            config.data_root / "machines",
            config.exec_root / "machines",
            accelerator,
            missing.get(ISOLATION_VM, ""),
            downloads=downloads,
        )
        machines = _make_machines(config, stores, driver, events, tasks)
        engine.restore.attached_elsewhere = machines.lives.alive_ids
        yield replace(engine, machines=machines)


def _make_machines(
    config: Config, stores: Stores, driver: Driver, events: EventBus, tasks: TaskGroup
) -> Machines:
    store = MachineStore(stores.db)
    lives = Lives(
        store=store,
        driver=driver,
        networks=stores.networks,
        dhcp=Dhcp(config.exec_root / "dhcp"),
        events=events,
        tasks=tasks,
    )
    from_image = FromImage(images=stores.images, roots=stores.roots, lib=config.lib)
    to_image = ToImage(
        store=store,
        lives=lives,
        driver=driver,
        reader=DiskReader(
            lib=config.lib,
            data_root=config.data_root / "machines",
            exec_root=config.exec_root / "machines",
        ),
        images=stores.images,
    )
    return Machines(
        store=store,
        driver=driver,
        lives=lives,
        networks=stores.networks,
        from_image=from_image,
        to_image=to_image,
    )


async def _make_runtimes(
    config: Config, tasks: TaskGroup
) -> tuple[dict[str, Runtime], dict[str, str], Accelerator | None]:
    """Return the runtimes of this host, the reasons for those it lacks, and how VMs are accelerated."""
    runtimes: dict[str, Runtime] = {}
    found, missing = await find_runtimes()
    conmon = shutil.which("conmon")
    for name, binary in found.items():
        if conmon is None:
            missing[name] = "conmon is not installed: apt install conmon"
            continue
        runtimes[name] = OciRuntime(
            name=name,
            binary=binary,
            conmon=Path(conmon),
            exec_root=config.exec_root / "oci",
            tasks=tasks,
            seccomp_profile=SECCOMP_PROFILE,
            init=INIT,
            device_specs=DeviceSpecs(config.cdi_spec_dirs),
        )
    CACHE_DIR.mkdir(parents=True, exist_ok=True)
    try:
        accelerator = await probe_accelerator(CACHE_DIR, lib=config.lib, kernel=config.kernel)
    except EngineError as error:
        missing[ISOLATION_VM] = str(error)
        return runtimes, missing, None
    runtimes[ISOLATION_VM] = vm = VmRuntime(
        lib=config.lib,
        templates=config.data_root / "templates",
        exec_root=config.exec_root / "vm",
        tasks=tasks,
        kernel=config.kernel,
        default_memory_bytes=config.vm_memory_bytes,
        default_vcpus=min(config.vm_cpus, os.cpu_count() or 1),
        accelerator=accelerator,
        pool_size=config.vm_pool,
        pool_root=config.data_root / "pool",
    )
    runtimes[RUNTIME_SHARED] = vm.shared
    log.info("virtual machines run with %s: %s", accelerator.name, accelerator.reason)
    return runtimes, missing, accelerator


def _container_runtime(config: Config, runtimes: Mapping[str, Runtime]) -> str:
    for name in (config.default_runtime, "crun", "runc"):
        if name in runtimes:
            return name
    raise Unavailable("neither crun nor runc can be used: apt install crun runc conmon")

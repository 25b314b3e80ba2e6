# SPDX-License-Identifier: Apache-2.0
"""The engine as Docker shows it: info, version, disk usage, events. Source: Engine API, tag System."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET

from proa.api.shapes_containers import STORAGE_DRIVER, summary
from proa.api.shapes_images import summary as image_summary
from proa.api.shapes_volumes import volume
from proa.engine.building.builds import CacheRecord
from proa.engine.container import State
from proa.engine.events import Event
from proa.engine.machines.machines import MachineUsage
from proa.engine.system import DiskUsage, Info, Version
from proa.model.registry import RegistrySettings
from proa.wire import system as wire
from proa.wire.builds import BuildCacheRecord
from proa.wire.routes import API_VERSION, MIN_API_VERSION
from proa.wire.times import NS, format_time
from proa.wire.volumes import VolumeUsage

VM_RUNTIME = "vm"
_GO_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
_WITH_LEGACY_KEYS = frozenset({"container", "image"})


def info(value: Info) -> wire.Info:
    """Return GET /info. What was found out about acceleration is told in the runtime's status and a label."""
    labels = []
    if value.accelerator:
        labels = [
            f"proa.vm.accelerator={value.accelerator}",
            f"proa.vm.accelerator.reason={value.accelerator_reason}",
        ]
    return wire.Info(
        id=value.engine_id,
        containers=sum(value.containers.values()),
        containers_running=value.containers[State.RUNNING],
        containers_paused=value.containers[State.PAUSED],
        containers_stopped=sum(
            count for state, count in value.containers.items() if state not in (State.RUNNING, State.PAUSED)
        ),
        images=value.images,
        driver=STORAGE_DRIVER,
        driver_status=[("Layers", "EROFS, stacked with overlayfs")],
        docker_root_dir=str(value.data_root),
        plugins=wire.PluginsInfo(
            volume=["local"], network=["bridge", "host", "null"], log=list(value.log_drivers)
        ),
        memory_limit=True,
        swap_limit=True,
        cpu_cfs_period=True,
        cpu_cfs_quota=True,
        cpu_shares=True,
        cpu_set=True,
        pids_limit=True,
        ipv4_forwarding=True,
        n_fd=value.open_files,
        system_time=format_time(value.system_time_ns),
        logging_driver=value.default_log_driver,
        cgroup_version=value.cgroup_version,
        n_events_listener=value.event_listeners,
        kernel_version=value.kernel_version,
        operating_system=value.operating_system,
        os_version=value.os_version,
        architecture=value.architecture,
        n_cpu=value.cpus,
        mem_total=value.memory_bytes,
        index_server_address="https://index.docker.io/v1/",
        registry_config=_registries(value.registries),
        http_proxy=value.proxies[0],
        https_proxy=value.proxies[1],
        no_proxy=value.proxies[2],
        name=value.name,
        labels=labels,
        server_version=value.version,
        runtimes={name: _runtime(name, value) for name in value.runtimes},
        default_runtime=value.default_runtime,
        isolation=value.default_isolation,
        init_binary="tini",
        security_options=list(value.security_options),
        discovered_devices=[wire.DeviceInfo(source="cdi", id=name) for name in value.devices],
        cdi_spec_dirs=[str(directory) for directory in value.cdi_spec_dirs],
        warnings=[
            *value.warnings,
            *(f"runtime {name} is missing: {why}" for name, why in value.missing_runtimes.items()),
        ],
    )


def _registries(settings: RegistrySettings) -> wire.RegistryConfig:
    """The loopback is insecure without being configured so."""
    networks = [text for text in settings.insecure if "/" in text]
    hosts = [text for text in settings.insecure if "/" not in text]
    hub = wire.IndexInfo(name="docker.io", mirrors=list(settings.mirrors), official=True)
    return wire.RegistryConfig(
        insecure_registry_cidrs=["::1/128", "127.0.0.0/8", *networks],
        index_configs={
            "docker.io": hub,
            **{host: wire.IndexInfo(name=host, secure=False) for host in hosts},
        },
        mirrors=list(settings.mirrors),
    )


def version(value: Version) -> wire.Version:
    """Return GET /version."""
    architecture = _GO_ARCHITECTURES.get(value.architecture, value.architecture)
    engine = wire.ComponentVersion(
        name="Engine",
        version=value.version,
        details={
            "ApiVersion": API_VERSION,
            "MinAPIVersion": MIN_API_VERSION,
            "Arch": architecture,
            "Os": "linux",
            "KernelVersion": value.kernel_version,
            "PythonVersion": value.python_version,
            "Experimental": "false",
            # The docker command prints these two of every engine, and their absence as "<no value>".
            "GitCommit": "",
            "GoVersion": f"none (Python {value.python_version})",
            "BuildTime": "",
        },
    )
    tools = [wire.ComponentVersion(name=name, version=text, details={}) for name, text in value.tools.items()]
    return wire.Version(
        platform=wire.PlatformName(name="proa"),
        components=[engine, *tools],
        version=value.version,
        go_version=f"none (Python {value.python_version})",
        arch=architecture,
        kernel_version=value.kernel_version,
    )


def _build_cache(record: CacheRecord) -> BuildCacheRecord:
    return BuildCacheRecord(
        id=record.id,
        type=record.type,
        description=record.description,
        in_use=record.in_use,
        shared=record.shared,
        size=record.size_bytes,
        created_at=format_time(record.created_at_ns),
        last_used_at=format_time(record.used_at_ns),
        usage_count=record.uses,
    )


def disk_usage(value: DiskUsage, kinds: frozenset[str], now_ns: int) -> wire.DiskUsage:
    """Return GET /system/df; the kinds that were not asked for are null."""
    return wire.DiskUsage(
        layers_size=value.layers_bytes,
        images=[
            image_summary(image, shared_size=shared, containers=count)
            for image, shared, count in value.images
        ]
        if "image" in kinds
        else None,
        containers=[
            summary(container, (written, total), now_ns) for container, written, total in value.containers
        ]
        if "container" in kinds
        else None,
        volumes=[volume(one, VolumeUsage(size=size, ref_count=count)) for one, size, count in value.volumes]
        if "volume" in kinds
        else None,
        build_cache=[_build_cache(one) for one in value.build_cache] if "build-cache" in kinds else None,
    )


def machines_usage(machines: Sequence[MachineUsage]) -> list[wire.VmUsage]:
    """Return the part of GET /system/df that Docker does not have."""
    return [
        wire.VmUsage(
            id=one.machine.id,
            name=one.machine.name,
            state=one.machine.state.value,
            size=one.held_bytes,
            snapshots=one.snapshots,
        )
        for one in machines
    ]


def event(value: Event) -> wire.Event:
    """Return one event, with the keys of old clients for what had them."""
    has_legacy = value.type in _WITH_LEGACY_KEYS
    origin = value.attributes.get("image") if value.type == "container" else None
    return wire.Event(
        status=value.action if has_legacy else UNSET,
        id=value.actor_id if has_legacy else UNSET,
        origin=origin or UNSET,
        type=value.type,
        action=value.action,
        actor=wire.EventActor(id=value.actor_id, attributes=dict(value.attributes)),
        scope=value.scope,
        time=value.time_ns // NS,
        time_nano=value.time_ns,
    )


def _runtime(name: str, value: Info) -> wire.RuntimeInfo:
    if name == VM_RUNTIME:
        status = {"proa.accelerator": value.accelerator, "proa.accelerator.reason": value.accelerator_reason}
        return wire.RuntimeInfo(path="qemu-system", status=status)
    return wire.RuntimeInfo(path=name)

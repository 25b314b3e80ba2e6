# SPDX-License-Identifier: Apache-2.0
"""Messages about the engine as a whole. Source: Engine API, tag System."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from proa.model.config import ApiStruct
from proa.wire.builds import BuildCacheRecord
from proa.wire.containers import ContainerSummary
from proa.wire.images import ImageSummary
from proa.wire.routes import API_VERSION, MIN_API_VERSION
from proa.wire.volumes import Volume


class PlatformName(ApiStruct, frozen=True, kw_only=True):
    name: str = ""


class ComponentVersion(ApiStruct, frozen=True, kw_only=True):
    name: str
    version: str = ""
    details: dict[str, str] | None = None


class Version(ApiStruct, frozen=True, kw_only=True):
    platform: PlatformName = PlatformName()
    components: list[ComponentVersion] = []
    version: str = ""
    api_version: str = API_VERSION
    min_api_version: str = msgspec.field(default=MIN_API_VERSION, name="MinAPIVersion")
    git_commit: str = ""
    go_version: str = ""
    os: str = "linux"
    arch: str = ""  # as Go names it: amd64, arm64
    kernel_version: str = ""
    experimental: bool = False
    build_time: str = ""


class PluginsInfo(ApiStruct, frozen=True, kw_only=True):
    volume: list[str] = []
    network: list[str] = []
    authorization: list[str] | None = None
    log: list[str] = []


class IndexInfo(ApiStruct, frozen=True, kw_only=True):
    name: str
    mirrors: list[str] = []
    secure: bool = True
    official: bool = False


class RegistryConfig(ApiStruct, frozen=True, kw_only=True):
    insecure_registry_cidrs: list[str] = msgspec.field(default_factory=list, name="InsecureRegistryCIDRs")
    index_configs: dict[str, IndexInfo] = {}
    mirrors: list[str] | None = None


class RuntimeInfo(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    path: str = ""
    runtime_args: list[str] | None = None
    status: dict[str, str] | None = None


class SwarmInfo(ApiStruct, frozen=True, kw_only=True):
    node_id: str = msgspec.field(default="", name="NodeID")
    node_addr: str = ""
    local_node_state: str = "inactive"
    control_available: bool = False
    error: str = ""
    remote_managers: list[str] | None = None


class Commit(ApiStruct, frozen=True, kw_only=True):
    id: str = msgspec.field(default="", name="ID")


class DeviceInfo(ApiStruct, frozen=True, kw_only=True):
    """A device that containers may ask for. ``source`` is the driver."""

    source: str = ""
    id: str = msgspec.field(default="", name="ID")


class Info(ApiStruct, frozen=True, kw_only=True):
    id: str = msgspec.field(default="", name="ID")
    containers: int = 0
    containers_running: int = 0
    containers_paused: int = 0
    containers_stopped: int = 0
    images: int = 0
    driver: str = ""
    driver_status: list[tuple[str, str]] = []
    docker_root_dir: str = ""
    plugins: PluginsInfo = PluginsInfo()
    memory_limit: bool = False
    swap_limit: bool = False
    cpu_cfs_period: bool = False
    cpu_cfs_quota: bool = False
    cpu_shares: bool = msgspec.field(default=False, name="CPUShares")
    cpu_set: bool = msgspec.field(default=False, name="CPUSet")
    pids_limit: bool = False
    oom_kill_disable: bool = False
    ipv4_forwarding: bool = msgspec.field(default=False, name="IPv4Forwarding")
    debug: bool = False
    n_fd: int = msgspec.field(default=0, name="NFd")
    n_goroutines: int = msgspec.field(default=0, name="NGoroutines")
    system_time: str = ""
    logging_driver: str = ""
    cgroup_driver: str = "cgroupfs"
    cgroup_version: str = "2"
    n_events_listener: int = msgspec.field(default=0, name="NEventsListener")
    kernel_version: str = ""
    operating_system: str = ""
    os_version: str = msgspec.field(default="", name="OSVersion")
    os_type: str = msgspec.field(default="linux", name="OSType")
    architecture: str = ""  # as uname names it: x86_64, aarch64
    n_cpu: int = msgspec.field(default=0, name="NCPU")
    mem_total: int = 0  # bytes
    index_server_address: str = ""
    registry_config: RegistryConfig = RegistryConfig()
    generic_resources: None = None
    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: str = ""
    name: str = ""
    labels: list[str] = []
    experimental_build: bool = False
    server_version: str = ""
    runtimes: dict[str, RuntimeInfo] = {}
    default_runtime: str = ""
    swarm: SwarmInfo = SwarmInfo()
    live_restore_enabled: bool = True
    isolation: str = ""
    init_binary: str = ""
    containerd_commit: Commit = Commit()
    runc_commit: Commit = Commit()
    init_commit: Commit = Commit()
    security_options: list[str] = []
    product_license: str = ""
    warnings: list[str] = []
    discovered_devices: list[DeviceInfo] = []
    cdi_spec_dirs: list[str] = msgspec.field(default_factory=list, name="CDISpecDirs")


class VmUsage(ApiStruct, frozen=True, kw_only=True):
    """What a full machine takes on disk: proa's own, Docker has no such thing."""

    id: str
    name: str
    state: str
    size: int  # bytes that the host holds, snapshots and their memory among them
    snapshots: int = 0


class DiskUsage(ApiStruct, frozen=True, kw_only=True):
    """A part that was not asked for is null."""

    layers_size: int = 0  # bytes of all layers, each counted once
    images: list[ImageSummary] | None = None
    containers: list[ContainerSummary] | None = None
    volumes: list[Volume] | None = None
    build_cache: list[BuildCacheRecord] | None = None
    virtual_machines: list[VmUsage] | UnsetType = UNSET  # proa's own: only when type=vm is asked for


class EventActor(ApiStruct, frozen=True, kw_only=True):
    id: str = msgspec.field(default="", name="ID")
    attributes: dict[str, str] = {}


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """``status``, ``id`` and ``from`` repeat the rest for clients older than API 1.22."""

    status: str | UnsetType = UNSET
    id: str | UnsetType = UNSET
    origin: str | UnsetType = msgspec.field(default=UNSET, name="from")
    type: str = msgspec.field(name="Type")
    action: str = msgspec.field(name="Action")
    actor: EventActor = msgspec.field(name="Actor")
    scope: str = "local"
    time: int = 0  # Unix seconds
    time_nano: int = msgspec.field(default=0, name="timeNano")

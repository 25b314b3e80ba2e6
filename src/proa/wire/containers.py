# SPDX-License-Identifier: Apache-2.0
"""Messages about containers. Source: Engine API, tag Container."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from proa.model.config import (
    ApiStruct,
    ContainerConfig,
    EndpointSettings,
    HostConfig,
    NetworkingConfig,
    PortBinding,
    RestartPolicy,
    ThrottleDevice,
    Ulimit,
    WeightDevice,
)
from proa.wire.images import GraphDriver


class ContainerCreateRequest(ContainerConfig, frozen=True, kw_only=True):
    """Docker's flat body: the configuration itself, with the other two beside its keys."""

    host_config: HostConfig | None = None
    networking_config: NetworkingConfig | None = None

    @classmethod
    def of(
        cls, config: ContainerConfig, host_config: HostConfig, networking: NetworkingConfig
    ) -> ContainerCreateRequest:
        """Join the three parts."""
        fields = {name: getattr(config, name) for name in ContainerConfig.__struct_fields__}
        return cls(host_config=host_config, networking_config=networking, **fields)

    def config(self) -> ContainerConfig:
        """Return the first part alone."""
        return ContainerConfig(**{name: getattr(self, name) for name in ContainerConfig.__struct_fields__})


class ContainerCreated(ApiStruct, frozen=True, kw_only=True):
    id: str
    warnings: list[str] = []


class ContainerUpdateRequest(ApiStruct, frozen=True, kw_only=True):
    """New limits. Zero, "" and null leave a limit as it is. Source: Engine API, ContainerUpdate."""

    cpu_shares: int = 0
    memory: int = 0  # bytes
    cgroup_parent: str = ""
    blkio_weight: int = 0
    blkio_weight_device: list[WeightDevice] | None = None
    blkio_device_read_bps: list[ThrottleDevice] | None = None
    blkio_device_write_bps: list[ThrottleDevice] | None = None
    cpu_period: int = 0  # microseconds
    cpu_quota: int = 0  # microseconds per period
    cpu_realtime_period: int = 0
    cpu_realtime_runtime: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    memory_reservation: int = 0  # bytes
    memory_swap: int = 0  # bytes; -1 unlimited
    memory_swappiness: int | None = None
    nano_cpus: int = 0
    oom_kill_disable: bool | None = None
    pids_limit: int | None = None
    ulimits: list[Ulimit] | None = None
    restart_policy: RestartPolicy | None = None


class ContainerUpdated(ApiStruct, frozen=True, kw_only=True):
    warnings: list[str] | None = None


class HealthResult(ApiStruct, frozen=True, kw_only=True):
    start: str = ""
    end: str = ""
    exit_code: int = 0
    output: str = ""


class Health(ApiStruct, frozen=True, kw_only=True):
    status: str = "none"  # none, starting, healthy, unhealthy
    failing_streak: int = 0
    log: list[HealthResult] | None = None


class ContainerState(ApiStruct, frozen=True, kw_only=True):
    status: str = ""  # created, running, paused, restarting, removing, exited, dead
    running: bool = False
    paused: bool = False
    restarting: bool = False
    oom_killed: bool = msgspec.field(default=False, name="OOMKilled")
    dead: bool = False
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    started_at: str = ""
    finished_at: str = ""
    health: Health | UnsetType = UNSET


class MountPoint(ApiStruct, frozen=True, kw_only=True):
    type: str = ""  # bind, volume, tmpfs
    name: str | UnsetType = UNSET
    source: str = ""
    destination: str = ""
    driver: str | UnsetType = UNSET
    mode: str = ""
    rw: bool = msgspec.field(default=True, name="RW")
    propagation: str = ""


class NetworkSettings(ApiStruct, frozen=True, kw_only=True):
    """The upper half describes the default bridge only, and is empty on any other network."""

    bridge: str = ""
    sandbox_id: str = msgspec.field(default="", name="SandboxID")
    sandbox_key: str = ""
    ports: dict[str, list[PortBinding] | None] | None = None
    hairpin_mode: bool = False
    link_local_ipv6_address: str = msgspec.field(default="", name="LinkLocalIPv6Address")
    link_local_ipv6_prefix_len: int = msgspec.field(default=0, name="LinkLocalIPv6PrefixLen")
    secondary_ip_addresses: None = msgspec.field(default=None, name="SecondaryIPAddresses")
    secondary_ipv6_addresses: None = msgspec.field(default=None, name="SecondaryIPv6Addresses")
    endpoint_id: str = msgspec.field(default="", name="EndpointID")
    gateway: str = ""
    global_ipv6_address: str = msgspec.field(default="", name="GlobalIPv6Address")
    global_ipv6_prefix_len: int = msgspec.field(default=0, name="GlobalIPv6PrefixLen")
    ip_address: str = msgspec.field(default="", name="IPAddress")
    ip_prefix_len: int = msgspec.field(default=0, name="IPPrefixLen")
    ipv6_gateway: str = msgspec.field(default="", name="IPv6Gateway")
    mac_address: str = ""
    networks: dict[str, EndpointSettings] | None = None


class ContainerInspect(ApiStruct, frozen=True, kw_only=True):
    id: str
    created: str = ""
    path: str = ""
    args: list[str] = []
    state: ContainerState = ContainerState()
    image: str = ""  # image id
    resolv_conf_path: str = ""
    hostname_path: str = ""
    hosts_path: str = ""
    log_path: str = ""
    name: str = ""  # with a leading slash
    restart_count: int = 0
    driver: str = ""
    platform: str = "linux"
    mount_label: str = ""
    process_label: str = ""
    app_armor_profile: str = ""
    exec_ids: list[str] | None = msgspec.field(default=None, name="ExecIDs")
    host_config: HostConfig = HostConfig()
    graph_driver: GraphDriver = GraphDriver()
    size_rw: int | UnsetType = UNSET  # bytes
    size_root_fs: int | UnsetType = UNSET  # bytes
    mounts: list[MountPoint] = []
    config: ContainerConfig = ContainerConfig()
    network_settings: NetworkSettings = NetworkSettings()


class PortSummary(ApiStruct, frozen=True, kw_only=True):
    ip: str | UnsetType = msgspec.field(default=UNSET, name="IP")
    private_port: int
    public_port: int | UnsetType = UNSET
    type: str = "tcp"


class SummaryHostConfig(ApiStruct, frozen=True, kw_only=True):
    network_mode: str = ""
    annotations: dict[str, str] | UnsetType = UNSET


class SummaryNetworks(ApiStruct, frozen=True, kw_only=True):
    networks: dict[str, EndpointSettings] = {}


class ContainerSummary(ApiStruct, frozen=True, kw_only=True):
    id: str
    names: list[str] = []  # with a leading slash
    image: str = ""
    image_id: str = msgspec.field(default="", name="ImageID")
    command: str = ""
    created: int = 0  # Unix seconds
    ports: list[PortSummary] = []
    size_rw: int | UnsetType = UNSET  # bytes
    size_root_fs: int | UnsetType = UNSET  # bytes
    labels: dict[str, str] = {}
    state: str = ""
    status: str = ""  # as docker ps prints it
    host_config: SummaryHostConfig = SummaryHostConfig()
    network_settings: SummaryNetworks = SummaryNetworks()
    mounts: list[MountPoint] = []


class WaitError(ApiStruct, frozen=True, kw_only=True):
    message: str = ""


class ContainerWaited(ApiStruct, frozen=True, kw_only=True):
    status_code: int
    error: WaitError | UnsetType = UNSET


class ContainerTop(ApiStruct, frozen=True, kw_only=True):
    titles: list[str] = []
    processes: list[list[str]] = []


class ContainersPruned(ApiStruct, frozen=True, kw_only=True):
    containers_deleted: list[str] | None = None
    space_reclaimed: int = 0  # bytes

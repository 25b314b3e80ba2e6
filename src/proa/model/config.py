# SPDX-License-Identifier: Apache-2.0
"""What a user asks of a container, in the Engine API's own shape.

The API's container configuration is proa's model as well: it is received, stored, shown and interpreted in
one form, so nothing is lost in translation. Absent and null are the same (Go's JSON decoder treats them so):
every optional list or map may be None.

Source: Engine API 1.51, definitions ContainerConfig, HostConfig, Resources, Mount, NetworkingConfig,
EndpointSettings, HealthConfig.
"""

from __future__ import annotations

import msgspec


class ApiStruct(msgspec.Struct, frozen=True, kw_only=True, rename="pascal", omit_defaults=False):
    """Base of all structures whose JSON keys are in Docker's PascalCase."""


class Empty(msgspec.Struct, frozen=True):
    """Docker's ``{}`` as a value, in sets written as maps."""


class HealthConfig(ApiStruct, frozen=True, kw_only=True):
    """Durations are in nanoseconds; 0 means inherit."""

    test: list[str] | None = None
    interval: int = 0
    timeout: int = 0
    retries: int = 0
    start_period: int = 0
    start_interval: int = 0


class ContainerConfig(ApiStruct, frozen=True, kw_only=True):
    """The portable part: what an image may carry too."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: dict[str, Empty] | None = None
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    env: list[str] | None = None
    cmd: list[str] | str | None = None
    healthcheck: HealthConfig | None = None
    args_escaped: bool = False
    image: str = ""
    volumes: dict[str, Empty] | None = None
    working_dir: str = ""
    entrypoint: list[str] | str | None = None
    network_disabled: bool = False
    mac_address: str = ""
    on_build: list[str] | None = None
    labels: dict[str, str] | None = None
    stop_signal: str | None = None
    stop_timeout: int | None = None  # seconds
    shell: list[str] | None = None


class PortBinding(ApiStruct, frozen=True, kw_only=True):
    host_ip: str = msgspec.field(default="", name="HostIp")
    host_port: str = ""


class RestartPolicy(ApiStruct, frozen=True, kw_only=True):
    name: str = ""  # "", "no", "always", "unless-stopped", "on-failure"
    maximum_retry_count: int = 0


class LogConfig(ApiStruct, frozen=True, kw_only=True):
    type: str = ""
    config: dict[str, str] | None = None


class Ulimit(ApiStruct, frozen=True, kw_only=True):
    name: str
    soft: int
    hard: int


class DeviceMapping(ApiStruct, frozen=True, kw_only=True):
    path_on_host: str = ""
    path_in_container: str = ""
    cgroup_permissions: str = "rwm"


class ThrottleDevice(ApiStruct, frozen=True, kw_only=True):
    path: str = ""
    rate: int = 0


class WeightDevice(ApiStruct, frozen=True, kw_only=True):
    path: str = ""
    weight: int = 0


class DeviceRequest(ApiStruct, frozen=True, kw_only=True):
    driver: str = ""
    count: int = 0
    device_ids: list[str] | None = msgspec.field(default=None, name="DeviceIDs")
    capabilities: list[list[str]] | None = None
    options: dict[str, str] | None = None


class BindOptions(ApiStruct, frozen=True, kw_only=True):
    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False


class DriverConfig(ApiStruct, frozen=True, kw_only=True):
    name: str = ""
    options: dict[str, str] | None = None


class VolumeOptions(ApiStruct, frozen=True, kw_only=True):
    no_copy: bool = False
    labels: dict[str, str] | None = None
    driver_config: DriverConfig | None = None
    subpath: str = ""


class TmpfsOptions(ApiStruct, frozen=True, kw_only=True):
    size_bytes: int = 0
    mode: int = 0
    options: list[list[str]] | None = None


class ImageOptions(ApiStruct, frozen=True, kw_only=True):
    subpath: str = ""


class MountSpec(ApiStruct, frozen=True, kw_only=True):
    """One ``--mount``. ``type`` is bind, volume, tmpfs or image."""

    target: str = ""
    source: str = ""
    type: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    tmpfs_options: TmpfsOptions | None = None
    image_options: ImageOptions | None = None


class HostConfig(ApiStruct, frozen=True, kw_only=True):
    """The part that belongs to this host."""

    # Resources
    cpu_shares: int = 0
    memory: int = 0  # bytes
    cgroup_parent: str = ""
    blkio_weight: int = 0
    blkio_weight_device: list[WeightDevice] | None = None
    blkio_device_read_bps: list[ThrottleDevice] | None = None
    blkio_device_write_bps: list[ThrottleDevice] | None = None
    blkio_device_read_i_ops: list[ThrottleDevice] | None = msgspec.field(
        default=None, name="BlkioDeviceReadIOps"
    )
    blkio_device_write_i_ops: list[ThrottleDevice] | None = msgspec.field(
        default=None, name="BlkioDeviceWriteIOps"
    )
    cpu_period: int = 0  # microseconds
    cpu_quota: int = 0  # microseconds per period
    cpu_realtime_period: int = 0
    cpu_realtime_runtime: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    devices: list[DeviceMapping] | None = None
    device_cgroup_rules: list[str] | None = None
    device_requests: list[DeviceRequest] | None = None
    memory_reservation: int = 0
    memory_swap: int = 0  # bytes; -1 unlimited
    memory_swappiness: int | None = None
    nano_cpus: int = 0  # 10^-9 CPUs
    oom_kill_disable: bool | None = None
    init: bool | None = None
    pids_limit: int | None = None
    ulimits: list[Ulimit] | None = None
    # Placement
    binds: list[str] | None = None
    container_id_file: str = msgspec.field(default="", name="ContainerIDFile")
    log_config: LogConfig = LogConfig()
    network_mode: str = ""
    port_bindings: dict[str, list[PortBinding] | None] | None = None
    restart_policy: RestartPolicy = RestartPolicy()
    auto_remove: bool = False
    volume_driver: str = ""
    volumes_from: list[str] | None = None
    mounts: list[MountSpec] | None = None
    console_size: list[int] | None = None  # rows, columns
    annotations: dict[str, str] | None = None
    cap_add: list[str] | None = None
    cap_drop: list[str] | None = None
    cgroupns_mode: str = ""
    dns: list[str] | None = None
    dns_options: list[str] | None = None
    dns_search: list[str] | None = None
    extra_hosts: list[str] | None = None
    group_add: list[str] | None = None
    ipc_mode: str = ""
    cgroup: str = ""
    links: list[str] | None = None
    oom_score_adj: int = 0
    pid_mode: str = ""
    privileged: bool = False
    publish_all_ports: bool = False
    readonly_rootfs: bool = False
    security_opt: list[str] | None = None
    storage_opt: dict[str, str] | None = None
    tmpfs: dict[str, str] | None = None
    uts_mode: str = msgspec.field(default="", name="UTSMode")
    userns_mode: str = ""
    shm_size: int = 0  # bytes
    sysctls: dict[str, str] | None = None
    runtime: str = ""
    isolation: str = ""
    masked_paths: list[str] | None = None
    readonly_paths: list[str] | None = None
    # Of other systems and of the past: here so that they are seen, and refused
    cpu_count: int = 0
    cpu_percent: int = 0
    io_maximum_i_ops: int = msgspec.field(default=0, name="IOMaximumIOps")
    io_maximum_bandwidth: int = msgspec.field(default=0, name="IOMaximumBandwidth")
    kernel_memory_tcp: int = msgspec.field(default=0, name="KernelMemoryTCP")


class EndpointIpamConfig(ApiStruct, frozen=True, kw_only=True):
    i_pv4_address: str = msgspec.field(default="", name="IPv4Address")
    i_pv6_address: str = msgspec.field(default="", name="IPv6Address")
    link_local_i_ps: list[str] | None = msgspec.field(default=None, name="LinkLocalIPs")


class EndpointSettings(ApiStruct, frozen=True, kw_only=True):
    """What a user asks of one network, and (the second half) what the container got."""

    ipam_config: EndpointIpamConfig | None = msgspec.field(default=None, name="IPAMConfig")
    links: list[str] | None = None
    mac_address: str = ""
    aliases: list[str] | None = None
    driver_opts: dict[str, str] | None = None
    gw_priority: int = 0
    network_id: str = msgspec.field(default="", name="NetworkID")
    endpoint_id: str = msgspec.field(default="", name="EndpointID")
    gateway: str = ""
    ip_address: str = msgspec.field(default="", name="IPAddress")
    ip_prefix_len: int = msgspec.field(default=0, name="IPPrefixLen")
    ipv6_gateway: str = msgspec.field(default="", name="IPv6Gateway")
    global_ipv6_address: str = msgspec.field(default="", name="GlobalIPv6Address")
    global_ipv6_prefix_len: int = msgspec.field(default=0, name="GlobalIPv6PrefixLen")
    dns_names: list[str] | None = msgspec.field(default=None, name="DNSNames")


class NetworkingConfig(ApiStruct, frozen=True, kw_only=True):
    endpoints_config: dict[str, EndpointSettings | None] | None = None

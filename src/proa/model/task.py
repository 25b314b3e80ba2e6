# SPDX-License-Identifier: Apache-2.0
"""What is handed to a hull to run, fully resolved: no defaults to look up, no names to resolve.

The engine builds these values from a container's configuration, its image, its storage and its networks; the
drivers in ``proa.runtime`` turn them into an OCI bundle or a QEMU machine. Image, storage, network and the
drivers know each other only through these types.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path

from proa.model.ids import ContainerId, NetworkId


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One process to run inside a container.

    ``user`` is as the Engine API takes it ("", "uid", "name", "uid:gid", "name:group") and is resolved by
    the driver in the container's own /etc/passwd. ``env`` entries are KEY=VALUE; PATH and HOME are filled in
    by the driver when absent (HOME needs the resolved user).
    """

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = ""
    group_add: tuple[str, ...] = ()
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False  # stdin closes for good when the first client that fed it leaves
    console_size: tuple[int, int] | None = None  # rows, columns
    privileged: bool = False  # of an exec: all capabilities, whatever the container has


@dataclass(frozen=True, slots=True, kw_only=True)
class IdMap:
    """The ids 0 to ``size`` - 1 of a container are, seen from the host, those from ``uid`` and ``gid`` on."""

    uid: int
    gid: int
    size: int


# --- root file system ---


class RootfsKind(enum.Enum):
    """What a driver wants its root file system to be."""

    DIRECTORY = "directory"
    BLOCK = "block"


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryRootfs:
    """A mounted, writable directory on the host (overlay of the image's layers)."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRootfs:
    """EROFS layer files, lowest first, and a raw ext4 image for what is written on top of them.

    The guest keeps ``upper`` and ``work`` directories of its overlay in the ext4's root.

    :ivar blank: what ``writable`` was copied from; never written, and the same bytes wherever it is made.
    :ivar is_new: nothing has been written to ``writable`` yet: it equals ``blank``.
    """

    layers: tuple[Path, ...]
    writable: Path
    blank: Path
    is_new: bool


Rootfs = DirectoryRootfs | BlockRootfs


class MountKind(enum.Enum):
    BIND = "bind"
    TMPFS = "tmpfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A bind mount (named volumes are binds of their directory) or a tmpfs.

    ``options`` are mount options as mount(8) writes them beyond ro/rw: propagation of a bind ("rprivate",
    "rshared"…), "rro" for one that is read-only with the mounts below its source, "size=64m" and "mode=1777"
    of a tmpfs. The target exists or is made by the driver.
    """

    kind: MountKind
    target: str
    source: Path | None = None
    read_only: bool = False
    options: tuple[str, ...] = ()


_TMPFS_DEFAULTS = ("noexec", "nosuid", "nodev")
_OPPOSITES = {"exec": "noexec", "suid": "nosuid", "dev": "nodev", "rw": "ro"}


def tmpfs_options(mount: Mount) -> tuple[str, ...]:
    """Return Docker's defaults, without those that the user's options turn round (``exec``), and those."""
    opposed = {_OPPOSITES[option] for option in mount.options if option in _OPPOSITES}
    options = [option for option in _TMPFS_DEFAULTS if option not in opposed and option not in mount.options]
    if mount.read_only and "ro" not in mount.options:
        options.append("ro")
    return (*options, *mount.options)


# --- network ---


class NetworkKind(enum.Enum):
    """What a driver attaches to a bridge: a network namespace, or tap devices."""

    NAMESPACE = "namespace"
    TAP = "tap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """One interface inside the container.

    :ivar device: the host's end, a veth or a tap; "" for one that has none (macvlan).
    """

    name: str  # eth0, eth1…
    device: str
    network_id: NetworkId
    mac: str
    address: IPv4Interface | None  # None on a network without IPv4, which only a namespace can be on
    gateway: IPv4Address | None = None  # set on the one interface that carries the default route
    address6: IPv6Interface | None = None
    gateway6: IPv6Address | None = None  # as gateway, of IPv6
    link_local: tuple[IPv4Interface | IPv6Interface, ...] = ()  # further addresses, when it is made
    mtu: int = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAttachment:
    """How a task reaches the network.

    ``namespace`` is the path of a prepared network namespace, None for a tap attachment and for the host's
    own network (``host`` is then True). No interfaces and no host means loopback only.
    """

    host: bool = False
    namespace: Path | None = None
    joins: ContainerId | None = None  # another container of the same virtual machine, whose network it shares
    interfaces: tuple[Interface, ...] = ()


# --- limits and privileges ---


class DeviceLimitKind(enum.Enum):
    """What of a block device is limited, in the words of the OCI runtime-spec, config-linux.md, Block IO."""

    WEIGHT = "weightDevice"
    READ_BPS = "throttleReadBpsDevice"
    WRITE_BPS = "throttleWriteBpsDevice"
    READ_IOPS = "throttleReadIOPSDevice"
    WRITE_IOPS = "throttleWriteIOPSDevice"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLimit:
    """A limit of one block device of the host, looked up when the task is made."""

    kind: DeviceLimitKind
    path: Path
    value: int  # a weight, bytes/s or operations/s


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Limits. Zero and None mean no limit, as in the Engine API."""

    memory_bytes: int = 0
    memory_swap_bytes: int = 0  # memory and swap together; -1 unlimited
    memory_reservation_bytes: int = 0
    cpu_shares: int = 0
    cpu_period_us: int = 0
    cpu_quota_us: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids: int = 0
    cpu_realtime_period_us: int = 0
    cpu_realtime_runtime_us: int = 0
    blkio_weight: int = 0
    device_limits: tuple[DeviceLimit, ...] = ()
    oom_kill_disable: bool = False
    memory_swappiness: int | None = None

    @property
    def cpus(self) -> float:
        """CPUs' worth of time per second that the quota allows; 0 when there is no quota."""
        if self.cpu_quota_us <= 0:
            return 0.0
        return self.cpu_quota_us / (self.cpu_period_us or 100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rlimit:
    name: str  # as ulimit(1) and docker write it: nofile, nproc, core…
    soft: int
    hard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    host_path: Path
    container_path: str
    permissions: str = "rwm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """``masked_paths`` and ``readonly_paths`` None mean the hull's default (Docker's lists)."""

    privileged: bool = False
    cap_add: tuple[str, ...] = ()  # CAP_NET_ADMIN or NET_ADMIN, or ALL
    cap_drop: tuple[str, ...] = ()
    no_new_privileges: bool = False
    seccomp: str = ""  # "" default profile, "unconfined", or the text of a profile (JSON)
    masked_paths: tuple[str, ...] | None = None
    readonly_paths: tuple[str, ...] | None = None
    devices: tuple[Device, ...] = ()
    device_cgroup_rules: tuple[str, ...] = ()
    cdi_devices: tuple[str, ...] = ()  # vendor.com/class=name


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespaces:
    """Sharing of namespaces: "" private, "host", or the path of a namespace file of another container.

    ``user`` is "" for the host's, or the path of the one to join: see TaskSpec.ids.
    """

    pid: str = ""
    ipc: str = ""
    uts: str = ""
    cgroup: str = ""
    user: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """Everything a driver needs to make one task.

    :ivar log_path: where the output of the process is appended, in conmon's k8s-file format:
        ``RFC3339Nano-time stdout|stderr F|P text``.
    :ivar log_max_bytes: beyond this a new file is renamed over ``log_path``, and the one before left as it
        is; 0: never.
    :ivar ids: the map of ``namespaces.user``; None when that is the host's.
    :ivar files: content of files the engine owns, by absolute path inside: /etc/hostname, /etc/hosts,
        /etc/resolv.conf. The container may change its copy.
    """

    id: ContainerId
    hostname: str
    domainname: str = ""
    process: ProcessSpec
    rootfs: Rootfs
    log_path: Path
    log_max_bytes: int = 0
    read_only_rootfs: bool = False
    mounts: tuple[Mount, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    network: NetworkAttachment = NetworkAttachment()
    resources: Resources = Resources()
    rlimits: tuple[Rlimit, ...] = ()
    security: Security = Security()
    namespaces: Namespaces = Namespaces()
    ids: IdMap | None = None
    sysctls: Mapping[str, str] = field(default_factory=dict)
    shm_size_bytes: int = 64 * 1024 * 1024  # 0: no /dev/shm
    init: bool = False  # a small init (tini) as process 1, that forwards signals and reaps
    cgroup_parent: str = ""
    oom_score_adj: int = 0
    annotations: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""  # name of the virtual machine that it is in with others


# --- what a task reports ---


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitStatus:
    """How a process ended: ``code`` is 128 + signal for a signal, as shells and Docker count."""

    code: int
    finished_at_ns: int  # Unix time
    oom_killed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkCounters:
    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStats:
    """One reading of a running task's use. Times are nanoseconds since the task began, sizes bytes."""

    read_at_ns: int  # Unix time
    cpu_total_ns: int = 0
    cpu_user_ns: int = 0
    cpu_kernel_ns: int = 0
    online_cpus: int = 1
    system_cpu_ns: int = 0  # of all CPUs the figures relate to (the host's, or the guest's)
    throttled_periods: int = 0
    throttled_ns: int = 0
    memory_usage: int = 0
    memory_limit: int = 0
    memory_stats: Mapping[str, int] = field(default_factory=dict)  # inactive_file, cache…
    pids: int = 0
    pids_limit: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    networks: Mapping[str, NetworkCounters] = field(default_factory=dict)  # by interface name


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessTable:
    """The output of ps: column titles, and one row for each process."""

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

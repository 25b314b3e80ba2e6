# SPDX-License-Identifier: Apache-2.0
"""Turns a TaskSpec into the configuration of an OCI bundle, with Docker's defaults. Pure.

What has to be looked up (users, devices, what the host allows) is looked up before and given here, so that
the same values always make the same file. Mounts, devices, capabilities and seccomp have files of their own.

Source: OCI runtime-spec 1.0.2, config.md and config-linux.md; Docker Engine's defaults (moby, oci/defaults).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from proa.model.errors import InvalidParameter
from proa.model.task import DirectoryRootfs, ProcessSpec, Resources, Rlimit, TaskSpec
from proa.runtime.oci import capabilities, devices, seccomp
from proa.runtime.oci.block_io import FoundLimit, block_io
from proa.runtime.oci.devices import DeviceNode
from proa.runtime.oci.facts import HostFacts
from proa.runtime.oci.mounts import INIT_TARGET, build_mounts, rootfs_propagation
from proa.runtime.oci.user import User

Json = dict[str, object]

OCI_VERSION = "1.0.2"
CGROUP_PARENT = "/proa"
OPEN_FILES = 1024  # soft limit of a container that asks for none
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MASKED_PATHS = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
)  # fmt: skip
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_RLIMITS = frozenset(
    {
        "as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc",
        "rss", "rtprio", "rttime", "sigpending", "stack",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was looked up for one container."""

    user: User
    devices: Sequence[DeviceNode] = ()
    limits: Sequence[FoundLimit] = ()
    files: Mapping[str, Path] | None = None  # kept by the driver on the host, by target
    init: Path = Path("/usr/bin/tini-static")
    default_seccomp: seccomp.Profile | None = None


def cgroup_path(spec: TaskSpec) -> str:
    """Return the cgroup of the container, from the root of every tree."""
    parent = "/" + (spec.cgroup_parent or CGROUP_PARENT).strip("/")
    if ".." in parent.split("/"):
        raise InvalidParameter(f"invalid cgroup parent: {spec.cgroup_parent!r}")
    return f"{parent}/{spec.id}"


def build_config(spec: TaskSpec, found: Found, facts: HostFacts) -> Json:
    """Return config.json as plain values.

    :raises InvalidParameter: an option cannot be had here; the message names it.
    """
    if not isinstance(spec.rootfs, DirectoryRootfs):
        raise InvalidParameter("a container needs a directory as its root file system")
    caps = capabilities.resolve(spec.security, facts.capabilities)
    config: Json = {
        "ociVersion": OCI_VERSION,
        "process": _process(spec, found.user, caps, facts),
        "root": {"path": str(spec.rootfs.path), "readonly": spec.read_only_rootfs},
        "mounts": build_mounts(spec, files=found.files or {}, init=found.init),
        "linux": _linux(spec, found, caps, facts),
    }
    if spec.namespaces.uts == "" and spec.hostname:
        config["hostname"] = spec.hostname
    if spec.annotations:
        config["annotations"] = dict(spec.annotations)
    return config


def process_entry(
    process: ProcessSpec, *, user: User, caps: Collection[str], no_new_privileges: bool
) -> Json:
    """Return ``process`` for the first process or for one of exec, without limits."""
    if not process.args:
        raise InvalidParameter("no command specified")
    entry: Json = {
        "terminal": process.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
        "args": list(process.args),
        "env": process_env(process.env, home=user.home),
        "cwd": process.cwd or "/",
        "capabilities": _capability_sets(caps, uid=user.uid),
        "noNewPrivileges": no_new_privileges,
    }
    if process.tty and process.console_size:
        rows, columns = process.console_size
        entry["consoleSize"] = {"height": rows, "width": columns}
    return entry


class _BaseProcess(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a process of exec has in common with the first one."""

    capabilities: dict[str, list[str]]
    no_new_privileges: bool = False
    rlimits: list[Json] | None = None
    oom_score_adj: int | None = None


class _BaseConfig(msgspec.Struct, frozen=True, kw_only=True):
    process: _BaseProcess


def exec_entry(config: bytes, process: ProcessSpec, *, user: User, available: Collection[str]) -> Json:
    """Return ``process`` for an exec in the container that was made from ``config`` (its config.json).

    :param available: what a privileged exec gets.
    """
    base = msgspec.json.decode(config, type=_BaseConfig).process
    caps = base.capabilities["bounding"]
    if process.privileged:
        caps = [name for name in capabilities.NAMES if name in available]
    entry = process_entry(process, user=user, caps=caps, no_new_privileges=base.no_new_privileges)
    if base.rlimits:
        entry["rlimits"] = base.rlimits
    if base.oom_score_adj is not None:
        entry["oomScoreAdj"] = base.oom_score_adj
    return entry


def process_env(given: Iterable[str], *, home: str) -> list[str]:
    """Return the environment with PATH and HOME where they were not given; a later entry wins."""
    env: dict[str, str] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if equals:
            env[name] = value
    env = {"PATH": DEFAULT_PATH, **env} if "PATH" not in env else env
    env.setdefault("HOME", home)
    return [f"{name}={value}" for name, value in env.items()]


def lower_rlimits(given: Iterable[Rlimit], facts: HostFacts) -> list[Json]:
    """Return ``process.rlimits``, each no higher than this engine may set. -1 is unlimited.

    :raises InvalidParameter: a name is unknown.
    """
    found = []
    for limit in given:
        name = limit.name.lower().removeprefix("rlimit_")
        if name not in _RLIMITS:
            raise InvalidParameter(f"invalid ulimit type: {limit.name}")
        highest = facts.hard_limits.get(name, -1)
        if name == "nofile":
            highest = _lower(highest, facts.nr_open)
        hard = _lower(limit.hard, highest)
        found.append(
            {
                "type": f"RLIMIT_{name.upper()}",
                "hard": _rlimit_number(hard),
                "soft": _rlimit_number(_lower(limit.soft, hard)),
            }
        )
    return found


def _process(spec: TaskSpec, user: User, caps: Collection[str], facts: HostFacts) -> Json:
    entry = process_entry(
        spec.process, user=user, caps=caps, no_new_privileges=spec.security.no_new_privileges
    )
    if spec.init:
        entry["args"] = [INIT_TARGET, "--", *spec.process.args]
    rlimits = lower_rlimits(_with_open_files(spec.rlimits), facts)
    if rlimits:
        entry["rlimits"] = rlimits
    adjustment = max(spec.oom_score_adj, facts.lowest_oom_score_adj)
    if adjustment != facts.oom_score_adj:
        entry["oomScoreAdj"] = adjustment
    return entry


def _capability_sets(caps: Collection[str], *, uid: int) -> Json:
    """Only root holds them from the start; others may gain them by file capabilities, as after execve."""
    names = list(caps)
    held: list[str] = names if uid == 0 else []
    return {"bounding": names, "effective": held, "permitted": held}


def _linux(spec: TaskSpec, found: Found, caps: Collection[str], facts: HostFacts) -> Json:
    security = spec.security
    linux: Json = {
        "cgroupsPath": cgroup_path(spec),
        "namespaces": _namespaces(spec),
        "resources": {
            "devices": devices.rules(security, found.devices),
            **_resources(spec.resources, facts, found.limits),
        },
        "maskedPaths": list(_paths(security.masked_paths, MASKED_PATHS, privileged=security.privileged)),
        "readonlyPaths": list(
            _paths(security.readonly_paths, READONLY_PATHS, privileged=security.privileged)
        ),
    }
    if spec.ids is not None:
        linux["uidMappings"] = [{"containerID": 0, "hostID": spec.ids.uid, "size": spec.ids.size}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": spec.ids.gid, "size": spec.ids.size}]
    if found.devices:
        linux["devices"] = [devices.node_entry(node) for node in found.devices]
    sysctls = _sysctls(spec)
    if sysctls:
        linux["sysctl"] = sysctls
    propagation = rootfs_propagation(spec.mounts)
    if propagation:
        linux["rootfsPropagation"] = propagation
    profile = _seccomp_profile(spec, found.default_seccomp)
    if profile is not None:
        linux["seccomp"] = seccomp.convert(
            profile, capabilities=caps, architecture=facts.architecture, kernel=facts.kernel
        )
    return linux


def _seccomp_profile(spec: TaskSpec, default: seccomp.Profile | None) -> seccomp.Profile | None:
    chosen = spec.security.seccomp
    if chosen == "unconfined" or (chosen == "" and spec.security.privileged):
        return None
    return seccomp.parse_profile(chosen) if chosen else default


def _paths(given: Sequence[str] | None, default: Sequence[str], *, privileged: bool) -> Sequence[str]:
    if given is not None:
        return given
    return () if privileged else default


def _namespaces(spec: TaskSpec) -> list[Json]:
    shared = spec.namespaces
    found: list[Json] = [{"type": "mount"}]
    for kind, value in (
        ("pid", shared.pid),
        ("ipc", shared.ipc),
        ("uts", shared.uts),
        ("cgroup", shared.cgroup),
    ):
        if value == "":
            found.append({"type": kind})
        elif value != "host":
            found.append({"type": kind, "path": value})
    if shared.user:
        # Joined first: the others that are made belong to it.
        found.insert(0, {"type": "user", "path": shared.user})
    if spec.network.namespace is not None:
        found.append({"type": "network", "path": str(spec.network.namespace)})
    elif not spec.network.host:
        found.append({"type": "network"})
    return found


def _sysctls(spec: TaskSpec) -> dict[str, str]:
    found: dict[str, str] = {}
    if not spec.network.host:
        # Docker's: ports below 1024 and ping need no privilege in a network of one's own.
        found["net.ipv4.ip_unprivileged_port_start"] = "0"
        highest = spec.ids.size - 1 if spec.ids else 2147483647  # the kernel takes only ids that there are
        found["net.ipv4.ping_group_range"] = f"0 {highest}"
    if spec.domainname and spec.namespaces.uts == "":
        found["kernel.domainname"] = spec.domainname
    return found | dict(spec.sysctls)


def _resources(wanted: Resources, facts: HostFacts, limits: Sequence[FoundLimit]) -> Json:
    found: Json = {}
    memory = _memory(wanted, facts)
    if memory:
        found["memory"] = memory
    cpu = {
        key: value
        for key, value in (
            ("shares", wanted.cpu_shares),
            ("period", wanted.cpu_period_us),
            ("quota", wanted.cpu_quota_us),
            ("cpus", wanted.cpuset_cpus),
            ("mems", wanted.cpuset_mems),
            ("realtimePeriod", wanted.cpu_realtime_period_us),
            ("realtimeRuntime", wanted.cpu_realtime_runtime_us),
        )
        if value
    }
    if cpu:
        found["cpu"] = cpu
    if wanted.pids > 0:
        found["pids"] = {"limit": wanted.pids}
    if limits:
        found["blockIO"] = block_io(limits)
    return found


def _memory(wanted: Resources, facts: HostFacts) -> Json:
    """What the kernel lacks is left out, as Docker does with a warning."""
    memory: Json = {}
    if wanted.memory_bytes > 0:
        memory["limit"] = wanted.memory_bytes
    if wanted.memory_swap_bytes and facts.limits_swap and wanted.memory_bytes > 0:
        memory["swap"] = wanted.memory_swap_bytes
    if wanted.memory_reservation_bytes > 0:
        memory["reservation"] = wanted.memory_reservation_bytes
    if not facts.cgroup_is_v2:
        if wanted.memory_swappiness is not None and wanted.memory_swappiness >= 0:
            memory["swappiness"] = wanted.memory_swappiness
        if wanted.oom_kill_disable:
            memory["disableOOMKiller"] = True
    return memory


def _lower(left: int, right: int) -> int:
    """The lower of two limits, -1 being none."""
    if left < 0 or right < 0:
        return max(left, right)
    return min(left, right)


def _with_open_files(given: Sequence[Rlimit]) -> Sequence[Rlimit]:
    """Add the usual limit of open files, lest a program inherit the engine's own raised one.

    1,024 with a high ceiling is what systemd gives services: programs that close every possible descriptor
    take minutes with a million of them. Source: systemd.exec(5), LimitNOFILE.
    """
    if any(limit.name.lower().removeprefix("rlimit_") == "nofile" for limit in given):
        return given
    return (*given, Rlimit(name="nofile", soft=OPEN_FILES, hard=-1))


def _rlimit_number(limit: int) -> int:
    return (1 << 64) - 1 if limit < 0 else limit  # RLIM_INFINITY

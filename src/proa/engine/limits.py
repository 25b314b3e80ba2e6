# SPDX-License-Identifier: Apache-2.0
"""Reads a HostConfig's limits and privileges into the values a driver takes. Pure but for the CPU count.

Source: Engine API, Resources; docker run reference, "Runtime constraints on resources"; the sentences are
the Docker Engine's.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from proa.model.config import HostConfig
from proa.model.errors import InvalidParameter
from proa.model.task import Device, DeviceLimit, DeviceLimitKind, Resources, Rlimit, Security

MIN_MEMORY_BYTES = 6 * 1024 * 1024  # dockerd's floor: less cannot start a process
CPU_PERIOD_US = 100_000  # the kernel's default period of CFS bandwidth control

_RLIMITS = frozenset(
    "as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending "
    "stack".split()
)

# Security modules that proa does not configure: their one value that asks for nothing.
_UNCONFINED = {"label": "disable", "apparmor": "unconfined", "systempaths": "unconfined"}


def parse_resources(host: HostConfig) -> Resources:
    """Return the limits of a container. Raises InvalidParameter for those that make no sense."""
    _check_memory(host)
    period, quota = _parse_cpu(host)
    return Resources(
        memory_bytes=host.memory,
        memory_swap_bytes=host.memory_swap or (2 * host.memory if host.memory else 0),
        memory_reservation_bytes=host.memory_reservation,
        cpu_shares=host.cpu_shares,
        cpu_period_us=period,
        cpu_quota_us=quota,
        cpuset_cpus=_check_cpuset(host.cpuset_cpus, "cpus"),
        cpuset_mems=_check_cpuset(host.cpuset_mems, "mems"),
        pids=max(host.pids_limit or 0, 0),
        cpu_realtime_period_us=host.cpu_realtime_period,
        cpu_realtime_runtime_us=host.cpu_realtime_runtime,
        blkio_weight=_check_weight(host.blkio_weight),
        device_limits=_device_limits(host),
        oom_kill_disable=bool(host.oom_kill_disable),
        memory_swappiness=None if host.memory_swappiness in (None, -1) else host.memory_swappiness,
    )


def parse_rlimits(host: HostConfig) -> tuple[Rlimit, ...]:
    """Return the ulimits. Raises InvalidParameter."""
    limits = []
    for ulimit in host.ulimits or ():
        if ulimit.name not in _RLIMITS:
            raise InvalidParameter(f"invalid ulimit type: {ulimit.name}")
        if ulimit.hard != -1 and (ulimit.soft == -1 or ulimit.soft > ulimit.hard):
            raise InvalidParameter(
                f"ulimit soft limit must be less than or equal to hard limit: {ulimit.soft} > {ulimit.hard}"
            )
        limits.append(Rlimit(name=ulimit.name, soft=ulimit.soft, hard=ulimit.hard))
    return tuple(limits)


def parse_security(host: HostConfig) -> Security:
    """Return privileges and devices. Raises InvalidParameter."""
    no_new_privileges, seccomp = False, ""
    for option in host.security_opt or ():
        key, *rest = re.split("[=:]", option, maxsplit=1)  # key:value is the old way; a profile has colons
        value = rest[0] if rest else ""
        if key == "no-new-privileges":
            if value not in ("", "true", "false"):
                raise InvalidParameter(f'invalid --security-opt 2: "{option}"')
            no_new_privileges = value != "false"
        elif key == "seccomp" and value:
            seccomp = _check_seccomp(value)
        elif key in _UNCONFINED:
            if value != _UNCONFINED[key]:
                raise InvalidParameter(
                    f"security option {option} is not supported: only {key}={_UNCONFINED[key]} is"
                )
        else:
            raise InvalidParameter(f'invalid --security-opt 2: "{option}"')
    unmasked = host.privileged or "systempaths=unconfined" in (host.security_opt or ())
    return Security(
        privileged=host.privileged,
        cap_add=_parse_capabilities(host.cap_add),
        cap_drop=_parse_capabilities(host.cap_drop),
        no_new_privileges=no_new_privileges,
        seccomp=seccomp,
        masked_paths=() if unmasked else _tuple_or_none(host.masked_paths),
        readonly_paths=() if unmasked else _tuple_or_none(host.readonly_paths),
        devices=tuple(
            Device(
                host_path=Path(device.path_on_host),
                container_path=device.path_in_container or device.path_on_host,
                permissions=_check_permissions(device.cgroup_permissions),
            )
            for device in host.devices or ()
        ),
        device_cgroup_rules=tuple(_check_device_rule(rule) for rule in host.device_cgroup_rules or ()),
    )


def _check_memory(host: HostConfig) -> None:
    if host.memory < 0 or 0 < host.memory < MIN_MEMORY_BYTES:
        raise InvalidParameter("Minimum memory limit allowed is 6MB")
    if host.memory_swap > 0 and not host.memory:
        raise InvalidParameter(
            "You should always set the Memory limit when using Memoryswap limit, see usage"
        )
    if host.memory and 0 < host.memory_swap < host.memory:
        raise InvalidParameter("Minimum memoryswap limit should be larger than memory limit, see usage")
    if host.memory_reservation < 0 or 0 < host.memory_reservation < MIN_MEMORY_BYTES:
        raise InvalidParameter("Minimum memory reservation allowed is 6MB")
    if host.memory and host.memory_reservation > host.memory:
        raise InvalidParameter(
            "Minimum memory limit can not be less than memory reservation limit, see usage"
        )
    swappiness = host.memory_swappiness
    if swappiness is not None and not -1 <= swappiness <= 100:
        raise InvalidParameter(f"Invalid value: {swappiness}, valid memory swappiness range is 0-100")


def _parse_cpu(host: HostConfig) -> tuple[int, int]:
    if host.nano_cpus:
        if host.cpu_period or host.cpu_quota:
            raise InvalidParameter(
                "Conflicting options: Nano CPUs and CPU Period cannot both be set"
                if host.cpu_period
                else "Conflicting options: Nano CPUs and CPU Quota cannot both be set"
            )
        available = os.cpu_count() or 1
        if not 10_000_000 <= host.nano_cpus <= available * 1_000_000_000:
            raise InvalidParameter(
                f"range of CPUs is from 0.01 to {available}.00, as there are only {available} CPUs available"
            )
        return CPU_PERIOD_US, host.nano_cpus * CPU_PERIOD_US // 1_000_000_000
    if host.cpu_period and not 1_000 <= host.cpu_period <= 1_000_000:
        raise InvalidParameter(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"
        )
    if 0 < host.cpu_quota < 1_000:
        raise InvalidParameter("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if host.cpu_shares < 0:
        raise InvalidParameter(f"shares must be zero or positive: {host.cpu_shares}")
    if 0 < host.cpu_realtime_period < host.cpu_realtime_runtime:
        raise InvalidParameter("cpu real-time runtime cannot be higher than cpu real-time period")
    return host.cpu_period, max(host.cpu_quota, 0)


def _check_cpuset(text: str, what: str) -> str:
    """Check a list such as 0-2,4 (cpuset(7), "List format")."""
    if not text:
        return ""
    if re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text) is None:
        raise InvalidParameter(f"Invalid value {text} for cpuset {what}")
    available = os.cpu_count() or 1
    highest = max(int(number) for number in re.findall(r"\d+", text))
    if what == "cpus" and highest >= available:
        raise InvalidParameter(
            f"Requested CPUs are not available - requested {text}, available: 0-{available - 1}"
        )
    return text


def _check_weight(weight: int) -> int:
    if weight and not 10 <= weight <= 1000:
        raise InvalidParameter("Range of blkio weight is from 10 to 1000")
    return weight


def _device_limits(host: HostConfig) -> tuple[DeviceLimit, ...]:
    found = [
        DeviceLimit(kind=DeviceLimitKind.WEIGHT, path=_device_path(one.path), value=_check_weight(one.weight))
        for one in host.blkio_weight_device or ()
    ]
    for kind, devices in (
        (DeviceLimitKind.READ_BPS, host.blkio_device_read_bps),
        (DeviceLimitKind.WRITE_BPS, host.blkio_device_write_bps),
        (DeviceLimitKind.READ_IOPS, host.blkio_device_read_i_ops),
        (DeviceLimitKind.WRITE_IOPS, host.blkio_device_write_i_ops),
    ):
        for one in devices or ():
            if one.rate < 0:
                raise InvalidParameter(f"invalid rate for device: {one.path}:{one.rate}")
            found.append(DeviceLimit(kind=kind, path=_device_path(one.path), value=one.rate))
    return tuple(found)


def _device_path(text: str) -> Path:
    if not text.startswith("/") or "\0" in text:
        raise InvalidParameter(f"bad format for device path: {text}")
    return Path(text)


def _check_seccomp(value: str) -> str:
    if value == "unconfined":
        return value
    if value == "builtin":
        return ""
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise InvalidParameter(f"Decoding seccomp profile failed: {error}") from error
    if not isinstance(parsed, dict):
        raise InvalidParameter("Decoding seccomp profile failed: it is not a JSON object")
    return value


def _parse_capabilities(names: list[str] | None) -> tuple[str, ...]:
    parsed = []
    for name in names or ():
        upper = name.upper()
        if upper != "ALL" and not upper.startswith("CAP_"):
            upper = f"CAP_{upper}"
        if re.fullmatch(r"ALL|CAP_[A-Z_]+", upper) is None or upper not in CAPABILITIES:
            raise InvalidParameter(f'invalid CapAdd: unknown capability: "{name}"')
        parsed.append(upper)
    return tuple(parsed)


def _check_permissions(text: str) -> str:
    permissions = text or "rwm"
    if re.fullmatch(r"[rwm]{1,3}", permissions) is None:
        raise InvalidParameter(f"invalid device mode: {text}")
    return permissions


def _check_device_rule(rule: str) -> str:
    if re.fullmatch(r"[acb] (\d+|\*):(\d+|\*) [rwm]{1,3}", rule) is None:
        raise InvalidParameter(f"invalid device cgroup rule format: '{rule}'")
    return rule


def _tuple_or_none(paths: list[str] | None) -> tuple[str, ...] | None:
    return None if paths is None else tuple(paths)


# capabilities(7), in the order of their numbers.
CAPABILITIES = frozenset(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
        "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
        "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
        "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
        "PERFMON BPF CHECKPOINT_RESTORE"
    ).split()
) | {"ALL"}

# SPDX-License-Identifier: Apache-2.0
"""Capabilities and resource limits as the numbers that the guest agent takes.

Names have been checked by the engine; here they only become bits and numbers. In a guest "privileged" means
all capabilities over the guest's own kernel.

Source: capabilities(7), include/uapi/linux/capability.h; getrlimit(2), asm-generic/resource.h; the default
set is the one Docker documents for containers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from proa.model.errors import InvalidParameter
from proa.model.task import Rlimit, Security
from proa.runtime.vm.protocol import UNLIMITED

_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL",
    "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
    "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip
ALL_CAPABILITIES = (1 << len(_CAPABILITIES)) - 1
_DEFAULT = (
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
    "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
)  # fmt: skip

_RLIMITS = (
    "cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile", "memlock", "as", "locks",
    "sigpending", "msgqueue", "nice", "rtprio", "rttime",
)  # fmt: skip
MAX_OPEN_FILES = 1_048_576  # fs.nr_open of the guest: more cannot be set

# What Docker hides or makes read-only in a container; in a guest they guard the guest's kernel.
MASKED_PATHS = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
)  # fmt: skip
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def capability_mask(security: Security) -> int:
    """Return the bits of the capabilities that a process of the container has. Raises InvalidParameter."""
    if security.privileged:
        return ALL_CAPABILITIES
    added, dropped = set(_names(security.cap_add)), set(_names(security.cap_drop))
    if "ALL" in added:
        kept = set(_CAPABILITIES) - dropped
    elif "ALL" in dropped:
        kept = added
    else:
        kept = (set(_DEFAULT) | added) - dropped
    return sum(1 << _number(name) for name in kept)


def rlimits(limits: Iterable[Rlimit]) -> Iterator[tuple[int, int, int]]:
    """Yield resource number, soft and hard limit. Raises InvalidParameter for an unknown name."""
    for limit in limits:
        if limit.name not in _RLIMITS:
            raise InvalidParameter(f"invalid ulimit type: {limit.name}")
        soft, hard = (UNLIMITED if value < 0 else value for value in (limit.soft, limit.hard))
        if limit.name == "nofile":
            soft, hard = min(soft, MAX_OPEN_FILES), min(hard, MAX_OPEN_FILES)
        yield _RLIMITS.index(limit.name), soft, hard


def _names(listed: Iterable[str]) -> Iterator[str]:
    return (name.upper().removeprefix("CAP_") for name in listed)


def _number(name: str) -> int:
    try:
        return _CAPABILITIES.index(name)
    except ValueError:
        raise InvalidParameter(f'invalid CapAdd: unknown capability: "CAP_{name}"') from None

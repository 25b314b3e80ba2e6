# SPDX-License-Identifier: Apache-2.0
"""Which capabilities a container's processes get: Docker's defaults, tweaked by the request. Pure.

Source: capabilities(7), linux/capability.h; Docker documentation, "Runtime privilege and Linux capabilities".
"""

from __future__ import annotations

from collections.abc import Collection

from proa.model.errors import InvalidParameter
from proa.model.task import Security

# By number, as the bits of CapEff in /proc/<pid>/status.
NAMES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
    "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
    "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip
DEFAULT = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW",
    "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
)  # fmt: skip


def parse_mask(text: str) -> frozenset[str]:
    """Read a hexadecimal mask of /proc/<pid>/status; bits newer than this table are left out."""
    bits = int(text, 16)
    return frozenset(name for number, name in enumerate(NAMES) if bits >> number & 1)


def resolve(security: Security, available: Collection[str]) -> tuple[str, ...]:
    """Return the capabilities in the order of their numbers.

    A default that the engine does not have itself is left out; one that was asked for by name is an error.

    :param available: what the engine may hand on.
    :raises InvalidParameter: the name is unknown, or the engine does not have it.
    """
    added, dropped = _names(security.cap_add), _names(security.cap_drop)
    if security.privileged:
        wanted = set(NAMES)
    elif "ALL" in added:
        wanted = set(NAMES) - dropped
    elif "ALL" in dropped:
        wanted = set(added)
    else:
        wanted = (set(DEFAULT) - dropped) | added
    for name in added - {"ALL"}:
        if name not in available:
            raise InvalidParameter(
                "capability not supported by your kernel or not available in the current environment: "
                f'"{name}"'
            )
    return tuple(name for name in NAMES if name in wanted and name in available)


def _names(given: Collection[str]) -> set[str]:
    names = set()
    for each in given:
        upper = each.upper()
        name = upper if upper == "ALL" or upper.startswith("CAP_") else f"CAP_{upper}"
        if name != "ALL" and name not in NAMES:
            raise InvalidParameter(f'unknown capability: "{each}"')
        names.add(name)
    return names

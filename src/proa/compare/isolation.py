# SPDX-License-Identifier: Apache-2.0
"""Isolation and security, as a process inside finds them: the answers of the probe's ``look``.

Read as root of the hull, with the engine's default privileges, in one instance of each: these are facts of a
configuration and do not vary from run to run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from proa.compare.figures import Cell, Fact, Missing, Row, measured
from proa.compare.hulls import Hull
from proa.compare.probing import Look

ISOLATION = "isolation"
SECURITY = "security"
KERNEL = "kernel"
SYSCALLS = "system calls let through"

# Source: include/uapi/linux/capability.h
CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
    "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
    "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
    "PERFMON BPF CHECKPOINT_RESTORE"
).split()
_SECCOMP = {0: "no filter", 1: "strict", 2: "filter"}
_DOORS = {
    "kcore_readable": "/proc/kcore",
    "dmesg_readable": "kernel log",
    "sysrq_writable": "sysrq-trigger (write)",
    "sysctl_writable": "core_pattern (write)",
    "sysfs_writable": "/sys (write)",
    "raw_memory_readable": "/dev/mem",
}

Looks = Mapping[Hull, Look | str]  # a look, or why there is none


def capability_names(mask: str) -> list[str]:
    """Return the names of the capabilities in a hexadecimal mask of /proc/PID/status."""
    bits = int(mask or "0", 16)
    return [
        CAPABILITIES[bit] if bit < len(CAPABILITIES) else str(bit)
        for bit in range(bits.bit_length())
        if bits >> bit & 1
    ]


def rows(looks: Looks, host: Look | None) -> list[Row]:
    """Return the rows of both topics."""
    table: list[tuple[str, str, Callable[[Look], Cell]]] = [
        (ISOLATION, KERNEL, lambda look: _kernel(look, host)),
        (ISOLATION, "processes seen", lambda look: _count(look.processes, "processes", "entries in /proc")),
        (
            ISOLATION,
            "mounts seen",
            lambda look: _count(look.mounts, "mounts", "lines of /proc/self/mountinfo"),
        ),
        (ISOLATION, "memory seen", lambda look: _count(look.memory_bytes / 2**20, "MiB", "MemTotal")),
        (ISOLATION, "CPUs seen", lambda look: _count(look.cpus_online, "CPUs", "online, by sysconf")),
        (ISOLATION, "doors to the kernel", _doors),
        (SECURITY, "capabilities", _capabilities),
        (SECURITY, "seccomp", _seccomp),
        (SECURITY, SYSCALLS, _syscalls),
        (SECURITY, "devices seen", _devices),
    ]
    return [
        Row(
            topic=topic,
            name=name,
            host=None if host is None else cell(host),
            container=_each(looks[Hull.CONTAINER], cell),
            vm=_each(looks[Hull.VM], cell),
        )
        for topic, name, cell in table
    ]


def _each(look: Look | str, cell: Callable[[Look], Cell]) -> Cell:
    return Missing(reason=look) if isinstance(look, str) else cell(look)


def _count(value: float, unit: str, method: str) -> Cell:
    singular = {"processes": "process"}.get(unit, unit.removesuffix("s"))
    return measured([value], singular if value == 1 else unit, f"{method}, read once")


def shares_kernel(look: Look, host: Look) -> bool:
    """Tell whether both were answered by one running kernel: the boot id is made at boot."""
    return look.boot_id == host.boot_id


def _kernel(look: Look, host: Look | None) -> Cell:
    method = "uname, and whether the boot id is the host's"
    if host is None:
        return Fact(text=look.kernel_release, method="uname; the host's boot id is not known here")
    if look is host:
        return Fact(text=look.kernel_release, method="uname")
    whose = "the host's" if shares_kernel(look, host) else "its own"
    return Fact(text=f"{whose}, {look.kernel_release}", method=method)


def _doors(look: Look) -> Cell:
    found = [name for key, name in _DOORS.items() if getattr(look, key)]
    return Fact(
        text=", ".join(found) or "none open", method=f"opened, nothing written: {', '.join(_DOORS.values())}"
    )


def _capabilities(look: Look) -> Cell:
    names = capability_names(look.capabilities_effective)
    return Fact(
        text=f"{len(names)} of {len(CAPABILITIES)}", method=f"CapEff of root: {' '.join(names) or 'none'}"
    )


def _seccomp(look: Look) -> Cell:
    text = _SECCOMP.get(look.seccomp_mode, str(look.seccomp_mode))
    return Fact(text=text, method="Seccomp in /proc/self/status")


def _syscalls(look: Look) -> Cell:
    census = look.syscalls
    if census is None:
        return Missing(reason="no more processes could be started to try them")
    method = (
        f"each of {census.tried} tried in a child with invalid arguments: "
        f"{census.denied} EPERM, {census.missing} ENOSYS, {census.killed} killed"
    )
    return measured([census.passed], "calls", method)


def _devices(look: Look) -> Cell:
    text = f"{look.character_devices} character, {look.block_devices} block"
    shown = " ".join(sorted(look.devices)[:24]) + (" …" if len(look.devices) > 24 else "")
    return Fact(text=text, method=f"nodes in /dev: {shown or 'none'}")

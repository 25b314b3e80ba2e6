# SPDX-License-Identifier: Apache-2.0
"""The payloads of the agent's requests and answers, made from and turned into the model's values.

Pure: no I/O. What the guest reports is bounded and checked here, so that nothing beyond believes it more than
it deserves.

Source: docs/reference/agent-protocol.md, section 4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from proa.model.task import (
    ExitStatus,
    Interface,
    Mount,
    MountKind,
    NetworkCounters,
    ProcessSpec,
    TaskSpec,
    TaskStats,
    tmpfs_options,
)
from proa.runtime.seam import FilesKind, FilesRequest
from proa.runtime.vm import privileges, ps
from proa.runtime.vm.nics import Change
from proa.runtime.vm.protocol import Fields, Key, data, flag, text, u32, u64

MAIN_PROCESS = 1  # the number that the first process has on the wire
_TMPFS, _SHARE = 1, 2
_MAX_NAMED = 512  # counters and interfaces that are believed of one reading
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_STATE_ENDED = 3
_FLAG_MAIN, _FLAG_TTY = 1, 2
_FILES_STRICT, _FILES_FREEZE = 1, 2
_LAYERS_DISK, _NEW_DISK, _KEPT_DISK = "vda", "vdb", "vdc"  # in the order of -device


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerExtent:
    """Where a layer lies on the disk of layers, in bytes."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """What the agent knows of a process, as LIST tells. ``exit`` is None while it runs."""

    number: int
    pid: int
    is_main: bool
    has_tty: bool
    stdin_credit: int
    exit: ExitStatus | None


# --- requests ---


def hello(version: int) -> bytes:
    return u32(Key.VERSION, version)


def clock(now_ns: int) -> bytes:
    return u64(Key.WALL_CLOCK_NS, now_ns)


def configure(
    spec: TaskSpec,
    *,
    layers: Sequence[LayerExtent],
    is_new: bool,
    entropy: bytes,
    now_ns: int,
    machine_id: bytes,
    disks: tuple[str, str] | None = None,
) -> bytes:
    """Everything the clone must know before its program may begin. Shares are numbered in order of mounts.

    :param is_new: the writable disk equals the one that is mounted in the template.
    :param disks: names of the disk of layers and of the writable one, when they are not the usual ones.
    """
    layers_disk, writable_disk = disks or (_LAYERS_DISK, _NEW_DISK if is_new else _KEPT_DISK)
    parts = [
        *_identity(spec, entropy=entropy, now_ns=now_ns),
        u64(Key.SHM_SIZE, spec.shm_size_bytes),
        flag(Key.PRIVILEGED, spec.security.privileged),
        text(Key.LAYERS_DISK, layers_disk),
        text(Key.WRITABLE_DISK, writable_disk),
        u64(Key.MEMORY_MAX, max(0, spec.resources.memory_bytes)),
        u64(Key.PIDS_MAX, max(0, spec.resources.pids)),
    ]
    parts += (
        data(Key.SYSCTL, text(Key.NAME, name) + text(Key.VALUE, value))
        for name, value in spec.sysctls.items()
    )
    parts.append(_layers(layers))
    parts += _mounts(spec.mounts)
    parts += _files(spec, machine_id)
    return b"".join(parts)


def identify(spec: TaskSpec, *, entropy: bytes, now_ns: int, machine_id: bytes) -> bytes:
    """The part of CONFIGURE that makes a running copy of a machine another one."""
    return b"".join(
        (*_identity(spec, entropy=entropy, now_ns=now_ns), *_files(spec, machine_id)),
    )


def _identity(spec: TaskSpec, *, entropy: bytes, now_ns: int) -> Iterable[bytes]:
    yield data(Key.ENTROPY, entropy)
    yield u64(Key.WALL_CLOCK_NS, now_ns)
    yield text(Key.HOSTNAME, spec.hostname)
    yield text(Key.DOMAINNAME, spec.domainname)
    for interface in spec.network.interfaces:
        yield data(Key.INTERFACE, _interface(interface))


def _files(spec: TaskSpec, machine_id: bytes) -> Iterable[bytes]:
    for path, body in spec.files.items():
        yield data(Key.FILE, text(Key.PATH, path) + data(Key.CONTENT, body))
    machine = text(Key.PATH, "/etc/machine-id") + data(Key.CONTENT, machine_id)
    yield data(Key.FILE, machine + flag(Key.IF_EMPTY, True))


def prepare(layers: Sequence[LayerExtent], *, now_ns: int) -> bytes:
    """The part of CONFIGURE and START that all usual new containers of an image share."""
    disks = text(Key.LAYERS_DISK, _LAYERS_DISK) + text(Key.WRITABLE_DISK, _NEW_DISK)
    return (
        clock(now_ns)
        + disks
        + _layers(layers)
        + _restricted(privileges.MASKED_PATHS, privileges.READONLY_PATHS)
    )


def _restricted(masked: Iterable[str], readonly: Iterable[str]) -> bytes:
    return b"".join(
        (
            *(text(Key.MASKED_PATH, path) for path in masked),
            *(text(Key.READONLY_PATH, path) for path in readonly),
        )
    )


def _layers(layers: Sequence[LayerExtent]) -> bytes:
    return b"".join(
        data(Key.LAYER, u64(Key.OFFSET, layer.offset) + u64(Key.LENGTH, layer.length)) for layer in layers
    )


def _interface(interface: Interface) -> bytes:
    parts = [
        text(Key.IF_NAME, interface.name),
        data(Key.IF_MAC, bytes.fromhex(interface.mac.replace(":", ""))),
        text(Key.IF_ADDRESS, str(interface.address)),
        u32(Key.IF_MTU, interface.mtu),
    ]
    if interface.address6 is not None:
        parts.append(text(Key.IF_ADDRESS, str(interface.address6)))
    parts += (text(Key.IF_ADDRESS, str(address)) for address in interface.link_local)
    return b"".join(parts) + _gateways(interface)


def _gateways(interface: Interface) -> bytes:
    gateways = (interface.gateway, interface.gateway6)
    return b"".join(text(Key.IF_GATEWAY, str(gateway)) for gateway in gateways if gateway is not None)


def _mounts(mounts: Sequence[Mount]) -> Iterable[bytes]:
    shares = 0
    for mount in mounts:
        parts = [text(Key.TARGET, mount.target), flag(Key.READ_ONLY, mount.read_only)]
        options = tmpfs_options(mount) if mount.kind is MountKind.TMPFS else mount.options
        parts.append(text(Key.OPTIONS, ",".join(options)))
        if mount.kind is MountKind.BIND:
            parts += [u32(Key.KIND, _SHARE), text(Key.SOURCE, str(shares))]
            shares += 1
        else:
            parts.append(u32(Key.KIND, _TMPFS))
        yield data(Key.MOUNT, b"".join(parts))


def start(spec: TaskSpec, *, credit: int | None, is_prepared: bool) -> bytes:
    """The main process. With ``credit`` its output is also sent to the host from the first byte on.

    :param is_prepared: the guest has had PREPARE: the usual paths are hidden already.
    """
    security = spec.security
    masked, readonly = security.masked_paths, security.readonly_paths
    if masked is None:
        masked = () if security.privileged else privileges.MASKED_PATHS
    if readonly is None:
        readonly = () if security.privileged else privileges.READONLY_PATHS
    parts = [
        process(
            spec.process,
            number=MAIN_PROCESS,
            capabilities=privileges.capability_mask(security),
            no_new_privileges=security.no_new_privileges,
            credit=credit,
        ),
        flag(Key.INIT, spec.init),
        flag(Key.READ_ONLY_ROOT, spec.read_only_rootfs),
        u32(Key.OOM_SCORE_ADJ, spec.oom_score_adj),
    ]
    if not is_prepared:
        parts.append(_restricted(masked, readonly))
    for resource, soft, hard in privileges.rlimits(spec.rlimits):
        values = u32(Key.RESOURCE, resource) + u64(Key.SOFT, soft) + u64(Key.HARD, hard)
        parts.append(data(Key.RLIMIT, values))
    return b"".join(parts)


def network(change: Change) -> bytes:
    """Interfaces that go, that come, and by which of the others the default routes lead."""
    parts = [data(Key.INTERFACE, data(Key.IF_MATCH_MAC, card.mac)) for card, _device in change.gone]
    parts += (
        data(Key.INTERFACE, data(Key.IF_MATCH_MAC, card.mac) + _interface(interface))
        for card, interface in change.added
    )
    parts += (
        data(Key.INTERFACE, data(Key.IF_MATCH_MAC, card.mac) + _gateways(interface))
        for card, interface in change.kept
        if interface.gateway or interface.gateway6
    )
    return b"".join(parts)


def process(
    spec: ProcessSpec, *, number: int, capabilities: int, no_new_privileges: bool, credit: int | None
) -> bytes:
    """The description that START and EXEC share."""
    rows, columns = spec.console_size or (0, 0)
    parts = [
        u32(Key.PROCESS, number),
        *(text(Key.ARG, word) for word in spec.args),
        *(text(Key.ENV, entry) for entry in spec.env),
        text(Key.CWD, spec.cwd or "/"),
        text(Key.USER, spec.user),
        *(text(Key.GROUP_ADD, group) for group in spec.group_add),
        flag(Key.TTY, spec.tty),
        u32(Key.ROWS, rows),
        u32(Key.COLUMNS, columns),
        flag(Key.OPEN_STDIN, spec.open_stdin),
        u64(Key.CAPABILITIES, privileges.ALL_CAPABILITIES if spec.privileged else capabilities),
        flag(Key.NO_NEW_PRIVS, no_new_privileges),
    ]
    if credit is not None:
        parts += [u32(Key.ATTACHED, 1), attach_credit(credit)]
    return b"".join(parts)


def of_process(number: int, *more: bytes) -> bytes:
    """Requests that name a process and a little more."""
    return u32(Key.PROCESS, number) + b"".join(more)


def attach_credit(credit: int) -> bytes:
    return u32(Key.CREDIT_STDOUT, credit) + u32(Key.CREDIT_STDERR, credit)


def files(request: FilesRequest, *, number: int, credit: int | None) -> bytes:
    """An operation on the container's files, served by a process of the agent's."""
    flags = (_FILES_STRICT if request.strict else 0) | (_FILES_FREEZE if request.freeze else 0)
    parts = [
        u32(Key.PROCESS, number),
        u32(Key.KIND, request.kind),
        text(Key.PATH, request.path),
        text(Key.NAME, request.name),
        text(Key.USER, request.user),
        u32(Key.FLAGS, flags),
        flag(Key.READ_ONLY_ROOT, request.read_only_root),
        flag(Key.OPEN_STDIN, request.kind is FilesKind.WRITE),
    ]
    if request.kind is FilesKind.STORE:
        parts.append(data(Key.CONTENT, request.content))
    for target, is_writable in request.volumes:
        mount = text(Key.TARGET, target) + flag(Key.READ_ONLY, not is_writable)
        parts.append(data(Key.MOUNT, mount))
    if credit is not None:
        parts += [u32(Key.ATTACHED, 1), attach_credit(credit)]
    return b"".join(parts)


def update(*, memory_bytes: int, pids: int) -> bytes:
    return u64(Key.MEMORY_MAX, max(0, memory_bytes)) + u64(Key.PIDS_MAX, max(0, pids))


# --- answers ---


def exit_status(fields: Fields) -> ExitStatus:
    """CODE, OOM and FINISHED_NS, of EXITED and of a record in LIST."""
    return ExitStatus(
        code=fields.number(Key.CODE) & 0xFF,
        finished_at_ns=min(fields.number(Key.FINISHED_NS), 2**63 - 1),
        oom_killed=fields.number(Key.OOM) != 0,
    )


def records(fields: Fields) -> list[ProcessRecord]:
    """The answer to LIST."""
    found = []
    for record in fields.groups(Key.RECORD):
        flags = record.number(Key.FLAGS)
        found.append(
            ProcessRecord(
                number=record.number(Key.PROCESS),
                pid=record.number(Key.PID),
                is_main=bool(flags & _FLAG_MAIN),
                has_tty=bool(flags & _FLAG_TTY),
                stdin_credit=min(record.number(Key.STDIN_CREDIT), 2**31 - 1),
                exit=exit_status(record) if record.number(Key.STATE) == _STATE_ENDED else None,
            )
        )
    return found


def stats(fields: Fields, *, vcpus: int, now_ns: int) -> TaskStats:
    """The answer to STATS. The time of reading is the host's, whatever the guest thinks."""
    memory = {
        each.text(Key.NAME): each.number(Key.COUNT) for each in fields.groups(Key.MEMORY_STAT)[:_MAX_NAMED]
    }
    networks = {
        each.text(Key.NAME): _counters(each)
        for each in fields.groups(Key.NETWORK)[:_MAX_NAMED]
        if _NAME.fullmatch(each.text(Key.NAME))
    }
    return TaskStats(
        read_at_ns=now_ns,
        cpu_total_ns=fields.number(Key.CPU_TOTAL_NS),
        cpu_user_ns=fields.number(Key.CPU_USER_NS),
        cpu_kernel_ns=fields.number(Key.CPU_KERNEL_NS),
        online_cpus=max(1, min(fields.number(Key.ONLINE_CPUS), vcpus)),
        system_cpu_ns=fields.number(Key.SYSTEM_CPU_NS),
        memory_usage=fields.number(Key.MEMORY_USAGE),
        memory_limit=fields.number(Key.MEMORY_LIMIT),
        memory_stats={name: value for name, value in memory.items() if _NAME.fullmatch(name)},
        pids=fields.number(Key.PIDS),
        pids_limit=fields.number(Key.PIDS_LIMIT),
        read_bytes=fields.number(Key.READ_BYTES),
        write_bytes=fields.number(Key.WRITE_BYTES),
        networks=networks,
    )


def _counters(fields: Fields) -> NetworkCounters:
    return NetworkCounters(
        rx_bytes=fields.number(Key.RX_BYTES),
        rx_packets=fields.number(Key.RX_PACKETS),
        rx_errors=fields.number(Key.RX_ERRORS),
        rx_dropped=fields.number(Key.RX_DROPPED),
        tx_bytes=fields.number(Key.TX_BYTES),
        tx_packets=fields.number(Key.TX_PACKETS),
        tx_errors=fields.number(Key.TX_ERRORS),
        tx_dropped=fields.number(Key.TX_DROPPED),
    )


def processes(fields: Fields) -> list[ps.GuestProcess]:
    """The answer to PROCESSES."""
    return [_process(row) for row in fields.groups(Key.ROW)]


def _process(row: Fields) -> ps.GuestProcess:
    return ps.GuestProcess(
        pid=row.number(Key.ROW_PID),
        ppid=row.number(Key.ROW_PPID),
        uid=row.number(Key.ROW_UID),
        tty=row.number(Key.ROW_TTY),
        state=row.text(Key.ROW_STATE)[:1] or "?",
        user_ns=row.number(Key.ROW_UTIME_TICKS) * ps.TICK_NS,
        system_ns=row.number(Key.ROW_STIME_TICKS) * ps.TICK_NS,
        started_at_ns=min(row.number(Key.ROW_START_NS), 2**62),
        vsz=row.number(Key.ROW_VSZ),
        rss=row.number(Key.ROW_RSS),
        comm=_one_line(row.data(Key.ROW_COMM)),
        cmdline=_one_line(row.data(Key.ROW_CMDLINE).rstrip(b"\0").replace(b"\0", b" ")),
        nice=row.signed(Key.ROW_NICE),
        threads=row.number(Key.ROW_THREADS),
        session=row.number(Key.ROW_SESSION),
        group=row.number(Key.ROW_PGRP),
        foreground_group=row.signed(Key.ROW_TPGID),
    )


def _one_line(name: bytes) -> str:
    """What a program calls itself, as ps would show it: without what would command a terminal."""
    return "".join(each if each.isprintable() else "?" for each in name.decode(errors="replace"))

# SPDX-License-Identifier: Apache-2.0
"""Builds the TaskSpec of a container: its record, its root file system and its network in one value. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from proa.engine.container import Container, MountPoint
from proa.engine.device_requests import requested_devices
from proa.engine.limits import parse_resources, parse_rlimits, parse_security
from proa.engine.log_options import parse_log_config
from proa.engine.mounts import READ_ONLY_ALONE
from proa.engine.together import machine_of
from proa.model.config import HostConfig
from proa.model.task import (
    Mount,
    MountKind,
    Namespaces,
    NetworkAttachment,
    ProcessSpec,
    Rootfs,
    Security,
    TaskSpec,
)


def build_task_spec(
    container: Container,
    *,
    rootfs: Rootfs,
    network: NetworkAttachment,
    files: Mapping[str, bytes],
    namespaces: Namespaces,
    linked: tuple[str, ...] = (),
    interface_sysctls: Mapping[str, str] | None = None,
) -> TaskSpec:
    """Return what the driver is handed. The record was checked when the container was created.

    :param linked: variables that tell of linked peers.
    """
    config, host = container.config, container.host_config
    return TaskSpec(
        id=container.id,
        hostname=config.hostname,
        domainname=config.domainname,
        process=main_process(container, linked=linked),
        rootfs=rootfs,
        log_path=Path(container.log_path) if host.log_config.type != "none" else Path("/dev/null"),
        log_max_bytes=parse_log_config(host.log_config).max_bytes,
        read_only_rootfs=host.readonly_rootfs,
        mounts=build_mounts(container.mounts),
        files=files,
        network=network,
        resources=parse_resources(host),
        rlimits=parse_rlimits(host),
        security=_security(host),
        namespaces=namespaces,
        ids=container.ids,
        sysctls={**(host.sysctls or {}), **(interface_sysctls or {})},
        shm_size_bytes=0 if host.ipc_mode == "none" else host.shm_size,
        init=bool(host.init),
        cgroup_parent=host.cgroup_parent,
        oom_score_adj=host.oom_score_adj,
        annotations=host.annotations or {},
        machine=machine_of(host),
    )


def _security(host: HostConfig) -> Security:
    security = parse_security(host)
    return replace(security, cdi_devices=requested_devices(host)) if host.device_requests else security


def main_process(container: Container, *, linked: tuple[str, ...] = ()) -> ProcessSpec:
    """Return the first process of a container."""
    config, host = container.config, container.host_config
    size = host.console_size
    return ProcessSpec(
        args=(container.path, *container.args),
        env=process_env(container, tty=config.tty, linked=linked),
        cwd=config.working_dir or "/",
        user=config.user,
        group_add=tuple(host.group_add or ()),
        tty=config.tty,
        open_stdin=config.open_stdin,
        stdin_once=config.stdin_once,
        console_size=(size[0], size[1]) if size and len(size) == 2 and all(size) else None,
    )


def process_env(container: Container, *, tty: bool, linked: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the environment of any process of a container: HOSTNAME and TERM as Docker sets them, and what
    tells of linked peers unless the container has a variable of that name."""
    env = list(container.config.env or ())
    names = {entry.partition("=")[0] for entry in env}
    extra = []
    if "HOSTNAME" not in names and container.config.hostname:
        extra.append(f"HOSTNAME={container.config.hostname}")
    if tty and "TERM" not in names:
        extra.append("TERM=xterm")
    extra += [entry for entry in linked if entry.partition("=")[0] not in names]
    return (*env[:1], *extra, *env[1:])


def build_mounts(points: Iterable[MountPoint]) -> tuple[Mount, ...]:
    """Return what a driver mounts. The source of a volume that is not made yet is empty."""
    return tuple(_mount(point) for point in points)


def _bind_options(point: MountPoint) -> tuple[str, ...]:
    """A bind that may not be written is so with the mounts below its source, as in Docker."""
    options = (point.propagation, *point.options) if point.type == "bind" else ()
    if READ_ONLY_ALONE in options:
        return tuple(option for option in options if option != READ_ONLY_ALONE)
    return options if point.rw or "rro" in options else (*options, "rro")


def _mount(point: MountPoint) -> Mount:
    if point.type == "tmpfs":
        return Mount(
            kind=MountKind.TMPFS,
            target=point.destination,
            read_only=not point.rw,
            options=point.options,
        )
    return Mount(
        kind=MountKind.BIND,
        source=Path(point.source),
        target=point.destination,
        read_only=not point.rw,
        options=_bind_options(point),
    )

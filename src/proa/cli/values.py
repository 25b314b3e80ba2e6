# SPDX-License-Identifier: Apache-2.0
"""Reads the values of flags: sizes, CPUs, ports, mounts, devices, ulimits. Pure but for --env-file.

Source: docker run reference.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path

import click

from proa.model.config import (
    BindOptions,
    DeviceMapping,
    DriverConfig,
    Empty,
    MountSpec,
    PortBinding,
    RestartPolicy,
    TmpfsOptions,
    Ulimit,
    VolumeOptions,
)

_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([kmgtp]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def split_tag(name: str) -> tuple[str, str]:
    """Return repository and tag of a name; a colon before a slash belongs to a registry's port.

    A name with a digest stays whole.
    """
    if "@" in name:
        return name, ""
    repository, separator, tag_ = name.rpartition(":")
    if not separator or "/" in tag_:
        return name, ""
    return repository, tag_


def parse_size(text: str) -> int:
    """Return bytes of "512m", "1.5g", "1024". Raises click.BadParameter."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f"invalid size: '{text}'")
    return int(Decimal(match[1]) * 1024 ** _POWERS[match[2].lower()])


def parse_swap(text: str) -> int:
    """Return bytes, or -1 for no limit."""
    return -1 if text == "-1" else parse_size(text)


def parse_nano_cpus(text: str) -> int:
    """Return 10^-9 CPUs of "1.5"."""
    try:
        return round(float(text) * 1e9)
    except (ValueError, OverflowError):  # "nan" and "inf" are numbers too
        raise click.BadParameter(f"failed to parse {text} as a number of CPUs") from None


def parse_env(entries: Iterable[str], files: Iterable[str]) -> list[str]:
    """Return KEY=VALUE of files and flags; a name alone takes this process's value, if it has one."""
    lines: list[str] = []
    for name in files:
        try:
            text = Path(name).read_text()
        except OSError as error:
            raise click.BadParameter(f"open {name}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise click.BadParameter(f"env file {name} contains invalid utf8 bytes") from error
        lines += [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    env = []
    for entry in (*lines, *entries):
        if "=" in entry:
            env.append(entry)
        elif entry in os.environ:
            env.append(f"{entry}={os.environ[entry]}")
    return env


def parse_labels(entries: Iterable[str]) -> dict[str, str]:
    """Return labels of KEY=VALUE or KEY."""
    return {key: value for key, _, value in (entry.partition("=") for entry in entries)}


def parse_ports(
    published: Iterable[str], exposed: Iterable[str]
) -> tuple[dict[str, Empty], dict[str, list[PortBinding] | None]]:
    """Return exposed ports and bindings of ``[ip:][host[-host]:]container[-container][/proto]``."""
    exposes: dict[str, Empty] = {}
    bindings: dict[str, list[PortBinding] | None] = {}
    for entry in exposed:
        first, last, protocol = _range(entry)
        exposes.update({f"{port}/{protocol}": Empty() for port in range(first, last + 1)})
    for entry in published:
        head, _, container = entry.rpartition(":")
        first, last, protocol = _range(container)
        ip, _, host = head.rpartition(":")
        hosts = _host_ports(host, last - first + 1, entry)
        for offset, port in enumerate(range(first, last + 1)):
            key = f"{port}/{protocol}"
            exposes[key] = Empty()
            binding = PortBinding(host_ip=ip.strip("[]"), host_port=hosts[offset])
            bindings[key] = [*(bindings.get(key) or []), binding]
    return exposes, bindings


def parse_mount(text: str) -> MountSpec:
    """Return the mount of one ``--mount key=value,…``. Raises click.BadParameter."""
    fields: dict[str, str] = {}
    for word in text.split(","):
        key, separator, value = word.partition("=")
        fields[_MOUNT_KEYS.get(key, key)] = value if separator else "true"
    unknown = set(fields) - _MOUNT_FIELDS
    if unknown:
        raise click.BadParameter(f"unexpected key '{min(unknown)}' in '{text}'")
    kind = fields.get("type", "volume")
    if not fields.get("target"):
        raise click.BadParameter("target is required")
    bind = BindOptions(propagation=fields["bind-propagation"]) if "bind-propagation" in fields else None
    return MountSpec(
        type=kind,
        source=fields.get("source", ""),
        target=fields["target"],
        read_only=fields.get("readonly", "false") in ("true", "1"),
        bind_options=bind,
        volume_options=_volume_options(fields) if kind == "volume" else None,
        tmpfs_options=_tmpfs_options(fields) if kind == "tmpfs" else None,
    )


def parse_device(text: str) -> DeviceMapping:
    """Return the device of ``host[:container[:rwm]]``."""
    host, _, rest = text.partition(":")
    container, _, permissions = rest.partition(":")
    if re.fullmatch(r"[rwm]+", container):
        container, permissions = "", container
    return DeviceMapping(
        path_on_host=host, path_in_container=container or host, cgroup_permissions=permissions or "rwm"
    )


def parse_ulimit(text: str) -> Ulimit:
    """Return the limit of ``name=soft[:hard]``."""
    match = re.fullmatch(r"(\w+)=(-?\d+)(?::(-?\d+))?", text)
    if match is None:
        raise click.BadParameter(f"invalid ulimit argument: {text}")
    return Ulimit(name=match[1], soft=int(match[2]), hard=int(match[3] or match[2]))


def parse_restart(text: str) -> RestartPolicy:
    """Return the policy of ``name[:max]``."""
    name, _, maximum = text.partition(":")
    if maximum and not maximum.isdecimal():
        raise click.BadParameter("invalid restart policy format: maximum retry count must be an integer")
    return RestartPolicy(name=name, maximum_retry_count=int(maximum or 0))


def parse_filters(entries: Iterable[str]) -> Mapping[str, list[str]]:
    """Return the filters of ``name=value``. Raises click.BadParameter."""
    filters: dict[str, list[str]] = {}
    for entry in entries:
        name, separator, value = entry.partition("=")
        if not separator:
            raise click.BadParameter(f'invalid argument "{entry}" for "-f, --filter" flag: bad format')
        filters.setdefault(name.strip().lower(), []).append(value.strip())
    return filters


def parse_entrypoint(text: str | None) -> list[str] | None:
    """Return the entrypoint of a flag: one word, whatever is in it; "" clears the image's."""
    return None if text is None else [text]


_MOUNT_KEYS = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
_MOUNT_FIELDS = frozenset(
    (
        "type source target readonly consistency bind-propagation volume-nocopy volume-label volume-driver "
        "volume-opt volume-subpath tmpfs-size tmpfs-mode"
    ).split()
)


def _volume_options(fields: Mapping[str, str]) -> VolumeOptions:
    driver = fields.get("volume-driver")
    return VolumeOptions(
        no_copy=fields.get("volume-nocopy", "false") in ("true", "1"),
        driver_config=DriverConfig(name=driver) if driver else None,
        subpath=fields.get("volume-subpath", ""),
    )


def _tmpfs_options(fields: Mapping[str, str]) -> TmpfsOptions:
    mode = fields.get("tmpfs-mode", "0")
    try:
        return TmpfsOptions(size_bytes=parse_size(fields.get("tmpfs-size", "0")), mode=int(mode, 8))
    except ValueError:
        raise click.BadParameter(f"invalid value for tmpfs-mode: {mode}") from None


def _range(text: str) -> tuple[int, int, str]:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?(?:/(\w+))?", text)
    if match is None or not 0 < int(match[1]) < 65536:
        raise click.BadParameter(f"invalid containerPort: {text}")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first or last > 65535:
        raise click.BadParameter(f"invalid range format for --expose or --publish: {text}")
    return first, last, match[3] or "tcp"


def _host_ports(text: str, count: int, whole: str) -> list[str]:
    if not text:
        return [""] * count
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if match is None:
        raise click.BadParameter(f"invalid hostPort: {text}")
    first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last < 65536:
        raise click.BadParameter(f"invalid hostPort: {text}")
    if last - first + 1 != count:
        if count == 1:
            return [text]
        raise click.BadParameter(f"invalid ranges specified for container and host Ports: {whole}")
    return [str(port) for port in range(first, last + 1)]

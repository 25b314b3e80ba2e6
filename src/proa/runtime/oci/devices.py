# SPDX-License-Identifier: Apache-2.0
"""Device nodes a container gets, and the rules of its device cgroup.

Looks at the host's /dev once for each device asked for; the runtime makes the nodes. The usual ones (null,
zero, full, random, urandom, tty, console, ptmx) every runtime makes by itself.

Source: OCI runtime-spec, config-linux.md, Devices and Allowed Device list; Docker Engine, --device.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from proa.model.errors import InvalidParameter
from proa.model.task import Device, Security

Json = dict[str, object]

# Left out of what a privileged container sees: they are the container's own, or other file systems.
_NOT_DEVICES = frozenset({"pts", "shm", "fd", "mqueue", "hugepages", "console", ".lxc", ".lxd-mounts"})


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceNode:
    path: str
    kind: str  # "c" or "b"
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    permissions: str = "rwm"


def find_devices(security: Security) -> tuple[DeviceNode, ...]:
    """Return the nodes the request names, or every device of the host for a privileged container.

    :raises InvalidParameter: a named device does not exist or is none.
    """
    if security.privileged:
        return tuple(_below(Path("/dev"), "/dev", "rwm"))
    found: list[DeviceNode] = []
    for device in security.devices:
        found += _named(device)
    return tuple(found)


def default_rules() -> list[Json]:
    """Return Docker's rules: nothing is allowed but the making of nodes and the harmless devices."""
    rules = [_rule(allow=False, access="rwm")]
    rules += [_rule(allow=True, access="m", kind=kind) for kind in "cb"]
    for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, None)):
        rules.append(_rule(allow=True, access="rwm", kind="c", major=major, minor=minor))
    return rules


def rules(security: Security, nodes: Iterable[DeviceNode]) -> list[Json]:
    """Return the rules for ``linux.resources.devices``. Pure. Raises InvalidParameter."""
    if security.privileged:
        return [_rule(allow=True, access="rwm")]
    found = default_rules()
    for node in nodes:
        found.append(node_rule(node))
    return found + [parse_rule(text) for text in security.device_cgroup_rules]


def parse_rule(text: str) -> Json:
    """Read a rule such as ``c 42:* rwm``. Raises InvalidParameter."""
    fields = text.split()
    numbers = fields[1].split(":") if len(fields) == 3 else []
    if len(numbers) != 2 or fields[0] not in ("a", "b", "c"):
        raise InvalidParameter(f"invalid device cgroup rule format: '{text}'")
    try:
        major, minor = (None if number == "*" else int(number) for number in numbers)
    except ValueError as error:
        raise InvalidParameter(f"invalid device cgroup rule format: '{text}'") from error
    return _rule(allow=True, access=fields[2], kind=fields[0], major=major, minor=minor)


def node_entry(node: DeviceNode) -> Json:
    """Return the node for ``linux.devices``."""
    return {
        "path": node.path,
        "type": node.kind,
        "major": node.major,
        "minor": node.minor,
        "fileMode": node.mode,
        "uid": node.uid,
        "gid": node.gid,
    }


def node_rule(node: DeviceNode) -> Json:
    """Return the rule that lets a container use a node."""
    return _rule(allow=True, access=node.permissions, kind=node.kind, major=node.major, minor=node.minor)


def look_up(path: Path, inside: str, permissions: str) -> DeviceNode | None:
    """Return the node at a path of the host, to be made at ``inside``; None when there is none.

    :raises OSError: there is nothing.
    """
    found = path.stat()
    if stat.S_ISCHR(found.st_mode):
        kind = "c"
    elif stat.S_ISBLK(found.st_mode):
        kind = "b"
    else:
        return None
    return DeviceNode(
        path=inside,
        kind=kind,
        major=os.major(found.st_rdev),
        minor=os.minor(found.st_rdev),
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        permissions=permissions,
    )


def _rule(
    *, allow: bool, access: str, kind: str = "", major: int | None = None, minor: int | None = None
) -> Json:
    rule: Json = {"allow": allow, "access": access}
    if kind:
        rule["type"] = kind
    if major is not None:
        rule["major"] = major
    if minor is not None:
        rule["minor"] = minor
    return rule


def _named(device: Device) -> list[DeviceNode]:
    path = device.host_path
    try:
        if path.is_dir():
            found = list(_below(path.resolve(), device.container_path, device.permissions))
        else:
            node = look_up(path, device.container_path, device.permissions)
            found = [] if node is None else [node]
    except OSError as error:
        raise InvalidParameter(
            f'error gathering device information while adding custom device "{path}": '
            f"{(error.strerror or str(error)).lower()}"
        ) from error
    if not found:
        raise InvalidParameter(
            f'error gathering device information while adding custom device "{path}": not a device node'
        )
    return found


def _below(directory: Path, inside: str, permissions: str) -> Iterator[DeviceNode]:
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        if entry.name in _NOT_DEVICES or entry.is_symlink():
            continue
        target = f"{inside.rstrip('/')}/{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            yield from _below(Path(entry.path), target, permissions)
        else:
            node = look_up(Path(entry.path), target, permissions)
            if node is not None:
                yield node

# SPDX-License-Identifier: Apache-2.0
"""Devices that vendors describe: the Container Device Interface, versions 0.3 to 1.0.

A device has a qualified name, ``vendor.com/class=name``, and edits for the configuration of a container that
asks for it. The descriptions are files of the host's administrator, read anew whenever somebody asks: they
may change at any time, and few ask. Of two directories the later one wins; within one a name must be unique.

Source: CNCF Container Device Interface, SPEC.md; its library's cache, for precedence and sentences.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from proa.model.errors import InvalidParameter
from proa.runtime.oci.devices import DeviceNode, look_up, node_entry, node_rule

DEFAULT_DIRS = (Path("/etc/cdi"), Path("/var/run/cdi"))
_VERSIONS = re.compile(r"v?(0\.[3-9]|1\.0)\.\d+")
_KIND = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]/[A-Za-z][A-Za-z0-9_-]*")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?")
_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")

Json = dict[str, object]

log = logging.getLogger(__name__)


class _Camel(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    pass


class Node(_Camel, frozen=True, kw_only=True):
    """A device node. What is not given is as on the host, at ``host_path`` or else ``path``."""

    path: str
    host_path: str = ""
    type: str = ""
    major: int | None = None
    minor: int | None = None
    file_mode: int | None = None
    permissions: str = ""
    uid: int | None = None
    gid: int | None = None


class Mount(_Camel, frozen=True, kw_only=True):
    host_path: str
    container_path: str
    type: str = ""
    options: list[str] | None = None


class Hook(_Camel, frozen=True, kw_only=True):
    hook_name: str
    path: str
    args: list[str] | None = None
    env: list[str] | None = None
    timeout: int | None = None  # seconds


class Edits(_Camel, frozen=True, kw_only=True):
    """What is changed in a container's configuration. The last two are not supported."""

    env: list[str] | None = None
    device_nodes: list[Node] | None = None
    mounts: list[Mount] | None = None
    hooks: list[Hook] | None = None
    additional_gids: list[int] | None = msgspec.field(default=None, name="additionalGids")
    intel_rdt: dict[str, Any] | None = None  # Any: it is refused unread
    net_devices: list[Any] | None = None  # Any: likewise


class _Device(_Camel, frozen=True, kw_only=True):
    name: str
    container_edits: Edits = Edits()


class _Spec(_Camel, frozen=True, kw_only=True):
    cdi_version: str
    kind: str
    devices: list[_Device]
    container_edits: Edits = Edits()


class DeviceSpecs:
    """The descriptions in some directories, of which a later one has precedence."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self.directories = tuple(directories)

    def names(self) -> list[str]:
        """Return the qualified names of all devices."""
        return sorted(self._devices())

    def resolve(self, names: Sequence[str]) -> list[Edits]:
        """Return the edits of some devices, in order. Raises InvalidParameter.

        What a file says beside its devices is applied once, before the first of them.
        """
        known = self._devices()
        missing = [name for name in names if name not in known]
        if missing:
            raise InvalidParameter(
                f"CDI device injection failed: unresolvable CDI devices {', '.join(missing)}"
            )
        found: list[Edits] = []
        seen: list[_Spec] = []
        for name in dict.fromkeys(names):
            spec, device = known[name]
            if not any(spec is one for one in seen):
                seen.append(spec)
                found.append(spec.container_edits)
            found.append(device.container_edits)
        for edits in found:
            if edits.intel_rdt or edits.net_devices:
                unsupported = "intelRdt" if edits.intel_rdt else "netDevices"
                raise InvalidParameter(f"CDI device injection failed: {unsupported} is not supported")
        return found

    def _devices(self) -> dict[str, tuple[_Spec, _Device]]:
        known: dict[str, tuple[_Spec, _Device]] = {}
        for directory in self.directories:
            here: dict[str, tuple[_Spec, _Device]] = {}
            twice: set[str] = set()
            for spec in _read_directory(directory):
                for device in spec.devices:
                    name = f"{spec.kind}={device.name}"
                    if name in here:
                        log.warning("%s: the CDI device %s is described twice", directory, name)
                        twice.add(name)
                    here[name] = (spec, device)
            known |= here
            for name in twice:
                del known[name]
        return known


def inject(config: Json, edits: Sequence[Edits]) -> None:
    """Change the configuration of a container as its devices want it. Looks at the host's device nodes.

    Raises InvalidParameter: a node is not there.
    """
    for each in edits:
        try:
            _inject(cast(dict[str, Any], config), each)  # Any: parts of the configuration
        except OSError as error:
            raise InvalidParameter(
                f"CDI device injection failed: {error.filename}: {(error.strerror or '').lower()}"
            ) from error


def _inject(config: dict[str, Any], edits: Edits) -> None:
    process, linux = config["process"], config["linux"]
    if edits.env:
        names = {entry.partition("=")[0] for entry in edits.env}
        process["env"] = [one for one in process["env"] if one.partition("=")[0] not in names] + edits.env
    for node in edits.device_nodes or ():
        found = _found(node, process["user"])
        nodes = [one for one in linux.get("devices", ()) if one["path"] != found.path]
        linux["devices"] = [*nodes, node_entry(found)]
        if found.kind != "p":
            linux["resources"]["devices"].append(node_rule(found))
    for mount in edits.mounts or ():
        kept = [one for one in config["mounts"] if one["destination"] != mount.container_path]
        # Stable: a mount below another stays behind it.
        config["mounts"] = sorted([*kept, _mount_entry(mount)], key=lambda one: _depth(one["destination"]))
    for hook in edits.hooks or ():
        config.setdefault("hooks", {}).setdefault(hook.hook_name, []).append(_hook_entry(hook))
    gids = [
        gid for gid in edits.additional_gids or () if gid and gid not in process["user"]["additionalGids"]
    ]
    process["user"]["additionalGids"] += gids


def _found(node: Node, user: Mapping[str, int]) -> DeviceNode:
    on_host = DeviceNode(path=node.path, kind=node.type, major=0, minor=0, mode=0o666, uid=0, gid=0)
    if not node.type or (node.type != "p" and node.major is None):
        found = look_up(Path(node.host_path or node.path), node.path, "rwm")
        if found is None:
            raise InvalidParameter(
                f"CDI device injection failed: {node.host_path or node.path} is not a device node"
            )
        on_host = found
    return DeviceNode(
        path=node.path,
        kind={"u": "c"}.get(node.type, node.type) or on_host.kind,
        major=_first(node.major, on_host.major),
        minor=_first(node.minor, on_host.minor),
        mode=_first(node.file_mode, on_host.mode),
        # The user of the container can open what is made for it.
        uid=_first(node.uid, user["uid"] or on_host.uid),
        gid=_first(node.gid, user["gid"] or on_host.gid),
        permissions=node.permissions or "rwm",
    )


def _first(given: int | None, otherwise: int) -> int:
    return otherwise if given is None else given


def _mount_entry(mount: Mount) -> Json:
    options = list(mount.options or ())
    if mount.type in ("", "bind") and not {"bind", "rbind"} & set(options):
        options.append("rbind")
    return {
        "destination": mount.container_path,
        "type": mount.type or "bind",
        "source": mount.host_path,
        "options": options,
    }


def _hook_entry(hook: Hook) -> Json:
    entry: Json = {"path": hook.path}
    for key, value in (("args", hook.args), ("env", hook.env), ("timeout", hook.timeout)):
        if value:
            entry[key] = value
    return entry


def _depth(target: str) -> int:
    return len(Path(target).parts)


def _read_directory(directory: Path) -> Iterator[_Spec]:
    try:
        files = sorted(entry.path for entry in os.scandir(directory) if not entry.is_dir())
    except OSError:
        return  # few hosts have any
    for path in files:
        if path.endswith((".json", ".yaml")):
            try:
                yield _read(Path(path))
            except (OSError, ValueError, msgspec.MsgspecError) as error:
                log.warning("the CDI specification %s is left out: %s", path, error)


def _read(path: Path) -> _Spec:
    content = path.read_bytes()
    if path.suffix == ".json":
        spec = msgspec.json.decode(content, type=_Spec)
    else:
        import yaml  # only a host with such files pays for it

        try:
            spec = msgspec.convert(yaml.safe_load(content), type=_Spec)
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from error
    if _VERSIONS.fullmatch(spec.cdi_version) is None:
        raise ValueError(f"its version {spec.cdi_version} is not known")
    if _KIND.fullmatch(spec.kind) is None:
        raise ValueError(f"{spec.kind!r} is not vendor and class")
    for device in spec.devices:
        if _NAME.fullmatch(device.name) is None:
            raise ValueError(f"invalid device name {device.name!r}")
    for edits in (spec.container_edits, *(device.container_edits for device in spec.devices)):
        for hook in edits.hooks or ():
            if hook.hook_name not in _HOOKS:
                raise ValueError(f"invalid hook name {hook.hook_name!r}")
    return spec

# SPDX-License-Identifier: Apache-2.0
"""Reads what a user wrote about mounts (-v, --mount, --tmpfs, --volumes-from) into mount points.

Pure: which volumes exist, and making them, is ``creation``'s matter. Sentences are the Docker Engine's.

Source: Engine API, HostConfig.Binds and Mount; docker run reference, "Volume".
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from proa.engine.container import IDMAP, Container, MountPoint
from proa.model.config import BindOptions, ContainerConfig, HostConfig, MountSpec, TmpfsOptions, VolumeOptions
from proa.model.errors import InvalidParameter
from proa.model.task import IdMap

ALONE = "alone"  # of a bind, beside mount options: without what is mounted below its source
READ_ONLY_ALONE = "ro-alone"  # what is mounted below the source stays as it is
_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_TMPFS_OPTION = re.compile(
    r"(size|nr_blocks|nr_inodes)=\d+[kKmMgG%]?|mode=[0-7]{1,5}|(uid|gid)=\d+|mpol=[\w:=-]+|huge=\w+|defaults|"
    r"(no)?(exec|suid|dev|atime)|nodiratime|relatime|strictatime|a?sync"
)
_PROPAGATIONS = frozenset({"private", "rprivate", "shared", "rshared", "slave", "rslave"})
_IGNORED_MODES = frozenset({"z", "Z", "cached", "delegated", "consistent"})  # SELinux and Docker Desktop


def parse_mounts(
    config: ContainerConfig, host: HostConfig, find_container: Callable[[str], Container]
) -> tuple[MountPoint, ...]:
    """Return every mount asked for, one for each destination, in the order in which they must be mounted.

    A volume without a name has ``name`` "": an anonymous one is to be made. Raises InvalidParameter.
    """
    points: dict[str, MountPoint] = {}
    for ref in host.volumes_from or ():
        for point in _inherited(ref, find_container):
            points[point.destination] = point
    asked: list[MountPoint] = [_parse_bind(text, host.volume_driver) for text in host.binds or ()]
    asked += [_parse_mount(spec) for spec in host.mounts or ()]
    asked += [_parse_tmpfs(target, options) for target, options in (host.tmpfs or {}).items()]
    seen: set[str] = set()
    for point in asked:
        if point.destination in seen:
            raise InvalidParameter(f"Duplicate mount point: {point.destination}")
        seen.add(point.destination)
        points[point.destination] = point
    for target in config.volumes or ():
        destination = _clean_destination(target, "volume")
        if destination not in points:
            points[destination] = MountPoint(
                type="volume", destination=destination, driver=host.volume_driver or "local"
            )
    # A mount below another must come after it, or it would be hidden.
    return tuple(sorted(points.values(), key=lambda point: point.destination.count("/")))


def volume_requests(host: HostConfig) -> dict[str, VolumeOptions]:
    """Return what --mount asks of the volumes that are to be made, by destination."""
    return {
        posixpath.normpath(spec.target): spec.volume_options
        for spec in host.mounts or ()
        if spec.type == "volume" and spec.volume_options
    }


def check_bind_sources(points: Sequence[MountPoint], host: HostConfig, owner: IdMap | None = None) -> None:
    """Raise InvalidParameter for a ``--mount type=bind`` whose source is missing; make the -v ones.

    Docker treats the two differently, and scripts rely on both.

    :param owner: whose root what is made belongs to, unless its ids are mapped.
    """
    strict = {
        posixpath.normpath(spec.target): spec
        for spec in host.mounts or ()
        if spec.type == "bind" and not (spec.bind_options and spec.bind_options.create_mountpoint)
    }
    missing = [point for point in points if point.type == "bind" and not Path(point.source).exists()]
    for point in missing:
        if point.destination in strict:
            raise InvalidParameter(
                f'invalid mount config for type "bind": bind source path does not exist: {point.source}'
            )
    for point in missing:
        try:
            Path(point.source).mkdir(parents=True, exist_ok=True)
            if owner is not None and not point.is_idmapped:
                os.chown(point.source, owner.uid, owner.gid)
        except OSError as error:
            raise InvalidParameter(
                f"error while creating mount source path '{point.source}': {error.strerror}"
            ) from error


def _inherited(ref: str, find_container: Callable[[str], Container]) -> list[MountPoint]:
    name, _, mode = ref.partition(":")
    if mode not in ("", "rw", "ro", "z", "Z"):
        raise InvalidParameter(f"invalid volumes-from mode: {mode}")
    source = find_container(name)
    points = [point for point in source.mounts if point.type != "tmpfs"]
    return [replace(point, rw=False) for point in points] if mode == "ro" else points


def _parse_bind(text: str, volume_driver: str) -> MountPoint:
    parts = text.split(":")
    if not text or len(parts) > 3 or "" in parts[:2]:
        raise InvalidParameter(f"invalid volume specification: '{text}'")
    if len(parts) == 1:
        return MountPoint(
            type="volume",
            destination=_clean_destination(parts[0], "volume", text),
            driver=volume_driver or "local",
        )
    source = parts[0]
    target = _clean_destination(parts[1], "bind" if source.startswith("/") else "volume", text)
    mode = parts[2] if len(parts) == 3 else ""
    rw, propagation, no_copy = _parse_mode(mode, text)
    if source.startswith("/"):
        return MountPoint(
            type="bind",
            source=posixpath.normpath(source),
            destination=target,
            mode=mode,
            rw=rw,
            propagation=propagation or "rprivate",
        )
    _check_volume_name(source)
    if propagation:
        raise InvalidParameter(f"invalid volume specification: '{text}'")
    return MountPoint(
        type="volume",
        name=source,
        destination=target,
        driver=volume_driver or "local",
        mode=mode,
        rw=rw,
        options=("nocopy",) if no_copy else (),
    )


def _parse_mode(mode: str, text: str) -> tuple[bool, str, bool]:
    rw, propagation, no_copy = True, "", False
    for word in filter(None, mode.split(",")):
        if word in ("ro", "rw"):
            rw = word == "rw"
        elif word in _PROPAGATIONS:
            propagation = word
        elif word == IDMAP:
            continue  # it is in the mode
        elif word == "nocopy":
            no_copy = True
        elif word not in _IGNORED_MODES:
            raise InvalidParameter(f"invalid volume specification: '{text}': invalid mode: {mode}")
    return rw, propagation, no_copy


def _parse_mount(spec: MountSpec) -> MountPoint:
    kind = spec.type
    if kind not in ("bind", "volume", "tmpfs", "image"):
        raise InvalidParameter(f'invalid mount config: mount type unknown: "{kind}"')
    if not spec.target:
        raise InvalidParameter(f'invalid mount config for type "{kind}": field Target must not be empty')
    target = _clean_destination(spec.target, kind)
    rw = not spec.read_only
    for field, value, wanted in (
        ("BindOptions", spec.bind_options, "bind"),
        ("VolumeOptions", spec.volume_options, "volume"),
        ("TmpfsOptions", spec.tmpfs_options, "tmpfs"),
        ("ImageOptions", spec.image_options, "image"),
    ):
        if value is not None and kind != wanted:
            raise InvalidParameter(
                f'invalid mount config for type "{kind}": field {field} must not be specified'
            )
    if kind == "tmpfs":
        if spec.source:
            raise InvalidParameter(
                'invalid mount config for type "tmpfs": field Source must not be specified'
            )
        return MountPoint(type="tmpfs", destination=target, rw=rw, options=_tmpfs_options(spec.tmpfs_options))
    if kind == "bind":
        if not spec.source:
            raise InvalidParameter('invalid mount config for type "bind": field Source must not be empty')
        if not spec.source.startswith("/"):
            raise InvalidParameter(
                f"invalid mount config for type \"bind\": invalid mount path: '{spec.source}' "
                "mount path must be absolute"
            )
        propagation = spec.bind_options.propagation if spec.bind_options else ""
        if propagation and propagation not in _PROPAGATIONS:
            raise InvalidParameter(
                f'invalid mount config for type "bind": invalid propagation mode: {propagation}'
            )
        return MountPoint(
            type="bind",
            source=posixpath.normpath(spec.source),
            destination=target,
            rw=rw,
            propagation=propagation or "rprivate",
            options=_bind_options(spec.bind_options, read_only=spec.read_only),
        )
    if kind == "image":
        return _image_mount(spec, target)
    options = spec.volume_options
    driver = options.driver_config.name if options and options.driver_config else ""
    if spec.source:
        _check_volume_name(spec.source)
    subpath = _check_subpath(options.subpath if options else "", "volume")
    return MountPoint(
        type="volume",
        name=spec.source,
        destination=target,
        driver=driver or "local",
        rw=rw,
        subpath=subpath,
        options=("nocopy",) if options and options.no_copy else (),
    )


def _image_mount(spec: MountSpec, target: str) -> MountPoint:
    """Which image it is, ``creation`` finds out."""
    if not spec.source:
        raise InvalidParameter('invalid mount config for type "image": field Source must not be empty')
    subpath = _check_subpath(spec.image_options.subpath if spec.image_options else "", "image")
    return MountPoint(type="image", name=spec.source, destination=target, rw=False, subpath=subpath)


def _check_subpath(subpath: str, kind: str) -> str:
    if subpath.startswith("/") or ".." in subpath.split("/"):
        raise InvalidParameter(
            f'invalid mount config for type "{kind}": subpath must be inside the {kind}: {subpath}'
        )
    return subpath


def _parse_tmpfs(target: str, options: str) -> MountPoint:
    words = [word for word in options.split(",") if word]
    rw = "ro" not in words
    kept = tuple(word for word in words if word not in ("rw", "ro"))
    _check_tmpfs_options(kept)
    return MountPoint(type="tmpfs", destination=_clean_destination(target, "tmpfs"), rw=rw, options=kept)


def _tmpfs_options(options: TmpfsOptions | None) -> tuple[str, ...]:
    if options is None:
        return ()
    words: list[str] = []
    if options.size_bytes:
        words.append(f"size={options.size_bytes}")
    if options.mode:
        words.append(f"mode={options.mode:o}")
    for pair in options.options or ():
        if len(pair) not in (1, 2):
            raise InvalidParameter(f'invalid mount config for type "tmpfs": invalid option: {pair}')
        words.append("=".join(pair))
    _check_tmpfs_options(words)
    return tuple(words)


def _check_tmpfs_options(words: Iterable[str]) -> None:
    """Raise InvalidParameter for a word that one of the hulls would trip over. Source: mount(8), tmpfs(5)."""
    unknown = [word for word in words if _TMPFS_OPTION.fullmatch(word) is None]
    if unknown:
        raise InvalidParameter(f"invalid tmpfs option {unknown}")


def _bind_options(options: BindOptions | None, *, read_only: bool) -> tuple[str, ...]:
    if options is None:
        return ()
    words = [ALONE] if options.non_recursive else []
    conflict = 'invalid mount config for type "bind": mount options conflict: '
    for name, asked in (
        ("ReadOnlyNonRecursive", options.read_only_non_recursive),
        ("ReadOnlyForceRecursive", options.read_only_force_recursive),
    ):
        if asked and not read_only:
            raise InvalidParameter(f"{conflict}!ReadOnly && BindOptions.{name}")
    if options.read_only_non_recursive:
        if options.read_only_force_recursive:
            raise InvalidParameter(f"{conflict}ReadOnlyNonRecursive && BindOptions.ReadOnlyForceRecursive")
        words.append(READ_ONLY_ALONE)
    if options.read_only_force_recursive:
        words.append("rro")
    return tuple(words)


def _clean_destination(target: str, kind: str, bind: str = "") -> str:
    """Return where a mount goes. ``bind``: the whole of the -v that named it. Raises InvalidParameter."""
    where = f"invalid volume specification: '{bind}': " if bind else ""
    where += f'invalid mount config for type "{kind}": '
    if not target.startswith("/"):
        raise InvalidParameter(f"{where}invalid mount path: '{target}' mount path must be absolute")
    cleaned = posixpath.normpath(target)
    if cleaned in ("/", "//"):
        raise InvalidParameter(f"{where}invalid specification: destination can't be '/'")
    return cleaned


def _check_volume_name(name: str) -> None:
    if _VOLUME_NAME.fullmatch(name) is None or len(name) < 2:
        raise InvalidParameter(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, '
            "use absolute path"
        )

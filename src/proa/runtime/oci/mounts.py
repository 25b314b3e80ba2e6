# SPDX-License-Identifier: Apache-2.0
"""The mounts of a container in the order they are made: Docker's own first, then the user's. Pure.

A mount of the user replaces one of ours on the same target; a target below another comes after it.

Source: OCI runtime-spec, config.md, Mounts; config-linux.md, Default Filesystems; mount(8).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from proa.model.errors import InvalidParameter
from proa.model.task import Mount, MountKind, Namespaces, TaskSpec, tmpfs_options

Json = dict[str, object]

INIT_TARGET = "/sbin/docker-init"  # where Docker puts it, and where users of ps look for it
_PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave")


def build_mounts(spec: TaskSpec, *, files: Mapping[str, Path], init: Path) -> list[Json]:
    """Return ``mounts`` of the configuration.

    :param files: what the engine keeps for the container, by target.
    :param init: the small init on the host, mounted when the task wants it.
    :raises InvalidParameter: a propagation is unknown.
    """
    ours = _system_mounts(spec)
    users = [_user_mount(mount) for mount in spec.mounts]
    ours += [_file_mount(target, source, spec=spec) for target, source in files.items()]
    if spec.init:
        ours.append(_bind(INIT_TARGET, init, "ro", "rprivate"))
    taken = {mount["destination"] for mount in users}
    kept = [mount for mount in ours if mount["destination"] not in taken]
    # Stable: what has the same depth stays in the order given. The system's /dev is before /dev/pts anyway.
    return sorted(kept + users, key=lambda mount: _depth(str(mount["destination"])))


def rootfs_propagation(mounts: Iterable[Mount]) -> str:
    """Return ``linux.rootfsPropagation``: "" is private, and below that nothing propagates."""
    wanted = {option for mount in mounts for option in mount.options}
    if wanted & {"shared", "rshared"}:
        return "shared"
    return "rslave" if wanted & {"slave", "rslave"} else ""


def _system_mounts(spec: TaskSpec) -> list[Json]:
    writable = spec.security.privileged
    hardened = ["nosuid", "noexec", "nodev"]
    read_only = [] if writable else ["ro"]
    mounts = [
        _mount("/proc", "proc", "proc", *hardened),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ),
        _mount("/sys", "sysfs", "sysfs", *hardened, *read_only),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", *hardened, *read_only),
    ]
    return mounts + _ipc_mounts(spec.namespaces, spec.shm_size_bytes)


def _ipc_mounts(namespaces: Namespaces, shm_size_bytes: int) -> list[Json]:
    hardened = ("nosuid", "noexec", "nodev")
    queues = _mount("/dev/mqueue", "mqueue", "mqueue", *hardened)
    if namespaces.ipc == "" and not shm_size_bytes:
        return [queues]
    if namespaces.ipc == "host":
        # A host need not have /dev/mqueue mounted; in its IPC namespace a new mount shows the same queues.
        shm = _bind("/dev/shm", Path("/dev/shm"), *hardened)
    else:
        shm = _mount("/dev/shm", "tmpfs", "shm", *hardened, "mode=1777", f"size={shm_size_bytes}")
    return [queues, shm]


def _user_mount(mount: Mount) -> Json:
    if mount.kind is MountKind.TMPFS:
        return _mount(mount.target, "tmpfs", "tmpfs", *tmpfs_options(mount))
    propagation = [option for option in mount.options if option in _PROPAGATIONS]
    others = [option for option in mount.options if option not in _PROPAGATIONS]
    if mount.source is None:
        raise InvalidParameter(f"invalid mount config for {mount.target}: no source")
    for option in others:
        if option not in ("rbind", "bind", "rro"):
            raise InvalidParameter(f"invalid option {option!r} of the bind mount {mount.target}")
    return _bind(
        mount.target,
        mount.source,
        "rro" if "rro" in others else "ro" if mount.read_only else "rw",
        *(propagation or ["rprivate"]),
        recursive="bind" not in others,
    )


def _file_mount(target: str, source: Path, *, spec: TaskSpec) -> Json:
    return _bind(target, source, "ro" if spec.read_only_rootfs else "rw", "rprivate")


def _bind(target: str, source: Path, *options: str, recursive: bool = True) -> Json:
    kind = "rbind" if recursive else "bind"
    return {"destination": target, "type": "bind", "source": str(source), "options": [kind, *options]}


def _mount(target: str, kind: str, source: str, *options: str) -> Json:
    return {"destination": target, "type": kind, "source": source, "options": list(options)}


def _depth(target: str) -> int:
    return len(PurePosixPath(target).parts)

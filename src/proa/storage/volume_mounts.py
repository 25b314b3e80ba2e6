# SPDX-License-Identifier: Apache-2.0
"""Volumes of the driver ``local`` that are another file system: its options, its mount and unmount.

Such a volume is mounted on its directory while something runs that uses it. Whoever removes a volume must
have unmounted it: what is mounted is not ours to delete.

Source: Docker documentation, docker volume create, "Driver-specific options"; moby, volume/local, for rules
and texts; mount(8) and mount(2) for the words of ``o``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from proa.host.mount import Unmount, mount, mount_table, unmount
from proa.model.errors import InvalidParameter, Unavailable
from proa.model.volume import Volume

_OPTIONS = ("type", "o", "device")
_REQUIRED = {"device": ("type",), "type": ("device",), "o": ("device", "type")}
_FLAGS = {  # mount(2)
    "ro": 1,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "sync": 16,
    "dirsync": 128,
    "noatime": 1024,
    "nodiratime": 2048,
    "bind": 4096,
    "rbind": 4096 | 16384,
    "relatime": 1 << 21,
    "strictatime": 1 << 24,
}
_OPPOSITES = {"rw": 1, "suid": 2, "dev": 4, "exec": 8, "async": 16, "atime": 1024, "diratime": 2048}
_IGNORED = frozenset({"defaults", "auto", "noauto", "user", "nouser", "_netdev", "nofail"})
_READ_ONLY, _REMOUNT, _BIND = 1, 32, 4096


def check_options(name: str, options: Mapping[str, str]) -> None:
    """Raise InvalidParameter for options that the driver does not have, or that lack another."""
    for option in options:
        if option == "size":
            raise InvalidParameter(
                f'create {name}: quota size requested but no quota support: use type=tmpfs and "o=size=…", '
                "or a file system of that size"
            )
        if option not in _OPTIONS:
            raise InvalidParameter(f'create {name}: invalid option: "{option}"')
    for option, others in _REQUIRED.items():
        for other in others:
            if options.get(option) and not options.get(other):
                raise InvalidParameter(f'create {name}: missing required option: "{other}"')
    kind = options.get("type", "")
    if kind and not _is_bind(options) and not _is_known(kind):
        raise InvalidParameter(f"create {name}: this kernel has no file system {kind!r}")


def mount_volume(volume: Volume) -> None:
    """Mount what the options name. Does nothing without options, or when it is mounted.

    :raises Unavailable: it cannot be mounted; the sentence is the Docker Engine's.
    """
    options = volume.options
    if not options.get("device") or is_mounted(volume.mountpoint):
        return
    flags, words = _parse_words(options.get("o", ""))
    kind = "none" if _is_bind(options) else options["type"]
    if kind in ("nfs", "nfs4", "cifs"):
        words = _resolved(words)
    data = ",".join(words)
    if kind == "none":
        flags |= _BIND
    try:
        mount(options["device"], volume.mountpoint, kind, flags=flags, data=data)
        if flags & _BIND and flags & _READ_ONLY:  # a bind takes no flags at first
            mount("none", volume.mountpoint, "none", flags=flags | _REMOUNT)
    except OSError as error:
        unmount_volume(volume)
        raise Unavailable(
            f"failed to mount local volume: mount {options['device']}:{volume.mountpoint}, "
            f"data: {data}: {(error.strerror or str(error)).lower()}"
        ) from error


def unmount_volume(volume: Volume) -> None:
    """Undo ``mount_volume``. Idempotent. A mount still in use goes with its last user."""
    while is_mounted(volume.mountpoint):
        unmount(volume.mountpoint, Unmount.DETACH | Unmount.NOFOLLOW)


def is_mounted(path: Path) -> bool:
    """Tell whether something is mounted on exactly this directory."""
    return any(entry.mount_point == path for entry in mount_table())


def _is_bind(options: Mapping[str, str]) -> bool:
    words = options.get("o", "").split(",")
    return options.get("type") in ("none", "bind") or "bind" in words or "rbind" in words


def _is_known(kind: str) -> bool:
    names = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    if kind in names:
        return True
    modules = Path("/lib/modules", os.uname().release, "kernel/fs")
    return any((modules / directory).is_dir() for directory in (kind, kind.rstrip("0123456789")))


def _parse_words(text: str) -> tuple[int, list[str]]:
    """Return the flags of mount(2) and the words that are the file system's own."""
    flags, words = 0, []
    for word in filter(None, text.split(",")):
        if word in _FLAGS:
            flags |= _FLAGS[word]
        elif word in _OPPOSITES:
            flags &= ~_OPPOSITES[word]
        elif word not in _IGNORED:
            words.append(word)
    return flags, words


def _resolved(words: list[str]) -> list[str]:
    """Put the address in the place of the server's name, as the kernel resolves none. Raises Unavailable."""
    found = []
    for word in words:
        key, _, server = word.partition("=")
        if key == "addr":
            try:
                server = str(socket.getaddrinfo(server, None)[0][4][0])
            except OSError as error:
                raise Unavailable(f"error resolving passed in network volume address: {error}") from error
            word = f"addr={server}"
        found.append(word)
    return found

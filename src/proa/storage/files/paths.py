# SPDX-License-Identifier: Apache-2.0
"""What a path of the copy routes means, and what is there. Runs in the confined child, inside the tree.

The process's root is the tree's, so no path leads out; ``openat2`` refuses the links of /proc, which are not
paths at all. Rules and words are Docker's.

Source: Engine API, ContainerArchiveInfo; Go, io/fs, FileMode; docker cp reference.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from dataclasses import dataclass

from proa.host.mount import AT_FDCWD, Resolve, openat2

LINKS_MAX = 255  # followed on one path, as Docker does
_GO_BITS = {
    stat.S_IFDIR: 1 << 31,
    stat.S_IFLNK: 1 << 27,
    stat.S_IFBLK: 1 << 26,
    stat.S_IFCHR: 1 << 26 | 1 << 21,
    stat.S_IFIFO: 1 << 25,
    stat.S_IFSOCK: 1 << 24,
}


class Refusal(Exception):
    """The request cannot be fulfilled. ``kind`` is invalid, missing or failed; the message is for the
    user."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


@dataclass(slots=True)
class Found:
    """What a path leads to. ``fd`` refers to it (O_PATH); ``path`` is cleaned, from the root."""

    path: str
    fd: int
    status: os.stat_result
    target: str  # of a symbolic link: where it ends, as far as it can be followed

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    def describe(self) -> dict[str, object]:
        """Return what the header X-Docker-Container-Path-Stat says, but the time in nanoseconds."""
        return {
            "name": readable(base_name(self.path)),
            "size": self.status.st_size,
            "mode": go_mode(self.status.st_mode),
            "mtime_ns": self.status.st_mtime_ns,
            "target": readable(self.target),
        }


def find(path: str) -> Found:
    """Look a path up; a link at its end is followed when a slash or ``/.`` comes after it.

    :raises Refusal: there is nothing (missing), or the path makes no sense (invalid).
    """
    cleaned = clean(path)
    try:
        flags = os.O_PATH | os.O_NOFOLLOW
        fd = openat2(AT_FDCWD, os.fsencode(cleaned), flags, resolve=Resolve.NO_MAGICLINKS)
    except FileNotFoundError:
        raise Refusal("missing", cleaned) from None
    except (OSError, ValueError) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
        raise Refusal("invalid", f"lstat {cleaned}: {reason}") from error
    status = os.fstat(fd)
    target = follow(cleaned) if stat.S_ISLNK(status.st_mode) else ""
    return Found(cleaned, fd, status, target)


def clean(path: str) -> str:
    """Make a path absolute and short, but keep a slash or ``/.`` at its end."""
    cleaned = posixpath.normpath("/" + path.lstrip("/"))
    if base_name(path) == "." and base_name(cleaned) != ".":
        cleaned = cleaned.rstrip("/") + "/."
    if path.endswith("/") and not cleaned.endswith("/"):
        cleaned += "/"
    return cleaned


def base_name(path: str) -> str:
    """Return the last component as Go does: "/" of the root, "." when it ends so."""
    stripped = path.rstrip("/")
    return stripped.rpartition("/")[2] if stripped else path[:1] or "."


def follow(path: str) -> str:
    """Return the path that all links of ``path`` lead to; what does not exist stays as it is written."""
    done: list[str] = []
    todo = path.split("/")[::-1]
    followed = 0
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            del done[-1:]
            continue
        here = "/" + "/".join([*done, part])
        target = ""
        with contextlib.suppress(OSError):
            if stat.S_ISLNK(os.lstat(here).st_mode):
                target = os.readlink(here)  # noqa: PTH115 (text as it is)
        if not target:
            done.append(part)
            continue
        followed += 1
        if followed > LINKS_MAX:
            raise Refusal("invalid", f"lstat {path}: too many levels of symbolic links")
        if target.startswith("/"):
            done = []
        todo += target.split("/")[::-1]
    return "/" + "/".join(done)


def readable(text: str) -> str:
    """Return a text that can be sent as JSON: names are bytes, and need not be UTF-8."""
    return os.fsencode(text).decode("utf-8", "replace")


def go_mode(mode: int) -> int:
    """Return a mode as Go's FileMode counts its bits."""
    bits = _GO_BITS.get(stat.S_IFMT(mode), 0) | mode & 0o777
    for bit, go in ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20)):
        if mode & bit:
            bits |= go
    return bits

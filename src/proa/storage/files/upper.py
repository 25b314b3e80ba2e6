# SPDX-License-Identifier: Apache-2.0
"""What an overlay's upper directory changes, seen against the layers below it: as a layer, or as a list.

A whiteout is a 0:0 character device; an opaque directory has the xattr ``trusted.overlay.opaque`` and hides
what is below. Directories are in the upper because something in them changed: those that are as they were
below, and hold nothing new, are no change, and neither are the empty mount points that a runtime makes
(``ignored``). Runs in the confined child.

Source: Linux, Documentation/filesystems/overlayfs.rst; OCI image-spec, layer.md, Changesets and Whiteouts;
Docker Engine, pkg/archive, Changes.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from proa.storage.files.tar_writer import TarWriter
from proa.storage.files.walk import MemberWriter, Visit, iter_tree, read_xattrs
from proa.storage.tar import BadTar

MODIFIED, ADDED, DELETED = 0, 1, 2  # Engine API, ChangeType

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_XATTR_OPAQUE = "trusted.overlay.opaque"
_OPEN_BELOW = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class _Level:
    """A directory of the upper being read: the same one below (-1: there is none, or it is hidden)."""

    path: bytes
    below: int
    opaque: bool
    pending: Visit | None = None  # the directory itself, while it is not known to be a change
    changed: bool = False
    hides: frozenset[bytes] = frozenset()  # names below that an opaque directory hides


@dataclass(slots=True, kw_only=True)
class _Step:
    """One file of the upper, or the end of a directory (``leaves``).

    ``was`` is what is below in its place, None when nothing; ``level`` its directory, or the one that ends.
    """

    visit: Visit
    level: _Level
    was: os.stat_result | None
    entered: _Level | None = None
    leaves: bool = False


def write_layer(upper: int, below: int, tar: TarWriter, ignored: Collection[bytes]) -> None:
    """Write the upper's changes as a layer. ``below``: a directory, -1 when there is nothing below.

    :raises BadTar: a file's name could only be read as a whiteout.
    """
    members = MemberWriter(tar)
    waiting: list[_Level] = []  # directories entered and not written: they may turn out to be no change

    def write_waiting() -> None:
        for level in waiting:
            assert level.pending is not None
            members.write_directory(level.pending, level.path)
            level.pending = None
        waiting.clear()

    for step in _iter_steps(upper, below):
        visit, was = step.visit, step.was
        if step.leaves:
            if step.level in waiting:
                waiting.remove(step.level)
            continue
        if _is_whiteout(visit.status):
            if was is not None:
                write_waiting()
                head = visit.path[: len(visit.path) - len(visit.name)]
                tar.add_marker(head + _WHITEOUT + visit.name, visit.status)
            continue
        if visit.name.startswith(_WHITEOUT):
            raise BadTar(
                f"a layer cannot have a file called {os.fsdecode(visit.path)!r}: it means a deletion"
            )
        if step.entered is not None:
            step.entered.pending = visit
            waiting.append(step.entered)
            if visit.path in ignored and was is None:
                continue
            if was is None or step.entered.opaque or _differs(was, visit, step.level.below):
                write_waiting()
            if step.entered.opaque and was is not None and stat.S_ISDIR(was.st_mode):
                tar.add_marker(visit.path + b"/" + _OPAQUE, visit.status)
        elif not (visit.path in ignored and was is None and visit.status.st_size == 0):
            write_waiting()
            members.write(visit.name, visit.status, visit.path)


def list_changes(upper: int, below: int, ignored: Collection[bytes]) -> list[tuple[int, bytes]]:
    """Return kind and path (absolute) of all changes: a directory before what is in it, in each the names in
    order, and at the end of each what it has lost."""
    found: list[tuple[int, bytes]] = []
    starts: list[int] = []
    lost: list[list[bytes]] = [[]]

    for step in _iter_steps(upper, below):
        visit, was = step.visit, step.was
        path = b"/" + visit.path
        if step.leaves:
            start, gone = starts.pop(), lost.pop()
            gone += [path + b"/" + name for name in step.level.hides]
            found += [(DELETED, name) for name in sorted(gone)]
            if not step.level.changed and len(found) > start:
                found.insert(start, (MODIFIED, path))
            continue
        if _is_whiteout(visit.status):
            if was is not None:
                lost[-1].append(path)
            continue
        ignore = visit.path in ignored and was is None
        if step.entered is not None:
            starts.append(len(found))
            lost.append([])
            differs = was is None or _differs(was, visit, step.level.below)
            step.entered.changed = differs and not ignore
            if step.entered.changed:
                found.append((ADDED if was is None else MODIFIED, path))
        elif was is None:
            if not (ignore and visit.status.st_size == 0):
                found.append((ADDED, path))
        elif _differs(was, visit, step.level.below):
            found.append((MODIFIED, path))
    return found + [(DELETED, path) for path in sorted(lost[0])]


# --- machinery ---


def _iter_steps(upper: int, below: int) -> Iterator[_Step]:
    levels = [_Level(b"", below, False)]
    for visit in iter_tree(upper):
        if visit.is_end:
            level = levels.pop()
            yield _Step(visit=visit, level=level, was=None, leaves=True)
            if level.below >= 0:
                os.close(level.below)
            continue
        level = levels[-1]
        was = _stat_below(level.below, visit.name)
        if not visit.is_directory:
            yield _Step(visit=visit, level=level, was=was)
            continue
        entered = _Level(visit.path, -1, _is_opaque(visit.fd))
        if was is not None and stat.S_ISDIR(was.st_mode):
            entered.below = os.open(visit.name, _OPEN_BELOW, dir_fd=level.below)
            if entered.opaque:
                names = {os.fsencode(name) for name in os.listdir(entered.below)}  # noqa: PTH208
                entered.hides = frozenset(names - {os.fsencode(name) for name in os.listdir(visit.fd)})  # noqa: PTH208
        levels.append(entered)
        yield _Step(visit=visit, level=level, was=was, entered=entered)


def _stat_below(below: int, name: bytes) -> os.stat_result | None:
    if below < 0:
        return None
    with contextlib.suppress(FileNotFoundError):
        return os.stat(name, dir_fd=below, follow_symlinks=False)
    return None


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(fd, _XATTR_OPAQUE) == b"y"
    except OSError:
        return False


def _differs(was: os.stat_result, visit: Visit, below: int) -> bool:
    """Compare as Docker does: size and time of a directory say nothing, those of a file all."""
    now = visit.status
    if (was.st_mode, was.st_uid, was.st_gid) != (now.st_mode, now.st_uid, now.st_gid):
        return True
    if visit.is_directory:
        return _xattrs_below(was, visit.name, below) != read_xattrs(visit.fd)
    if (was.st_mtime_ns, was.st_size, was.st_rdev) != (now.st_mtime_ns, now.st_size, now.st_rdev):
        return True
    return _xattrs_below(was, visit.name, below) != read_xattrs(visit.name)


def _xattrs_below(was: os.stat_result, name: bytes, below: int) -> dict[bytes, bytes]:
    """Extended attributes of a name of another directory than the working one, which is gone back to."""
    here = os.open(".", _OPEN_BELOW)
    try:
        os.fchdir(below)
        return read_xattrs(name)
    finally:
        os.fchdir(here)
        os.close(here)

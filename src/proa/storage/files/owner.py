# SPDX-License-Identifier: Apache-2.0
"""Finds the numbers of a container's user, for ``docker cp -a``. Runs in the confined child, inside the tree.

Source: Engine API, PutContainerArchive, copyUIDGID; passwd(5), group(5).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from proa.host.mount import AT_FDCWD, Resolve, openat2
from proa.storage.files.paths import Refusal

MAX_FILE_BYTES = 4 << 20  # a hostile file is not read whole
MAX_ID = 2**31 - 1


def find_owner(text: str) -> tuple[int, int]:
    """Resolve "uid", "name", "uid:gid" or "name:group"; a number needs no entry in the files.

    :raises Refusal: a name has none.
    """
    user, _, group = text.partition(":")
    uid, gid = _number(user), 0
    for name, fields in _entries("/etc/passwd"):
        if len(fields) > 2 and (name == user or (uid is not None and _number(fields[1]) == uid)):
            uid, gid = _number(fields[1]), _number(fields[2]) or 0
            break
    if uid is None:
        raise Refusal("invalid", f"unable to find user {user}: no matching entries in passwd file")
    if group:
        found = _number(group)
        for name, fields in _entries("/etc/group"):
            if name == group and len(fields) > 1:
                found = _number(fields[1])
                break
        if found is None:
            raise Refusal("invalid", f"unable to find group {group}: no matching entries in group file")
        gid = found
    return uid, gid


def _entries(path: str) -> Iterator[tuple[str, list[str]]]:
    for line in _read(path).splitlines():
        name, *fields = line.split(":")
        yield name, fields


def _read(path: str) -> str:
    with contextlib.suppress(OSError):
        fd = openat2(AT_FDCWD, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, resolve=Resolve.NO_MAGICLINKS)
        with os.fdopen(fd, "rb") as file:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return file.read(MAX_FILE_BYTES).decode(errors="replace")
    return ""


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and int(text) <= MAX_ID else None

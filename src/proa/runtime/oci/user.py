# SPDX-License-Identifier: Apache-2.0
"""Finds a user, his groups and his home in a container's own /etc/passwd and /etc/group.

The files are the container's: they are opened so that no link leads out of its root, read up to a limit, and
lines that make no sense are skipped.

Source: Engine API, ContainerConfig.User; passwd(5), group(5); openat2(2) RESOLVE_IN_ROOT.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from proa.host.mount import Resolve, openat2
from proa.model.errors import StartFailed

MAX_FILE_BYTES = 4 * 1024 * 1024  # a hostile file is not read whole into the engine
MAX_ID = 2**31 - 1  # Docker's own limit


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """``groups`` are the additional ones, the primary first (CVE-2022-36109)."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    gid: int
    members: tuple[str, ...]


def find_user(root: Path, text: str, *, group_add: Sequence[str] = ()) -> User:
    """Resolve "", "uid", "name", "uid:gid" or "name:group" inside ``root``.

    A number needs no entry in the files. Raises StartFailed with Docker's words when a name has none.
    """
    passwd, group = read_inside(root, "etc/passwd"), read_inside(root, "etc/group")
    return resolve(text, passwd=passwd, group=group, group_add=group_add)


def resolve(text: str, *, passwd: str, group: str, group_add: Sequence[str] = ()) -> User:
    """``find_user`` on the files' content. Pure."""
    user_part, has_group, group_part = text.partition(":")
    account = _find_account(user_part, passwd)
    groups = list(_groups(group))
    if has_group and group_part:
        gid = _find_group(group_part, groups)
        extra: list[int] = []
    else:
        gid = account.gid
        extra = [each.gid for each in groups if account.name and account.name in each.members]
    extra += [_find_group(each, groups) for each in group_add]
    return User(
        uid=account.uid,
        gid=gid,
        groups=tuple(dict.fromkeys((gid, *extra))),
        home=account.home or "/",
    )


def read_inside(root: Path, path: str) -> str:
    """Read a file of a container; "" when there is none or it is not an ordinary one."""
    try:
        directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        # Non-blocking: a FIFO in its place must not hold us up.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
        fd = openat2(directory, path, flags, resolve=Resolve.IN_ROOT | Resolve.NO_MAGICLINKS)
    except OSError:
        return ""
    finally:
        os.close(directory)
    with contextlib.closing(os.fdopen(fd, "rb")) as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return file.read(MAX_FILE_BYTES).decode(errors="replace")


def _find_account(text: str, passwd: str) -> _Account:
    number = _number(text) if text else 0
    for account in _accounts(passwd):
        if (account.uid == number if number is not None else account.name == text) or (
            text and account.name == text
        ):
            return account
    if number is None:
        raise StartFailed(f"unable to find user {text}: no matching entries in passwd file")
    if not 0 <= number <= MAX_ID:
        raise StartFailed(f"uids and gids must be in range 0-{MAX_ID}")
    return _Account("", number, 0, "/")


def _find_group(text: str, groups: Sequence[_Group]) -> int:
    number = _number(text)
    for group in groups:
        if group.name == text:
            return group.gid
    if number is None:
        raise StartFailed(f"unable to find group {text}: no matching entries in group file")
    if not 0 <= number <= MAX_ID:
        raise StartFailed(f"uids and gids must be in range 0-{MAX_ID}")
    return number


def _accounts(passwd: str) -> Iterator[_Account]:
    for fields in _lines(passwd):
        uid, gid = _number(_field(fields, 2)), _number(_field(fields, 3))
        if uid is not None and gid is not None:
            yield _Account(fields[0], uid, gid, _field(fields, 5))


def _groups(group: str) -> Iterator[_Group]:
    for fields in _lines(group):
        gid = _number(_field(fields, 2))
        if gid is not None:
            yield _Group(fields[0], gid, tuple(_field(fields, 3).split(",")))


def _lines(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield stripped.split(":")


def _field(fields: Sequence[str], index: int) -> str:
    return fields[index] if index < len(fields) else ""


def _number(text: str) -> int | None:
    """The number, or None for a name. Decimal digits only: int() takes " 1_0" and more."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None

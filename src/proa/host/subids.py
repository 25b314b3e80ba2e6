# SPDX-License-Identifier: Apache-2.0
"""Subordinate ids: the ranges of /etc/subuid and /etc/subgid, and the user that Docker calls ``dockremap``.

Source: subuid(5), subgid(5); Docker documentation, "Isolate containers with a user namespace".
"""

from __future__ import annotations

import grp
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from proa.host.process import run
from proa.model.errors import ToolFailed

SUBUID, SUBGID = Path("/etc/subuid"), Path("/etc/subgid")
_FIRST, _COUNT = 100_000, 65_536  # useradd's own; login.defs(5), SUB_UID_MIN and SUB_UID_COUNT


class NoSubordinateIds(Exception):
    """A user or a group has none, or is none; the text says which."""


@dataclass(frozen=True, slots=True)
class IdRange:
    """``count`` ids from ``first`` on."""

    first: int
    count: int


def parse_ranges(text: str) -> Iterator[tuple[str, IdRange]]:
    """Yield owner (a name or a number) and range of each line; what makes no sense is left out, as shadow
    does. Pure."""
    for line in text.splitlines():
        owner, _, rest = line.strip().partition(":")
        first, _, count = rest.partition(":")
        if owner and _is_number(first) and _is_number(count) and int(count):
            yield owner, IdRange(int(first), int(count))


def find_range(path: Path, owner: str, number: int | None) -> IdRange | None:
    """Return the largest range of an owner, by its name or its number; None without one.

    :raises OSError: the file is there and cannot be read.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    names = {owner, *(() if number is None else (str(number),))}
    found = [one for name, one in parse_ranges(text) if name in names]
    return max(found, key=lambda one: one.count) if found else None


def ranges_of(text: str) -> tuple[IdRange, IdRange]:
    """Return the subordinate user and group ids of ``user[:group]``, names or numbers.

    :raises NoSubordinateIds: there is no such user or group, or it has none.
    """
    user, has_group, group = text.partition(":")
    name, uid = _account(user)
    group_name, gid = _group(group) if has_group else (name, _gid_of(name))
    found = []
    for path, owner, number, word in ((SUBUID, name, uid, "user"), (SUBGID, group_name, gid, "group")):
        one = find_range(path, owner, number)
        if one is None:
            raise NoSubordinateIds(f'no {path.name} ranges found for {word} "{owner}" in {path}')
        found.append(one)
    return found[0], found[1]


async def ensure_account(name: str) -> None:
    """Make the system user and group ``name`` with subordinate ids, as far as they are missing.

    :raises NoSubordinateIds: it cannot be done.
    """
    try:
        pwd.getpwnam(name)
    except KeyError:
        try:
            await run(["useradd", "--system", "--user-group", "--shell", "/bin/false", name])
        except ToolFailed as error:
            raise NoSubordinateIds(f"cannot make the user {name}: {error}") from error
    for path in (SUBUID, SUBGID):
        try:
            _ensure_line(path, name)
        except OSError as error:
            raise NoSubordinateIds(f"cannot give {name} subordinate ids: {error}") from error


def _ensure_line(path: Path, name: str) -> None:
    text = path.read_text() if path.exists() else ""
    ranges = list(parse_ranges(text))
    if any(owner == name for owner, _ in ranges):
        return
    first = max([_FIRST, *(one.first + one.count for _, one in ranges)])
    if text and not text.endswith("\n"):
        text += "\n"
    new = path.with_name(f".{path.name}.proa")
    new.write_text(f"{text}{name}:{first}:{_COUNT}\n")
    new.chmod(0o644)
    new.replace(path)


def _account(text: str) -> tuple[str, int]:
    try:
        found = pwd.getpwuid(int(text)) if _is_number(text) else pwd.getpwnam(text)
    except KeyError as error:
        raise NoSubordinateIds(f'there is no user "{text}"') from error
    return found.pw_name, found.pw_uid


def _group(text: str) -> tuple[str, int]:
    try:
        found = grp.getgrgid(int(text)) if _is_number(text) else grp.getgrnam(text)
    except KeyError as error:
        raise NoSubordinateIds(f'there is no group "{text}"') from error
    return found.gr_name, found.gr_gid


def _gid_of(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text) < 1 << 32

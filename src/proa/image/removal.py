# SPDX-License-Identifier: Apache-2.0
"""When a name or an image may be removed, and what goes with it, by Docker's rules.

By name: the name goes; with the last one the image goes too, unless something uses it. By id: the image
goes, if all its names are in one repository or it is forced. A running container or a child image is a
*hard* conflict, which force does not break; a stopped container or a name is a *soft* one.

Source: Engine API, ImageDelete; Docker Engine 28, the behaviour of ``docker rmi`` and its messages.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from proa.image.catalog import Entry
from proa.image.config import chain_ids
from proa.image.reference import Reference, parse_reference
from proa.image.store import Freed, ImageStore
from proa.model.errors import Conflict, ResourceInUse
from proa.model.ids import Digest, short

UsedBy = Callable[[Digest], Sequence[tuple[str, bool]]]
"""Containers made from an image: id, and whether it is alive."""

Publish = Callable[[str, Entry], None]


class _Check(enum.Flag):
    CHILD = enum.auto()
    RUNNING = enum.auto()
    NAMED = enum.auto()
    STOPPED = enum.auto()
    HARD = CHILD | RUNNING
    SOFT = NAMED | STOPPED


@dataclass(frozen=True, slots=True, kw_only=True)
class _Obstacle:
    reason: str
    is_hard: bool = False
    is_use: bool = False


@dataclass(slots=True)
class Removed:
    """What a removal did so far: entries for the API's answer, and the images struck from the catalog."""

    records: list[dict[str, str]] = field(default_factory=list)
    freed_bytes: int = 0


class Remover:
    """One removal. ``publish`` is told of every untag and delete.

    :param used_by: see UsedBy; asked at the moment of each decision.
    """

    def __init__(self, store: ImageStore, used_by: UsedBy, publish: Publish) -> None:
        self._store = store
        self._catalog = store.catalog
        self._used_by = used_by
        self._publish = publish
        self.removed = Removed()

    async def remove(self, ref: str, *, force: bool, prune_parents: bool) -> None:
        """Remove what the user named. Raises NoSuchImage, Conflict; then nothing was done."""
        entry = self._catalog.get(ref)
        if _is_id_prefix(entry.image.id, ref):
            if _is_single(entry.names):
                allowed = _Check.HARD if force else _Check.HARD | _Check.STOPPED
                self._refuse(entry, self._obstacle(entry, allowed))
                self._untag(entry, entry.names)
            quietly = False
        else:
            users = self._used_by(entry.image.id)
            if not force and _is_single(entry.names) and users:
                raise ResourceInUse(
                    f'conflict: unable to remove repository reference "{ref}" (must force) - '
                    f"{_shown(users[0][0])} is using its referenced image {short(entry.image.id)}"
                )
            if self._untag_reference(entry, parse_reference(ref)):
                return
            quietly = True
        await self._delete(entry.image.id, force=force, prune_parents=prune_parents, quietly=quietly)

    def _untag_reference(self, entry: Entry, ref: Reference) -> bool:
        """Take the name away, and the digests of a repository that has no tag left. True if others remain."""
        name = ref.with_digest(Digest(ref.digest)) if ref.digest else ref.with_default_tag()
        self._untag(entry, [name])
        rest = [other for other in entry.names if other != name]
        if not name.digest and not any(other.name == name.name and not other.digest for other in rest):
            digests = [other for other in rest if other.name == name.name]
            self._untag(entry, digests)
            rest = [other for other in rest if other not in digests]
        return bool(rest)

    def _untag(self, entry: Entry, names: Sequence[Reference]) -> None:
        for name in names:
            self._catalog.unassign(name)
            self.removed.records.append({"Untagged": name.familiar})
            self._publish("untag", entry)

    async def _delete(self, image_id: Digest, *, force: bool, prune_parents: bool, quietly: bool) -> None:
        entry = self._catalog.find_id(image_id)
        if entry is None:
            return
        obstacle = self._obstacle(entry, _Check.HARD if force else _Check.HARD | _Check.SOFT)
        if obstacle is not None:
            is_dangling = not entry.names and not self._catalog.children(image_id)
            if quietly and (not is_dangling or obstacle.is_use):
                return
            self._refuse(entry, obstacle)
        self._untag(entry, entry.names)
        holders = [container_id for container_id, _ in self._used_by(image_id)]
        freed = Freed()
        if holders:
            self._catalog.hide(image_id, holders)
        else:
            self._catalog.remove(image_id)
        self.removed.records.append({"Deleted": image_id})
        self._publish("delete", entry)
        if not holders:
            freed = await self._store.free([entry])
        self._record_layers(entry, freed)
        if prune_parents and entry.image.parent:
            parent = Digest(entry.image.parent)
            await self._delete(parent, force=False, prune_parents=True, quietly=True)

    def _record_layers(self, entry: Entry, freed: Freed) -> None:
        """Docker names a removed layer by its chain id, topmost first."""
        chain = zip(entry.image.layers, chain_ids(entry.image.layers), strict=True)
        gone = [chain_id for diff_id, chain_id in chain if diff_id in freed.layers]
        self.removed.records += [{"Deleted": chain_id} for chain_id in reversed(gone)]
        self.removed.freed_bytes += freed.size_bytes

    def _obstacle(self, entry: Entry, checks: _Check) -> _Obstacle | None:
        image_id = entry.image.id
        if _Check.CHILD in checks and self._catalog.children(image_id):
            return _Obstacle(reason="image has dependent child images", is_hard=True)
        users = self._used_by(image_id)
        running = [container_id for container_id, is_alive in users if is_alive]
        stopped = [container_id for container_id, is_alive in users if not is_alive]
        if _Check.RUNNING in checks and running:
            reason = f"image is being used by running container {short(running[0])}"
            return _Obstacle(reason=reason, is_hard=True, is_use=True)
        if _Check.NAMED in checks and entry.names:
            return _Obstacle(reason="image is referenced in multiple repositories")
        if _Check.STOPPED in checks and stopped:
            reason = f"image is being used by {_shown(stopped[0], 'stopped ')}"
            return _Obstacle(reason=reason, is_use=True)
        return None

    def _refuse(self, entry: Entry, obstacle: _Obstacle | None) -> None:
        if obstacle is None:
            return
        force = "cannot be forced" if obstacle.is_hard else "must be forced"
        message = f"conflict: unable to delete {short(entry.image.id)} ({force}) - {obstacle.reason}"
        raise ResourceInUse(message) if obstacle.is_use else Conflict(message)


def _shown(user: str, how: str = "") -> str:
    """Return what a message calls a user: a container by its short id, anything else as it is called."""
    return user if " " in user else f"{how}container {short(user)}"


def _is_id_prefix(image_id: Digest, ref: str) -> bool:
    return image_id.startswith(ref) or image_id.removeprefix("sha256:").startswith(ref)


def _is_single(names: Sequence[Reference]) -> bool:
    """Whether there is one name, or one tag and digests of its repository only."""
    if len(names) <= 1:
        return len(names) == 1
    tags = [name for name in names if not name.digest]
    return len(tags) <= 1 and len({name.name for name in names}) == 1

# SPDX-License-Identifier: Apache-2.0
"""The ids of the host that the daemon may give to containers: its options, /etc/subuid and /etc/subgid."""

from __future__ import annotations

from pathlib import Path

from proa.engine.userns import DEFAULT_POOL, MIN_SIZE, UserNamespaces
from proa.host.subids import SUBGID, SUBUID, IdRange, NoSubordinateIds, ensure_account, find_range, ranges_of
from proa.model.errors import Unavailable
from proa.model.task import IdMap

REMAP_USER = "dockremap"  # Docker's
POOL_USER = "containers"  # podman's


async def user_namespaces(*, remap: str, pool: str) -> UserNamespaces:
    """Return the ranges for ``--userns-remap`` and ``--userns-pool``, "" when they were not given.

    :raises Unavailable: a user has no subordinate ids, or the two overlap in whole.
    """
    try:
        found = None
        if remap:
            if remap == "default":
                await ensure_account(REMAP_USER)
                remap = REMAP_USER
            found = _paired(*ranges_of(remap))
            if found.size < MIN_SIZE:
                raise NoSubordinateIds(f"the {found.size} subordinate ids of {remap} are too few")
        return UserNamespaces(pool=_find_pool(pool), remap=found)
    except (NoSubordinateIds, OSError) as error:
        raise Unavailable(f"user namespaces: {error}") from error


def security_options(userns: UserNamespaces) -> tuple[str, ...]:
    """Return what ``docker info`` tells of them: as Docker, only that every container gets one."""
    return ("name=userns",) if userns.remap else ()


def _find_pool(pool: str) -> IdMap:
    if ":" in pool:  # START:SIZE
        start, _, size = pool.partition(":")
        return IdMap(uid=int(start), gid=int(start), size=int(size))
    if pool:
        return _paired(*ranges_of(pool))
    # It need not be an account: podman's is a name in these files only.
    users, groups = (find_range(Path(path), POOL_USER, None) for path in (SUBUID, SUBGID))
    return _paired(users, groups) if users and groups else DEFAULT_POOL


def _paired(users: IdRange, groups: IdRange) -> IdMap:
    return IdMap(uid=users.first, gid=groups.first, size=min(users.count, groups.count))

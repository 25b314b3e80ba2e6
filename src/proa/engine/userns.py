# SPDX-License-Identifier: Apache-2.0
"""Which ids of the host a container gets: HostConfig.UsernsMode, and the ranges that are given away.

A range is written in the container's record and nowhere else: it is taken and freed in one step with it, and
a daemon that was killed finds it there. So two containers never share one, unless the daemon was told to
give all of them the same (``--userns-remap``).

Source: Docker documentation, "Isolate containers with a user namespace"; moby, daemon/daemon_unix.go
(the refusals' sentences); podman-run(1), --userns=auto.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from proa.engine.container import Container
from proa.model.config import HostConfig
from proa.model.errors import Conflict, InvalidParameter
from proa.model.task import IdMap

RANGE_SIZE = 65536
MIN_SIZE = 6  # terminals belong to the group 5
# Free for everybody: above what systemd gives to its containers, below what 32 signed bits hold.
# Source: systemd, docs/UIDS-GIDS.md.
DEFAULT_POOL = IdMap(uid=0x70000000, gid=0x70000000, size=0x10000000)
_AUTO = re.compile(r"auto(:size=(\d{1,10}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class UserNamespaces:
    """The daemon's ranges.

    :ivar pool: what ``auto`` takes from. Its ids are used in pairs: the same distance from uid and gid.
    :ivar remap: what containers get that say nothing; None: the host's ids.
    """

    pool: IdMap = DEFAULT_POOL
    remap: IdMap | None = None

    def choose(self, host: HostConfig, containers: Iterable[Container], *, is_able: bool) -> IdMap | None:
        """Return the ids of a new container; the caller stores them before anything is awaited.

        :param containers: all that there are.
        :param is_able: whether its hull maps ids at all; it was asked about modes that name a map.
        :raises Conflict: every range of the pool is in use.
        """
        if host.userns_mode == "host":
            return None
        if not host.userns_mode:
            return self.remap if is_able else None
        taken = [container.ids for container in containers if container.ids]
        return free_range(self.pool, [*taken, *([self.remap] if self.remap else [])], _auto_size(host))

    def check(self, host: HostConfig, find: Callable[[str], Container], *, is_able: bool) -> None:
        """Raise InvalidParameter for a mode that is none, or does not go with the other options."""
        mode = host.userns_mode
        if mode not in ("", "host"):
            size = _auto_size(host)
            if not MIN_SIZE <= size <= self.pool.size:
                raise InvalidParameter(
                    f"invalid user namespace mode: {mode}: a size is from {MIN_SIZE} to {self.pool.size}, "
                    "which is all of the pool"
                )
        elif mode == "host" or not (self.remap and is_able):
            return
        if host.privileged:
            raise InvalidParameter(
                "privileged mode is incompatible with user namespaces.  You must run the container in the "
                "host namespace when running privileged mode"
            )
        for value, what in (
            (host.network_mode, "the host's network"),
            (host.pid_mode, "the host PID"),
            (host.ipc_mode, "the host IPC"),
        ):
            if value == "host":
                raise InvalidParameter(f"cannot share {what} namespace when user namespaces are enabled")
            kind, _, ref = value.partition(":")
            # Of an ``auto`` no other has the ids.
            if kind == "container" and (mode or find(ref).ids != self.remap):
                raise InvalidParameter(
                    f"cannot join a namespace of container {ref}: it is not in the same user namespace"
                )


def free_range(pool: IdMap, taken: Iterable[IdMap], size: int) -> IdMap:
    """Return the lowest part of the pool of which no id is taken. Pure. Raises Conflict."""
    used = sorted(
        (low - start, low - start + one.size)
        for one in taken
        for start, low in ((pool.uid, one.uid), (pool.gid, one.gid))
    )
    at = 0
    for begin, end in used:
        if begin < at + size and end > at:
            at = end
    if at + size > pool.size:
        raise Conflict(
            f"no {size} user ids are left for a container's user namespace: "
            f"those from {pool.uid} to {pool.uid + pool.size - 1} are in use"
        )
    return IdMap(uid=pool.uid + at, gid=pool.gid + at, size=size)


def _auto_size(host: HostConfig) -> int:
    match = _AUTO.fullmatch(host.userns_mode)
    if match is None:
        raise InvalidParameter(
            f"invalid user namespace mode: {host.userns_mode}: use host, auto or auto:size=N"
        )
    return int(match[2]) if match[2] else RANGE_SIZE

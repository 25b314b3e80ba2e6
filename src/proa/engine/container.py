# SPDX-License-Identifier: Apache-2.0
"""The container record and the states it passes through.

A record is frozen: a change makes a new one, which ``registry`` stores before anyone sees it. What runs is a
task (``proa.runtime.seam``); a record outlives many of them.

    created ──► running ◄──► paused
                 │  ▲          │
                 ▼  │          ▼
       restarting ──┘        exited ──► running
          any but running/paused ──► removing ──► (gone) or dead
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from proa.model.config import ContainerConfig, EndpointSettings, HostConfig
from proa.model.errors import WrongState
from proa.model.ids import ContainerId, Digest, short
from proa.model.network import Endpoint, PublishedPort
from proa.model.task import IdMap


class State(enum.Enum):
    """The Engine API's ContainerState.Status."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    REMOVING = "removing"
    EXITED = "exited"
    DEAD = "dead"


ALIVE = frozenset({State.RUNNING, State.PAUSED})
"""States in which a task exists."""

TRANSITIONS: dict[State, frozenset[State]] = {
    State.CREATED: frozenset({State.RUNNING, State.REMOVING}),
    State.RUNNING: frozenset({State.PAUSED, State.EXITED, State.RESTARTING}),
    State.PAUSED: frozenset({State.RUNNING, State.EXITED, State.RESTARTING}),
    State.RESTARTING: frozenset({State.RUNNING, State.EXITED, State.REMOVING}),
    State.REMOVING: frozenset({State.DEAD}),
    State.EXITED: frozenset({State.RUNNING, State.RESTARTING, State.REMOVING}),
    State.DEAD: frozenset({State.REMOVING}),
}

if set(TRANSITIONS) != set(State):
    raise AssertionError("every state needs its row in TRANSITIONS")


def check_transition(container: Container, to: State) -> None:
    """Raise WrongState when the table has no way from the container's state to the other."""
    if to not in TRANSITIONS[container.state]:
        raise WrongState(
            f"container {short(container.id)} is {container.state.value} and cannot become {to.value}"
        )


IDMAP = "idmap"  # in the mode of a bind mount


@dataclass(frozen=True, slots=True, kw_only=True)
class MountPoint:
    """One mount of a container as inspect shows it. ``mode`` is what the user wrote (ro, z, …)."""

    type: str  # bind, volume, tmpfs, image
    destination: str
    source: str = ""
    name: str = ""
    driver: str = ""
    mode: str = ""
    rw: bool = True
    propagation: str = ""
    subpath: str = ""
    options: tuple[str, ...] = ()  # mount options of a tmpfs or a bind; nocopy of a volume
    layers: tuple[Digest, ...] = ()  # of an image, whose id is in ``source``

    @property
    def is_idmapped(self) -> bool:
        """Whether the ids on disk are those of the container, if it has ids of its own."""
        return self.type == "volume" or IDMAP in self.mode.split(",")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A peer on the default bridge that a container finds by an alias (``links``)."""

    peer: ContainerId
    alias: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthResult:
    """One run of a health check. Times are Unix nanoseconds; ``exit_code`` -1: it did not end, or begin."""

    start_ns: int
    end_ns: int
    exit_code: int
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What the health checks of a container say. ``status`` is starting, healthy or unhealthy."""

    status: str = "starting"
    failing_streak: int = 0
    results: tuple[HealthResult, ...] = ()  # the last five, oldest first


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """All that proa knows of one container.

    :ivar name: without the leading slash that the API writes.
    :ivar config: the user's configuration merged with the image's.
    :ivar path: the program that runs, and ``args`` its arguments.
    :ivar runtime: the name of the driver (crun, runc, vm).
    :ivar launching: a start is under way; seen at start-up it means that the daemon died in the middle.
    :ivar ending: the end is recorded, but not all that the task had is taken down yet; seen at start-up too.
    :ivar passing_pause: the engine paused it itself, for a while; seen at start-up while it is paused, it
        means that the daemon died meanwhile.
    :ivar for_build: runs a step of a build, and goes with it; seen at start-up it is removed.
    :ivar forking: it is being made as the running copy of another; seen at start-up it is removed.
    :ivar stopped_by_user: the last end was asked for, so restart policies leave it alone.
    :ivar short_runs: how many runs in a row ended soon after a restart: what the next delay grows with.
    :ivar health: None without a health check.
    :ivar ids: what its ids are on the host; its own until it is removed. None: what they are inside.
    :ivar endpoints: where it is attached while it runs; ``ports`` what is published then.
    :ivar links: its peers on the default bridge; those on other networks are in ``networking``.
    """

    id: ContainerId
    name: str
    created_at_ns: int
    image_id: Digest
    image_ref: str
    layers: tuple[Digest, ...]
    config: ContainerConfig
    host_config: HostConfig
    networking: dict[str, EndpointSettings]
    path: str
    args: tuple[str, ...]
    runtime: str
    platform: str = "linux"
    mounts: tuple[MountPoint, ...] = ()
    state: State = State.CREATED
    pid: int = 0
    exit_code: int = 0
    oom_killed: bool = False
    error: str = ""
    started_at_ns: int = 0
    finished_at_ns: int = 0
    restart_count: int = 0
    short_runs: int = 0
    health: Health | None = None
    launching: bool = False
    ending: bool = False
    passing_pause: bool = False
    for_build: bool = False
    forking: bool = False
    stopped_by_user: bool = False
    ids: IdMap | None = None
    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[PublishedPort, ...] = ()
    log_path: str = ""
    links: tuple[Link, ...] = ()

    @property
    def is_alive(self) -> bool:
        """Whether a task exists."""
        return self.state in ALIVE

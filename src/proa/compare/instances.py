# SPDX-License-Identifier: Apache-2.0
"""One instance of either hull for the length of a measurement: made, attached, started, waited for, removed.

Leaves nothing behind: removal is on the way out of every path. The times are those a client of the API sees.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from proa.client.client import Client, Hijacked
from proa.client.errors import ApiError, ClientError
from proa.compare.hulls import Hull
from proa.model.config import HealthConfig, HostConfig
from proa.wire import routes
from proa.wire.containers import (
    ContainerCreated,
    ContainerCreateRequest,
    ContainerInspect,
    ContainerWaited,
)
from proa.wire.stdio import STDERR

T = TypeVar("T")

LABEL = "proa.compare"
STDERR_KEPT = 2000  # bytes of what a failing command said


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to run. ``entrypoint`` None keeps the image's own; ``user`` "" likewise.

    :ivar binds: as ``docker run -v`` writes them.
    """

    image: str
    hull: Hull
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    user: str = ""
    binds: tuple[str, ...] = ()
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run went. Times are seconds since the create request was sent."""

    first_output_s: float | None
    ended_s: float
    exit_code: int
    stdout: bytes
    stderr: bytes


class RunFailed(ClientError):
    """The instance ran, but its program failed."""


@contextmanager
def created(client: Client, order: Order) -> Iterator[str]:
    """Make a container and remove it, and its anonymous volumes, at the end. Gives its id."""
    request = ContainerCreateRequest(
        image=order.image,
        cmd=list(order.command),
        entrypoint=None if order.entrypoint is None else list(order.entrypoint),
        user=order.user,
        attach_stdout=True,
        attach_stderr=True,
        labels={LABEL: "1"},
        healthcheck=HealthConfig(test=["NONE"]),
        host_config=HostConfig(
            isolation=order.hull.isolation,
            binds=list(order.binds),
            annotations=dict(order.annotations) or None,
        ),
    )
    made = client.call(routes.CONTAINER_CREATE, body=request, returns=ContainerCreated)
    try:
        yield made.id
    finally:
        with suppress(ApiError):
            client.do(routes.CONTAINER_DELETE, id=made.id, query={"force": True, "v": True})


@contextmanager
def attached(client: Client, container: str) -> Iterator[Hijacked]:
    """Listen to a container's output."""
    query = {"stream": True, "stdout": True, "stderr": True}
    stream = client.hijack(routes.CONTAINER_ATTACH, id=container, query=query, tty=False)
    try:
        yield stream
    finally:
        stream.close()


def run(client: Client, order: Order) -> Outcome:
    """Run to the end. Raises RunFailed when the program fails, ClientError when the daemon does."""
    began = time.monotonic()
    with created(client, order) as container:
        first: float | None = None
        stdout, stderr = bytearray(), bytearray()
        with attached(client, container) as stream:
            client.do(routes.CONTAINER_START, id=container)
            for source, data in stream.iter_output():
                if first is None:
                    first = time.monotonic() - began
                (stderr if source == STDERR else stdout).extend(data)
        waited = client.call(routes.CONTAINER_WAIT, id=container, returns=ContainerWaited)
        ended = time.monotonic() - began
    if waited.status_code:
        said = bytes(stderr[-STDERR_KEPT:] or stdout[-STDERR_KEPT:]).decode("utf-8", "replace").strip()
        raise RunFailed(f"exit status {waited.status_code}{': ' if said else ''}{said}")
    return Outcome(
        first_output_s=first,
        ended_s=ended,
        exit_code=waited.status_code,
        stdout=bytes(stdout),
        stderr=bytes(stderr),
    )


@contextmanager
def idling(client: Client, order: Order) -> Iterator[ContainerInspect]:
    """Keep an instance running, once it has printed something. Gives its description."""
    with created(client, order) as container:
        with attached(client, container) as stream:
            client.do(routes.CONTAINER_START, id=container)
            if next(stream.iter_output(), None) is None:
                raise RunFailed("the instance ended instead of waiting")
        yield client.call(
            routes.CONTAINER_INSPECT, id=container, returns=ContainerInspect, query={"size": True}
        )


def interleave(places: Sequence[T], round_number: int) -> Sequence[T]:
    """Return the places in this round's order: each goes first equally often, so that none warms the host
    for another."""
    shift = round_number % len(places)
    return [*places[shift:], *places[:shift]]

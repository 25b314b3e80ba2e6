# SPDX-License-Identifier: Apache-2.0
"""What happened, told to whoever listens. Source: Engine API, SystemEvents.

The bus keeps the last events for ``since``; a subscriber has a queue of its own for the span of a ``with``.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

KEPT_EVENTS = 256  # what dockerd keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event. ``type`` is container, image, volume, network or daemon."""

    type: str
    action: str
    actor_id: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    time_ns: int = 0
    scope: str = "local"


class EventBus:
    """Publishes in the order of the calls; never waits for a subscriber."""

    def __init__(self) -> None:
        self._kept: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._queues: set[MemoryObjectSendStream[Event]] = set()

    def publish(
        self, type_: str, action: str, actor_id: str, attributes: Mapping[str, str] | None = None
    ) -> None:
        """Tell every subscriber, now."""
        event = Event(
            type=type_, action=action, actor_id=actor_id, attributes=attributes or {}, time_ns=time.time_ns()
        )
        self._kept.append(event)
        for queue in self._queues:
            queue.send_nowait(event)

    @property
    def subscribers(self) -> int:
        """How many listen."""
        return len(self._queues)

    def recent(self) -> list[Event]:
        """Return the events still kept, oldest first."""
        return list(self._kept)

    @contextmanager
    def subscribe(self) -> Iterator[MemoryObjectReceiveStream[Event]]:
        """Receive every event from now on.

        The queue is unbounded because publishing must never wait for a client; it lives only as long as the
        client's connection, whose end is noticed at once.
        """
        sender, receiver = anyio.create_memory_object_stream[Event](math.inf)
        self._queues.add(sender)
        try:
            with receiver:
                yield receiver
        finally:
            self._queues.discard(sender)
            sender.close()

# SPDX-License-Identifier: Apache-2.0
"""What a pull or push tells while it works: messages as the Engine API's progress streams have them.

Source: Engine API, ImageCreate and ImagePush; Docker Engine, the order and the words of its messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import anyio

INTERVAL_S = 0.1  # between two amounts of one layer; more than a terminal can show

OnProgress = Callable[[Mapping[str, object]], None]


class Reporter:
    """Tells of one operation. Amounts of a layer are told ten times a second at most."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._told_at: dict[str, float] = {}

    def say(self, status: str, id: str = "") -> None:
        """A line of its own."""
        self._on_progress({"id": id, "status": status} if id else {"status": status})

    def layer(self, id: str, status: str) -> None:
        """A layer enters a new state."""
        self._told_at.pop(id, None)
        self._on_progress({"status": status, "progressDetail": {}, "id": id})

    def amount(self, id: str, status: str, current: int, total: int) -> None:
        """A layer has come so far, in bytes."""
        now = anyio.current_time()
        if current < total and now - self._told_at.get(id, -1) < INTERVAL_S:
            return
        self._told_at[id] = now
        self._on_progress(
            {"status": status, "progressDetail": {"current": current, "total": total}, "id": id}
        )

    def aux(self, record: Mapping[str, object]) -> None:
        """A record for programs."""
        self._on_progress({"progressDetail": {}, "aux": record})

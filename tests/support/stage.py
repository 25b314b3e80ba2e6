# SPDX-License-Identifier: Apache-2.0
"""What the fakes below the engine have in common: they tell each step before they take it.

A test reads the order of the steps, makes one fail, holds one until it says go, or lets the daemon die
in front of one: then that step and all later ones of this daemon raise ``Killed`` and have no effect, as
with SIGKILL.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel


class Killed(BaseException):
    """The daemon is dead. Not an Exception: nobody in the daemon may handle it."""


@dataclass(slots=True, eq=False)
class Gate:
    """A step that waits. ``reached`` is set when somebody stands before it."""

    reached: anyio.Event = field(default_factory=anyio.Event)
    _opened: anyio.Event = field(default_factory=anyio.Event)

    def open(self) -> None:
        self._opened.set()

    async def pass_(self) -> None:
        self.reached.set()
        await self._opened.wait()


class Stage:
    """The steps of one daemon's fakes, in order. It does not live to take step number ``kill_at``."""

    def __init__(self, *, kill_at: int | None = None) -> None:
        self.steps: list[str] = []
        self.dead = False
        self._kill_at = kill_at
        self._failures: defaultdict[str, deque[Exception]] = defaultdict(deque)
        self._gates: dict[str, Gate] = {}

    def fail(self, step: str, *errors: Exception) -> None:
        """Let the next takings of a step raise these errors, in order."""
        self._failures[step].extend(errors)

    def hold(self, step: str) -> Gate:
        """Let the next taking of a step wait until the gate is opened."""
        self._gates[step] = Gate()
        return self._gates[step]

    async def act(self, step: str) -> None:
        """Take a step that may wait."""
        gate = self._gates.pop(step, None)
        self.act_now(step)
        await (gate.pass_() if gate else anyio.lowlevel.checkpoint())
        if self.dead:
            raise Killed

    def act_now(self, step: str) -> None:
        """Take a step that cannot wait."""
        if len(self.steps) == self._kill_at:
            self.dead = True
        if self.dead:
            raise Killed
        self.steps.append(step)
        if self._failures[step]:
            raise self._failures[step].popleft()

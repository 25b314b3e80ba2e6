# SPDX-License-Identifier: Apache-2.0
"""What a comparison consists of: cells in rows, rows in a report. Pure values.

A cell holds a measured figure, a fact in words, or the reason why there is neither. Nothing is left blank.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from proa.compare.statistics import Spread, summarize


class Better(enum.Enum):
    """Which way a figure improves."""

    LOWER = "lower"
    HIGHER = "higher"
    NEITHER = "neither"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A figure with its spread and how it was got.

    :ivar relative: the median divided by the host's, measured in the same run; None where there is none.
    """

    spread: Spread
    unit: str
    method: str
    relative: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something found that is not a number."""

    text: str
    method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Not measured, and why."""

    reason: str


Cell = Measured | Fact | Missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. ``host`` is None where the bare host has nothing to compare."""

    topic: str
    name: str
    container: Cell
    vm: Cell
    host: Cell | None = None
    better: Better = Better.NEITHER


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Which hull to take, and why; ``otherwise`` says when the other one is right."""

    hull: str
    reasons: tuple[str, ...]
    otherwise: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A finished comparison. ``conditions`` are the circumstances that the figures depend on."""

    image: str
    command: tuple[str, ...]
    rounds: int
    date: str  # RFC 3339
    seconds: float
    conditions: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    advice: Advice

    def find(self, topic: str, name: str) -> Row | None:
        """Return the row of that name."""
        return find_row(self.rows, topic, name)


def find_row(rows: Sequence[Row], topic: str, name: str) -> Row | None:
    """Return the row of that name, None when it was not made."""
    return next((row for row in rows if row.topic == topic and row.name == name), None)


def measured(
    values: Sequence[float], unit: str, method: str, *, reason: str = "", base: Cell | None = None
) -> Cell:
    """Make a cell of a sample; Missing with the reason when the sample is empty."""
    if not values:
        return Missing(reason=reason or "no run gave a value")
    spread = summarize(values)
    relative = None
    if isinstance(base, Measured) and base.spread.median:
        relative = spread.median / base.spread.median
    return Measured(spread=spread, unit=unit, method=method, relative=relative)

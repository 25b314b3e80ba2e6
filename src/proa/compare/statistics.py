# SPDX-License-Identifier: Apache-2.0
"""Medians and spreads of small samples. Pure.

Medians and quartiles, because a run that was disturbed (and on a busy host one always is) then moves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """What a sample looks like. ``low`` and ``high`` are the extremes, ``q1`` and ``q3`` the quartiles."""

    count: int
    median: float
    low: float
    high: float
    q1: float
    q3: float


def summarize(values: Sequence[float]) -> Spread:
    """Describe a sample. Raises ValueError when it is empty."""
    if not values:
        raise ValueError("no values to summarize")
    ordered = sorted(values)
    return Spread(
        count=len(ordered),
        median=quantile(ordered, 0.5),
        low=ordered[0],
        high=ordered[-1],
        q1=quantile(ordered, 0.25),
        q3=quantile(ordered, 0.75),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which ``share`` of an ordered sample lies, between neighbours by proportion.

    Source: Hyndman and Fan (1996), definition 7.
    """
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def overlap(one: Spread, other: Spread) -> bool:
    """Tell whether the middle halves meet: then the difference of the medians says little."""
    return one.q1 <= other.q3 and other.q1 <= one.q3

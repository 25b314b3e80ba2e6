# SPDX-License-Identifier: Apache-2.0
"""Medians and spreads."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.compare.statistics import overlap, quantile, summarize


def test_a_sample_is_summed_up() -> None:
    spread = summarize([4.0, 1.0, 3.0, 2.0, 10.0])
    assert (spread.count, spread.median, spread.low, spread.high) == (5, 3.0, 1.0, 10.0)
    assert (spread.q1, spread.q3) == (2.0, 4.0)


def test_one_value_has_no_spread() -> None:
    spread = summarize([7.5])
    assert {spread.median, spread.low, spread.high, spread.q1, spread.q3} == {7.5}


def test_nothing_cannot_be_summed_up() -> None:
    with pytest.raises(ValueError, match="no values"):
        summarize([])


@given(st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=30))
def test_quartiles_are_those_of_the_standard_library(values: list[float]) -> None:
    spread = summarize(values)
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    assert spread.median == pytest.approx(median, abs=1e-5)
    assert [spread.q1, spread.q3] == pytest.approx([q1, q3], abs=1e-5)
    assert spread.low <= spread.q1 <= spread.median <= spread.q3 <= spread.high


def test_quantile_lies_between_neighbours() -> None:
    assert quantile([0.0, 10.0], 0.25) == 2.5


def test_overlap_is_of_the_middle_halves() -> None:
    low, high, wide = summarize([1, 2, 3]), summarize([10, 11, 12]), summarize([1, 2, 6, 11, 12])
    assert not overlap(low, high)
    assert overlap(low, wide) and overlap(wide, high)

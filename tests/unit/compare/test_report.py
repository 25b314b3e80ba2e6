# SPDX-License-Identifier: Apache-2.0
"""A report as a table and as JSON."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from proa.compare.document import to_json
from proa.compare.figures import Advice, Better, Fact, Missing, Report, Row, measured
from proa.compare.render import Footnotes, cell_text, number, show, times

HOST = measured([100.0, 110.0, 90.0], "MB/s", "16 MiB")
REPORT = Report(
    image="busybox [odd]",
    command=("true",),
    rounds=3,
    date="2026-11-23T22:00:00+00:00",
    seconds=12.3,
    conditions=(("host", "2 CPUs"),),
    rows=(
        Row(
            topic="performance",
            name="disk write",
            host=HOST,
            container=measured([95.0, 105.0], "MB/s", "16 MiB", base=HOST),
            vm=Missing(reason="it broke\nbadly"),
            better=Better.HIGHER,
        ),
        Row(
            topic="isolation",
            name="kernel",
            container=Fact(text="the host's, 6.18", method="uname"),
            vm=Fact(text="its own, 6.1", method="uname"),
        ),
    ),
    advice=Advice(hull="container", reasons=("it is quick",), otherwise=("take the VM [else]",)),
)


def test_json_has_every_figure_with_unit_spread_and_method() -> None:
    document = json.loads(to_json(REPORT))
    row = document["rows"][0]
    assert row["container"] == {
        "count": 2,
        "median": 100.0,
        "low": 95.0,
        "high": 105.0,
        "q1": 97.5,
        "q3": 102.5,
        "unit": "MB/s",
        "method": "16 MiB",
        "relative_to_host": 1.0,
    }
    assert row["vm"] == {"missing": "it broke\nbadly"}
    assert document["rows"][1]["host"] is None
    assert document["recommendation"]["hull"] == "container"


@pytest.mark.parametrize("width", [60, 110, 200])
def test_the_table_says_all_of_it(width: int) -> None:
    output = io.StringIO()
    show(REPORT, Console(file=output, width=width))
    text = " ".join(output.getvalue().split())
    for part in (
        "busybox [odd] in both hulls, 3 rounds",
        "performance, disk write",
        "(1) not measured: it broke badly",
        "isolation, kernel: uname",
        "Recommendation: container",
        "because it is quick",
        "but take the VM [else]",
    ):
        assert part in text, part


def test_cells_are_short() -> None:
    notes = Footnotes()
    assert cell_text(HOST, notes) == "100 MB/s (90 to 110)"
    twice = measured([20.0], "ns", "m", base=measured([10.0], "ns", "m"))
    assert cell_text(twice, notes) == "20 ns, 2 times host"


def test_each_reason_is_given_once() -> None:
    notes = Footnotes()
    cells = [Missing(reason=reason) for reason in ("no KVM", "no disk\n", "no KVM", "")]
    assert [cell_text(cell, notes) for cell in cells] == ["— (1)", "— (2)", "— (1)", "— (3)"]
    assert notes.reasons == ["no KVM", "no disk", "no reason known"]


def test_numbers_keep_three_digits() -> None:
    assert [number(value) for value in (12345.6, 123.4, 12.34, 1.234, 5.0)] == [
        "12,346",
        "123",
        "12.3",
        "1.23",
        "5",
    ]
    assert [times(value) for value in (0.05, 0.5, 1.5, 12.0)] == ["5.0% of", "50% of", "150% of", "12 times"]


def test_rows_are_found_by_name() -> None:
    assert REPORT.find("isolation", "kernel") is REPORT.rows[1]
    assert REPORT.find("isolation", "none") is None

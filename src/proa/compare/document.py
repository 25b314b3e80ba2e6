# SPDX-License-Identifier: Apache-2.0
"""A report as JSON, for machines.

{"image": …, "command": […], "rounds": 10, "date": …, "seconds": …, "conditions": {…},
 "rows": [{"topic": …, "name": …, "better": "lower",
           "host": CELL | null, "container": CELL, "vm": CELL}],
 "recommendation": {"hull": "container", "reasons": […], "otherwise": […]}}

CELL: {"median": …, "low": …, "high": …, "q1": …, "q3": …, "count": …, "unit": …, "method": …,
       "relative_to_host": … | null}  |  {"text": …, "method": …}  |  {"missing": reason}
"""

from __future__ import annotations

import dataclasses

import msgspec

from proa.compare.figures import Cell, Fact, Measured, Report, Row


def to_json(report: Report) -> bytes:
    """Return the document, indented."""
    document = {
        "image": report.image,
        "command": list(report.command),
        "rounds": report.rounds,
        "date": report.date,
        "seconds": round(report.seconds, 1),
        "conditions": dict(report.conditions),
        "rows": [_row(row) for row in report.rows],
        "recommendation": {
            "hull": report.advice.hull,
            "reasons": list(report.advice.reasons),
            "otherwise": list(report.advice.otherwise),
        },
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2)


def _row(row: Row) -> dict[str, object]:
    return {
        "topic": row.topic,
        "name": row.name,
        "better": row.better.value,
        "host": None if row.host is None else _cell(row.host),
        "container": _cell(row.container),
        "vm": _cell(row.vm),
    }


def _cell(cell: Cell) -> dict[str, object]:
    if isinstance(cell, Measured):
        return {
            **dataclasses.asdict(cell.spread),
            "unit": cell.unit,
            "method": cell.method,
            "relative_to_host": cell.relative,
        }
    if isinstance(cell, Fact):
        return {"text": cell.text, "method": cell.method}
    return {"missing": cell.reason}

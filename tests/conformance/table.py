# SPDX-License-Identifier: Apache-2.0
"""Puts the results of the client tests into the README: ``python -m tests.conformance.table``.

The tests leave their results in a file (conftest.py); this makes a table of it, failures included, between
two marks of the README.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.conformance.conftest import RECORD

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- clients:begin -->", "<!-- clients:end -->"

Results = Sequence[Mapping[str, str]]


def render(results: Results) -> str:
    """Return the table: a client a line, with what works and what fails, and why."""
    lines = ["| client | tests | works | does not work |", "|---|---|---|---|"]
    for client in sorted({one["client"] for one in results}, key=str.lower):
        own = [one for one in results if one["client"] == client]
        works = [one["entry"] for one in own if one["result"] == "works"]
        fails = [_failure(one) for one in own if one["result"] == "fails"]
        lines.append(f"| {client} | {len(works)} of {len(own)} | {'; '.join(works)} | {'; '.join(fails)} |")
    return "\n".join(lines)


def replace(text: str, table: str) -> str:
    """Return the README with the table between the marks. Raises ValueError when they are not there."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _failure(one: Mapping[str, str]) -> str:
    return f"{one['entry']} ({one['reason']})" if one["reason"] else f"**{one['entry']}**"


if __name__ == "__main__":
    if not RECORD.exists():
        sys.exit("there are no results: run the tests of tests/conformance first (make conformance)")
    README.write_text(replace(README.read_text(), render(json.loads(RECORD.read_text()))))

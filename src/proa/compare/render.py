# SPDX-License-Identifier: Apache-2.0
"""A report as a table for people: figures with unit and spread, then how each was got, then the advice."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from proa.compare.figures import Cell, Fact, Missing, Report, Row

FULL_WIDTH = 110  # narrower terminals still get a readable table; wider ones are not filled
REASON_LENGTH = 60  # of why a figure is missing; the whole of it stands in the notes


def show(report: Report, console: Console) -> None:
    """Print a report."""
    table = Table(
        title=f"{escape(report.image)} in both hulls, {report.rounds} rounds",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        width=min(console.width, FULL_WIDTH),
        pad_edge=False,
    )
    table.add_column("", ratio=3)
    for title in ("container", "vm", "bare host"):
        table.add_column(title, ratio=4)
    topic = ""
    for row in report.rows:
        if row.topic != topic:
            topic = row.topic
            table.add_row(f"[bold]{escape(topic)}[/]")
        table.add_row(
            f"  {escape(row.name)}",
            *(escape(text) for text in (cell_text(row.container), cell_text(row.vm))),
            escape("" if row.host is None else cell_text(row.host)),
        )
    console.print(table)
    _show_notes(report.rows, console)
    _show_advice(report, console)


def cell_text(cell: Cell) -> str:
    """Return a cell in a few words: median, unit, extremes, and the share of the host."""
    if isinstance(cell, Fact):
        return cell.text
    if isinstance(cell, Missing):
        reason = cell.reason.strip().splitlines()[0] if cell.reason.strip() else "no reason known"
        return f"— {reason if len(reason) <= REASON_LENGTH else reason[: REASON_LENGTH - 1] + '…'}"
    spread = cell.spread
    text = f"{number(spread.median)} {cell.unit}"
    if spread.count > 1:
        text += f" ({number(spread.low)} to {number(spread.high)})"
    if cell.relative is not None:
        text += f", {times(cell.relative)} host"
    return text


def number(value: float) -> str:
    """Return a number with three digits that count."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def times(ratio: float) -> str:
    """Return a ratio to the host as people say it: a share below 2, a multiple above."""
    if ratio < 0.1:
        return f"{ratio:.1%} of"
    return f"{ratio:.0%} of" if ratio < 2 else f"{number(ratio)} times"


def _show_notes(rows: Sequence[Row], console: Console) -> None:
    """Print how each figure was got, and in full why one is missing."""
    console.print("How it was measured; figures are median (lowest to highest)", style="bold")
    for row in rows:
        parts: list[str] = []
        for title, cell in (("container", row.container), ("vm", row.vm), ("host", row.host)):
            if cell is None:
                continue
            text = f"not measured: {cell.reason}" if isinstance(cell, Missing) else cell.method
            same = next((i for i, part in enumerate(parts) if part.split(": ", 1)[1] == text), None)
            if same is None:
                parts.append(f"{title}: {text}")
            else:
                titles, rest = parts[same].split(": ", 1)
                parts[same] = f"{titles}, {title}: {rest}"
        if len(parts) == 1:
            parts = [parts[0].split(": ", 1)[1]]
        console.print(
            f"  {row.topic}, {row.name}: " + "; ".join(parts), style="dim", markup=False, highlight=False
        )


def _show_advice(report: Report, console: Console) -> None:
    console.print()
    for name, value in report.conditions:
        console.print(f"{name}: {value}", markup=False, highlight=False)
    console.print(f"measured {report.date} in {report.seconds:.0f} s", markup=False, highlight=False)
    console.print()
    console.print(f"Recommendation: {report.advice.hull}", style="bold", markup=False)
    for reason in report.advice.reasons:
        console.print(f"  because {reason}", markup=False, highlight=False)
    for reason in report.advice.otherwise:
        console.print(f"  but {reason}", markup=False, highlight=False)

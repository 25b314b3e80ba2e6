# SPDX-License-Identifier: Apache-2.0
"""A report as a table for people, then why figures are missing, how each was got, and the advice."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from proa.compare.figures import Cell, Fact, Missing, Report, Row

FULL_WIDTH = 120  # narrower terminals still get a readable table; wider ones are not filled


class Footnotes:
    """Numbers the reasons for missing figures, each once: one cause often empties a whole column."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def mark(self, reason: str) -> str:
        """Return the mark of a reason."""
        reason = " ".join(reason.split()) or "no reason known"
        if reason not in self.reasons:
            self.reasons.append(reason)
        return f"({self.reasons.index(reason) + 1})"


def show(report: Report, console: Console) -> None:
    """Print a report."""
    footnotes = Footnotes()
    console.print(_table(report, footnotes, min(console.width, FULL_WIDTH)))
    for number_of, reason in enumerate(footnotes.reasons, start=1):
        _say(console, f"({number_of}) not measured: {reason}")
    console.print()
    _say(console, "How it was measured; figures are median (lowest to highest)", style="bold")
    for row in report.rows:
        if methods := _methods(row):
            _say(console, f"  {row.topic}, {row.name}: {methods}", style="dim")
    console.print()
    for name, value in report.conditions:
        _say(console, f"{name}: {value}")
    _say(console, f"measured {report.date} in {report.seconds:.0f} s")
    console.print()
    _say(console, f"Recommendation: {report.advice.hull}", style="bold")
    for reason in report.advice.reasons:
        _say(console, f"  because {reason}")
    for reason in report.advice.otherwise:
        _say(console, f"  but {reason}")


def cell_text(cell: Cell, footnotes: Footnotes) -> str:
    """Return a cell in a few words: median, unit, extremes, and the share of the host."""
    if isinstance(cell, Fact):
        return cell.text
    if isinstance(cell, Missing):
        return f"— {footnotes.mark(cell.reason)}"
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


def _table(report: Report, footnotes: Footnotes, width: int) -> Table:
    table = Table(
        title=escape(f"{report.image} in both hulls, {report.rounds} rounds"),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        width=width,
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
        cells = (row.container, row.vm, row.host)
        texts = ["" if cell is None else cell_text(cell, footnotes) for cell in cells]
        table.add_row(f"  {escape(row.name)}", *map(escape, texts))
    return table


def _methods(row: Row) -> str:
    """Return how the row's figures were got, each method once with those that share it."""
    shared: dict[str, list[str]] = {}
    places: Sequence[tuple[str, Cell | None]] = (
        ("container", row.container),
        ("vm", row.vm),
        ("host", row.host),
    )
    for title, cell in places:
        if cell is not None and not isinstance(cell, Missing):
            shared.setdefault(cell.method, []).append(title)
    if len(shared) == 1:
        return next(iter(shared))
    return "; ".join(f"{', '.join(titles)}: {method}" for method, titles in shared.items())


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False)

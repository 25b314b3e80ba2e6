# SPDX-License-Identifier: Apache-2.0
"""The progress of a pull or push: a bar for each layer on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import click

from proa.client.errors import ApiError
from proa.wire.errors import Progress


def show_transfer(lines: Iterable[Progress], *, quiet: bool, err: bool) -> None:
    """Show the messages of a stream to its end (``err``: on standard error).

    Raises ApiError when the stream ends with an error.
    """
    if not quiet and (sys.stderr if err else sys.stdout).isatty():
        _show_bars(lines, err=err)
        return
    for line in lines:
        _check(line)
        if not quiet and line.status and not line.progress_detail:
            click.echo(_text(line), err=err)


def _show_bars(lines: Iterable[Progress], *, err: bool) -> None:
    # Imported here because rich costs more to import than most commands take in all.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=Console(stderr=err)) as bars:
        for line in lines:
            _check(line)
            if line.progress_detail is None:
                if line.status:
                    bars.console.print(_text(line), markup=False, highlight=False, soft_wrap=True)
                continue
            if line.id and line.status:
                if line.id not in tasks:
                    tasks[line.id] = bars.add_task(line.id, total=None)
                amounts = line.progress_detail
                bars.update(
                    tasks[line.id],
                    description=f"{line.id}: {line.status:<20}",
                    completed=amounts.get("current"),
                    total=amounts.get("total"),
                )


def _text(line: Progress) -> str:
    return f"{line.id}: {line.status}" if line.id else line.status


def _check(line: Progress) -> None:
    if line.error:
        raise ApiError(500, line.error)

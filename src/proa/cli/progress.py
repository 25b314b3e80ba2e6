# SPDX-License-Identifier: Apache-2.0
"""Progress of long work: a bar on standard error when it is a terminal, nothing otherwise."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def bar(title: str, size: int | None, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Show how many bytes of ``size`` have passed (None: unknown); yields a function that adds some."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    # Imported here because rich costs more to import than most commands take in all.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=size)
        yield lambda amount: progress.advance(task, amount)

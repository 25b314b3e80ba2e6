# SPDX-License-Identifier: Apache-2.0
"""``proa compare``: measure both hulls with one image."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import click

from proa.cli.context import get_client

MAX_ROUNDS = 1000


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "-n",
    "--runs",
    "rounds",
    type=click.IntRange(1, MAX_ROUNDS),
    default=10,
    show_default=True,
    help="Runs of each hull",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.01, 60),
    default=0.05,
    show_default=True,
    help="Length of each measure in a run",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines")
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def compare(
    ctx: click.Context, rounds: int, seconds: float, as_json: bool, image: str, command: tuple[str, ...]
) -> None:
    """Measure IMAGE as a container and as a VM, and recommend one.

    With a COMMAND (after --) its time from request to exit is compared as well.
    """
    # Here and not above: the comparison's modules and rich take longer to import than most commands run.
    from proa.compare.comparison import Options, run
    from proa.compare.document import to_json

    if command[:1] == ("--",):
        command = command[1:]
    options = Options(rounds=rounds, seconds=seconds)
    with _steps() as progress:
        report = run(get_client(ctx), image, command, options, progress)
    if as_json:
        click.echo(to_json(report))
        return
    from rich.console import Console

    from proa.compare.render import FULL_WIDTH, show

    show(report, Console(file=sys.stdout, width=None if sys.stdout.isatty() else FULL_WIDTH))


@contextlib.contextmanager
def _steps() -> Iterator[Callable[[int, int, str], None]]:
    """Show which step is under way, on standard error when it is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total, what: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("comparing"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total, what: progress.update(task, completed=done, total=total, description=what)

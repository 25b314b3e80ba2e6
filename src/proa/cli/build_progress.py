# SPDX-License-Identifier: Apache-2.0
"""Shows a build as it goes: numbered steps with their times.

On a terminal the step that runs shows the last lines of its output, which collapse when it is done; elsewhere
every line is printed as it comes, with the number of its step.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from proa.wire.builds import BuildLine

if TYPE_CHECKING:
    from rich.text import Text

LINES_SHOWN = 6  # of the running step's output
LINES_KEPT = 200  # shown of a step that failed
_CACHED = " ---> Using cache"
_NOISE = (" ---> ", "Removing intermediate container", "Successfully built", "Successfully tagged")


class BuildFailed(Exception):
    """The build ended with an error. ``code`` is that of a command that failed, else 0."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Step:
    """One step of the build, or the pull that comes before one."""

    number: str
    title: str
    begun: float
    seconds: float | None = None
    is_cached: bool = False
    output: deque[str] = field(default_factory=lambda: deque(maxlen=LINES_KEPT))


class Progress:
    """Reads the stream's messages into steps; subclasses show them."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.image_id = ""
        self.names: list[str] = []
        self._rest = ""

    def feed(self, line: BuildLine) -> None:
        """Take a message. Raises BuildFailed for the last one of a build that failed."""
        if line.error:
            self._end_line()
            self._finish_step()
            code = line.error_detail.code if line.error_detail is not None else 0
            raise BuildFailed(line.error, code)
        if line.aux is not None and line.aux.id:
            self.image_id = line.aux.id
        if line.status and not line.progress_detail:
            self._take_line(f"{line.id}: {line.status}" if line.id else line.status)
        if line.stream:
            *lines, self._rest = (self._rest + line.stream).split("\n")
            for text in lines:
                self._take_line(text)

    def end(self) -> None:
        """Say that the stream has ended well."""
        self._end_line()
        self._finish_step()

    def on_begin(self, step: Step) -> None: ...
    def on_output(self, step: Step, text: str) -> None: ...
    def on_end(self, step: Step) -> None: ...

    def _take_line(self, text: str) -> None:
        if text.startswith("Step ") and " : " in text:
            self._finish_step()
            number, _, title = text.removeprefix("Step ").partition(" : ")
            self.steps.append(Step(number, title, time.monotonic()))
            self.on_begin(self.steps[-1])
        elif text.startswith(_CACHED) and self.steps:
            self.steps[-1].is_cached = True
        elif text.startswith("Successfully tagged "):
            self._finish_step()
            self.names.append(text.removeprefix("Successfully tagged "))
        elif text.startswith(_NOISE) or not self.steps:
            return
        else:
            self.steps[-1].output.append(text)
            self.on_output(self.steps[-1], text)

    def _end_line(self) -> None:
        rest, self._rest = self._rest, ""
        if rest:
            self._take_line(rest)

    def _finish_step(self) -> None:
        if self.steps and self.steps[-1].seconds is None:
            step = self.steps[-1]
            step.seconds = time.monotonic() - step.begun
            self.on_end(step)


class PlainProgress(Progress):
    """A line for everything, on standard error."""

    def on_begin(self, step: Step) -> None:
        click.echo(f"#{len(self.steps)} [{step.number}] {step.title}", err=True)

    def on_output(self, step: Step, text: str) -> None:
        click.echo(f"#{len(self.steps)} {time.monotonic() - step.begun:.3f} {text}", err=True)

    def on_end(self, step: Step) -> None:
        how = "CACHED" if step.is_cached else f"DONE {step.seconds:.1f}s"
        click.echo(f"#{len(self.steps)} {how}\n", err=True)


class LiveProgress(Progress):
    """A picture that is drawn again and again. ``draw`` returns it."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = time.monotonic()

    def draw(self) -> Text:
        from rich.text import Text

        total = self.steps[-1].number.partition("/")[2] if self.steps else "?"
        done = sum(1 for step in self.steps if step.seconds is not None)
        picture = Text(f"[+] Building {time.monotonic() - self._begun:.1f}s ({done}/{total})\n", style="bold")
        for step in self.steps:
            seconds = step.seconds if step.seconds is not None else time.monotonic() - step.begun
            cached = "CACHED " if step.is_cached else ""
            style = "blue" if step.seconds is not None else ""
            title = step.title.replace("\n", " ")
            picture.append(f" => {cached}[{step.number}] {title[:90]:<60} {seconds:5.1f}s\n", style=style)
            if step.seconds is None:
                for text in list(step.output)[-LINES_SHOWN:]:
                    picture.append(f" => => # {text[:100]}\n", style="dim")
        return picture

    def __rich__(self) -> Text:
        return self.draw()


def show_build(lines: Iterable[BuildLine], *, quiet: bool, style: str, is_image: bool = True) -> str:
    """Show the messages of a build to its end; return the image's id. Raises BuildFailed.

    :param style: "auto", "plain", "tty" or "quiet".
    :param is_image: the id is what the user wants, on standard output.
    """
    if quiet or style == "quiet":
        progress = Progress()
        for line in lines:
            progress.feed(line)
        if is_image:
            click.echo(progress.image_id)
        return progress.image_id
    if style == "tty" or (style == "auto" and sys.stderr.isatty()):
        return _show_live(lines, is_image=is_image)
    plain = PlainProgress()
    for line in lines:
        plain.feed(line)
    plain.end()
    _conclude(plain, is_image=is_image)
    return plain.image_id


def _show_live(lines: Iterable[BuildLine], *, is_image: bool) -> str:
    # Imported here because rich costs more to import than most commands take in all.
    from rich.console import Console
    from rich.live import Live

    progress = LiveProgress()
    console = Console(stderr=True, force_terminal=True, highlight=False)
    with Live(progress, console=console, refresh_per_second=10, vertical_overflow="crop"):
        failure: BuildFailed | None = None
        try:
            for line in lines:
                progress.feed(line)
        except BuildFailed as error:
            failure = error
        else:
            progress.end()
    if failure is not None:
        if progress.steps:
            step = progress.steps[-1]
            click.echo(f"------\n > [{step.number}] {step.title}:", err=True)
            for text in step.output:
                click.echo(text, err=True)
            click.echo("------", err=True)
        raise failure
    _conclude(progress, is_image=is_image)
    return progress.image_id


def _conclude(progress: Progress, *, is_image: bool) -> None:
    for name in progress.names:
        click.echo(f" => naming to {name}", err=True)
    if is_image:
        click.echo(progress.image_id)

# SPDX-License-Identifier: Apache-2.0
"""A client that attends its build: it answers questions while steps run, and is shown each step as it goes.

Clients of BuildKit's API do; those of the classic API send all beforehand and read one stream of text.
Source: BuildKit, docs (secrets, ssh), and the names its Dockerfile front end gives to steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from proa.build.parser import Instruction, Stage
from proa.model.registry import Credentials

SHOWN = frozenset({"RUN", "COPY", "ADD", "WORKDIR"})  # beside FROM: what is a step of its own there


class Answers(Protocol):
    """What a build asks its client for. Each raises EngineError when the client cannot answer any more."""

    async def credentials(self, domain: str) -> Credentials:
        """Return who the user is at a registry."""
        ...

    async def secret(self, name: str) -> bytes | None:
        """Return a secret, None when the client has none of this name."""
        ...

    async def has_agent(self, name: str) -> bool:
        """Tell whether the client forwards an SSH agent of this name."""
        ...

    def serve_agent(self, name: str, path: Path) -> AbstractAsyncContextManager[None]:
        """Listen at a socket, and connect who comes there with the client's SSH agent."""
        ...


class StepWatcher(Protocol):
    """Is told of steps; a step's key is its stage and its number in it, counted from 1."""

    def begin(self, key: str, title: str, line: Instruction) -> None: ...
    def cached(self, key: str) -> None: ...
    def say(self, key: str, text: str) -> None: ...

    def pull(self, key: str, message: Mapping[str, object]) -> None:
        """Take a message of a pull's stream, as the Engine API has them."""
        ...

    def end(self, key: str, error: BaseException | None) -> None:
        """``error`` is None when it was done; a cancellation is one, too."""
        ...


class StageWatch:
    """Tells a watcher of one stage's steps, which follow each other. Without a watcher it does nothing.

    :param only: there is no other stage, so it needs no name.
    """

    def __init__(self, watcher: StepWatcher | None, stage: Stage, *, only: bool) -> None:
        self._watcher = watcher
        self._stage = stage
        self._name = stage.name or ("" if only else f"stage-{stage.index}")
        self._total = 1 + sum(instruction.name in SHOWN for instruction in stage.instructions)
        self._number = 0
        self._key = ""

    def expect(self, count: int) -> None:
        """Count the triggers of the base image in."""
        self._total += count

    @contextmanager
    def step(self, instruction: Instruction) -> Iterator[None]:
        """Show an instruction for the span of the block."""
        watcher = self._watcher
        if watcher is None or instruction.name not in (*SHOWN, "FROM"):
            yield
            return
        self._number += 1
        key = self._key = f"{self._stage.index}/{self._number}"
        where = f"{self._name} {self._number}/{self._total}".lstrip()
        watcher.begin(key, f"[{where}] {instruction.text}", instruction)
        try:
            yield
        except BaseException as error:
            watcher.end(key, error)
            raise
        watcher.end(key, None)

    def cached(self) -> None:
        """Say that the present step came from the cache."""
        if self._watcher is not None and self._key:
            self._watcher.cached(self._key)

    def say(self, text: str) -> None:
        """Show output of the present step."""
        if self._watcher is not None:
            self._watcher.say(self._key, text)

    def pull(self, message: Mapping[str, object]) -> None:
        """Show a pull's progress at the present step."""
        if self._watcher is not None:
            self._watcher.pull(self._key, message)

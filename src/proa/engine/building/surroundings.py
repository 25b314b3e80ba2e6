# SPDX-License-Identifier: Apache-2.0
"""What one stage of a build sees of the whole, and of the builder."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Protocol

from proa.build.cache import BuildCache
from proa.build.parser import Instruction, Stage
from proa.engine.building.context import Context
from proa.engine.building.copying import Download
from proa.engine.building.repositories import Repositories
from proa.engine.building.request import BuildRequest
from proa.engine.building.running import Runner
from proa.engine.building.state import StageState
from proa.engine.building.transcript import Voice
from proa.engine.building.trees import BuildTrees
from proa.image.images import Images
from proa.model.config import HostConfig
from proa.model.image import Image


class Surroundings(Protocol):
    """What a stage needs of its build."""

    @property
    def request(self) -> BuildRequest: ...
    @property
    def host(self) -> HostConfig: ...
    @property
    def context(self) -> Context: ...
    @property
    def escape(self) -> str: ...
    @property
    def cache_sources(self) -> Sequence[Image]: ...

    async def base(self, stage: Stage, voice: Voice) -> StageState:
        """Return the state a stage begins with."""
        ...

    async def origin(self, name: str, stage: Stage, voice: Voice) -> StageState | Context:
        """Return what ``--from=name`` means: a named context, a stage (by name or number), or an image."""
        ...

    async def download(self, instruction: Instruction, source: str, stack: AsyncExitStack) -> Download:
        """Fetch a source of ADD for as long as the stack lasts."""
        ...

    def next_step(self, stage: Stage) -> str:
        """Return "3/8"."""
        ...

    def do_behind(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do something before the build ends."""
        ...


class Tools(Protocol):
    """What is the same for all builds."""

    @property
    def images(self) -> Images: ...
    @property
    def cache(self) -> BuildCache: ...
    @property
    def trees(self) -> BuildTrees: ...
    @property
    def runner(self) -> Runner: ...
    @property
    def repositories(self) -> Repositories: ...

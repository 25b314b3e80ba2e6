# SPDX-License-Identifier: Apache-2.0
"""One build under way: its stages, those that do not depend on each other at the same time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import anyio
from anyio.abc import TaskGroup

from proa.build.cache import BuildCache, step_key
from proa.build.errors import DockerfileError
from proa.build.graph import expand_bases, find_stage, find_target, needed_stages
from proa.build.parser import Dockerfile, Instruction, Stage
from proa.build.scope import GlobalScope, StageScope
from proa.distribution.registries import Registries as RegistryClient
from proa.engine.building.attending import StageWatch
from proa.engine.building.bases import Bases
from proa.engine.building.context import Context
from proa.engine.building.copying import Download
from proa.engine.building.named import NamedContexts
from proa.engine.building.repositories import Repositories
from proa.engine.building.request import BuildRequest
from proa.engine.building.running import Runner
from proa.engine.building.stage import StageBuild
from proa.engine.building.state import StageState
from proa.engine.building.transcript import Transcript, Voice
from proa.engine.building.trees import BuildTrees
from proa.image.images import Images
from proa.image.platform import Platform, host_platform, parse_platform
from proa.image.shellwords import expand
from proa.image.store import Session
from proa.model.config import HostConfig
from proa.model.errors import InvalidParameter, NoSuchImage
from proa.model.image import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What is the same for all builds."""

    images: Images
    cache: BuildCache
    trees: BuildTrees
    runner: Runner
    bases: Bases
    client: RegistryClient
    repositories: Repositories


@dataclass(slots=True)
class _Promise:
    """A stage that is being built."""

    done: anyio.Event = field(default_factory=anyio.Event)
    state: StageState | None = None


class Build:
    """Builds the target of one Dockerfile. ``run`` is called once.

    :param host: the configuration of the containers that run steps, checked.
    """

    def __init__(
        self,
        tools: Tools,
        request: BuildRequest,
        dockerfile: Dockerfile,
        context: Context,
        host: HostConfig,
        session: Session,
        transcript: Transcript,
        named: NamedContexts,
    ) -> None:
        self._tools = tools
        self._named = named
        self.request = request
        self._dockerfile = dockerfile
        self.context = context
        self.host = host
        self.escape = dockerfile.escape
        self._session = session
        self._transcript = transcript
        self.scope = GlobalScope(request.build_args, platform_arguments(request))
        self.cache_sources: Sequence[Image] = self._cache_sources()
        self._promises: dict[int, _Promise] = {}
        self._steps: dict[int, int] = {}
        self._total = 0
        self._bases: dict[int, str] = {}
        self._group: TaskGroup
        self._behind: list[Callable[[], Awaitable[None]]] = []

    async def run(self) -> StageState:
        """Build. Raises EngineError; what was made for it is in the cache then, or gone."""
        dockerfile = self._dockerfile
        head = self._transcript.open_voice()
        shown: list[str] = []
        for instruction in dockerfile.arguments:
            self.scope.declare(instruction, dockerfile.escape)
            shown.append(instruction.text)
        self._bases = expand_bases(dockerfile, self.scope)
        target = find_target(dockerfile, self.request.target)
        needed = needed_stages(dockerfile, target, self._bases, self._named.stage)
        self._count(needed, len(shown))
        self._transcript.advance()
        for number, text in enumerate(shown, start=1):
            head.say(f"Step {number}/{self._total} : {text}\n")
        head.close()
        try:
            async with anyio.create_task_group() as self._group:
                for stage in needed:
                    self._begin(stage)
        finally:
            await self._work_behind()  # what was called off before it began
        state = self._promises[target.index].state
        assert state is not None
        return state

    def _count(self, needed: Sequence[Stage], before: int) -> None:
        for stage in needed:
            self._steps[stage.index] = before
            before += 1 + len(stage.instructions)
        self._total = before + bool(self.request.labels)

    def next_step(self, stage: Stage) -> str:
        self._steps[stage.index] = number = self._steps.get(stage.index, 0) + 1
        return f"{number}/{self._total}"

    def do_behind(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do something beside the stages; the build ends after it, and does it even when it fails."""
        self._behind.append(work)
        self._group.start_soon(self._work_behind)

    async def _work_behind(self) -> None:
        while self._behind:
            with anyio.CancelScope(shield=True):
                await self._behind.pop()()

    def last_step(self) -> str:
        """Return "8/8"."""
        return f"{self._total}/{self._total}"

    def _begin(self, stage: Stage) -> _Promise:
        promise = self._promises[stage.index] = _Promise()
        self._group.start_soon(self._build, stage, promise, self._transcript.open_voice())
        return promise

    async def _build(self, stage: Stage, promise: _Promise, voice: Voice) -> None:
        self._transcript.advance()
        only = len(self._dockerfile.stages) == 1
        watch = StageWatch(self.request.watcher, stage, only=only)
        building = StageBuild(self._tools, self, stage, self._session, voice, watch)
        promise.state = await building.run()
        promise.done.set()
        voice.close()

    async def _result(self, stage: Stage) -> StageState:
        promise = self._promises.get(stage.index)
        if promise is None:  # only a trigger of a base image named it
            promise = self._begin(stage)
        await promise.done.wait()
        assert promise.state is not None
        return promise.state

    # --- what stages ask ---

    async def base(self, stage: Stage, voice: Voice) -> StageState:
        """Return the state a stage begins with."""
        name = self._bases[stage.index]
        scope = StageScope(self.scope)
        if await self._named.tree(name) is not None:
            raise DockerfileError(
                stage.origin.line,
                f"{name} is a named context of files: it can be copied from, and is no base of a stage",
            )
        other = self._stage_of(name, stage, numbers=False)
        if other is not None:
            return (await self._result(other)).copy(scope)
        return await self._image(self._named.image(name) or name, self._platform(stage), voice, scope)

    async def origin(self, name: str, stage: Stage, voice: Voice) -> StageState | Context:
        """Return what ``--from=name`` means: a named context, a stage (by name or number), or an image."""
        tree = await self._named.tree(name)
        if tree is not None:
            return tree
        other = self._stage_of(name, stage, numbers=True)
        if other is not None:
            return await self._result(other)
        name = self._named.image(name) or name
        if name.isdecimal():
            raise InvalidParameter(f"invalid from flag value {name}: invalid stage index {name}")
        if stage.name and name.lower() == stage.name:
            raise InvalidParameter(f"circular dependency detected in stage: {name}")
        try:
            return await self._image(name, self.request.platform, voice, StageScope(self.scope))
        except NoSuchImage as error:
            raise InvalidParameter(f"invalid from flag value {name}: {error.message}") from error

    def _stage_of(self, name: str, stage: Stage, *, numbers: bool) -> Stage | None:
        """Find the stage that a name means. Raises InvalidParameter when a context names one there is not."""
        meant = self._named.stage(name)
        found = find_stage(self._dockerfile, meant, stage.index, numbers=numbers) if meant else None
        if found is None and meant and meant != name:
            raise InvalidParameter(f"context {name}: there is no stage {meant} above")
        return found

    async def _image(self, name: str, platform: str, voice: Voice, scope: StageScope) -> StageState:
        made_for = parse_platform(platform) if platform else host_platform()
        if name == "scratch":
            return StageState(scope=scope, platform=made_for, key=step_key("scratch", str(made_for)))
        entry = await self._tools.bases.find(
            name,
            platform=platform,
            pull=self.request.pull,
            credentials=self.request.credentials,
            answers=self.request.answers,
            session=self._session,
            tell=voice.tell,
        )
        image = entry.image
        return StageState(
            scope=scope,
            platform=Platform(os=image.os, architecture=image.architecture, variant=image.variant),
            image_id=image.id,
            key=step_key("image", image.id),
            layers=list(entry.layers),
            config=image.config,
            history=list(image.history),
            author=image.author,
            created=image.created,
        )

    def _platform(self, stage: Stage) -> str:
        if not stage.platform:
            return self.request.platform
        try:
            platform = expand(stage.platform, self.scope.variables, escape=self.escape)
            parse_platform(platform)
        except InvalidParameter as error:
            raise DockerfileError(stage.origin.line, error.message) from error
        return platform

    async def download(self, instruction: Instruction, source: str, stack: AsyncExitStack) -> Download:
        """Fetch a source of ADD for as long as the stack lasts."""
        name = unquote(urlsplit(source).path).rpartition("/")[2]
        if not name or name in (".", ".."):
            raise InvalidParameter(f"cannot determine filename from url: {source}")
        checksum = instruction.flag("checksum")
        spool = await stack.enter_async_context(self._tools.images.store.open_spool())
        path, out = spool.open_file()
        digest = hashlib.sha256()
        with os.fdopen(out, "wb") as file:
            async with self._tools.client.fetch(source) as pieces:
                async for piece in pieces:
                    digest.update(piece)
                    await self._tools.images.store.in_thread(file.write, piece)
        found = f"sha256:{digest.hexdigest()}"
        if checksum and checksum != found:
            raise InvalidParameter(f"digest mismatch {found}: {checksum}")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        return Download(fd=fd, name=name, digest=found)

    def _cache_sources(self) -> list[Image]:
        found: list[Image] = []
        for name in self.request.cache_from:
            try:
                found.append(self._tools.images.get(name))
            except (NoSuchImage, InvalidParameter):
                continue  # Docker too goes on without it
        return found


def platform_arguments(request: BuildRequest) -> dict[str, str]:
    """Return the arguments that say what is built where. Source: Dockerfile reference, ARG."""
    found: dict[str, str] = {}
    target = parse_platform(request.platform) if request.platform else host_platform()
    for prefix, platform in (("TARGET", target), ("BUILD", host_platform())):
        found |= {
            f"{prefix}PLATFORM": str(platform),
            f"{prefix}OS": platform.os,
            f"{prefix}ARCH": platform.architecture,
            f"{prefix}VARIANT": platform.variant,
        }
    return found

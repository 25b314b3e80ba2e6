# SPDX-License-Identifier: Apache-2.0
"""Builds one stage: its steps in order, each found in the cache or done.

The key of a step that changes files says what its result depends on and nothing else: the layers below by
their digests, the instruction after expansion, the digests of what it reads. So a label changed above a RUN
does not run it again. A step that only changes the configuration costs nothing; it is in the cache for the
time it was first made, so that the same build gives the same image.

Source: Dockerfile reference; Docker Engine, builder/dockerfile, for the words of the messages.
"""

from __future__ import annotations

import json
import os
import posixpath
import time
from contextlib import AsyncExitStack
from dataclasses import replace as replace_command
from functools import partial

from msgspec.structs import replace

from proa.build.cache import step_key
from proa.build.errors import DockerfileError
from proa.build.git_address import is_git_address, parse_git_address
from proa.build.parser import Instruction, Stage, parse_trigger
from proa.engine.building.attending import SHOWN, StageWatch
from proa.engine.building.context import Context
from proa.engine.building.copying import (
    CopyWords,
    Download,
    Tree,
    is_remote,
    make_plan,
    plan_copy,
    read_words,
)
from proa.engine.building.mounting import Mounting
from proa.engine.building.recording import Recorder
from proa.engine.building.running import Command, host_of_step
from proa.engine.building.state import DEFAULT_PATH, StageState
from proa.engine.building.surroundings import Surroundings, Tools
from proa.engine.building.transcript import Voice
from proa.host.mount import Resolve, openat2
from proa.image.changes import CONFIG_INSTRUCTIONS, DEFAULT_SHELL, apply_instruction
from proa.image.shellwords import expand, split_words
from proa.image.store import Session
from proa.model.config import ContainerConfig
from proa.model.errors import InvalidParameter
from proa.model.ids import Digest
from proa.storage.files import trees as file_trees
from proa.storage.files.trees import PackedLayer

_NOP = "/bin/sh -c #(nop) "


class StageBuild:
    """One stage being built."""

    def __init__(
        self,
        tools: Tools,
        around: Surroundings,
        stage: Stage,
        session: Session,
        voice: Voice,
        watch: StageWatch,
    ) -> None:
        self._tools = tools
        self._around = around
        self._stage = stage
        self._voice = voice
        self._watch = watch
        self._recorder = Recorder(tools, around, stage, session, voice, watch)
        voice.listener = watch.pull

    async def run(self) -> StageState:
        """Do all steps; return what the stage has become. Raises EngineError."""
        stage = self._stage
        self._announce(stage.origin.text)
        with self._watch.step(stage.origin):
            state = await self._around.base(stage, self._voice)
        self._say_id(state)
        state.config = _with_path(replace(state.config, image=""))
        triggers = state.config.on_build or []
        if triggers:
            state.config = replace(state.config, on_build=None)
            plural = "" if len(triggers) == 1 else "s"
            self._voice.say(f"# Executing {len(triggers)} build trigger{plural}\n")
        self._watch.expect(sum(parse_trigger(text).name in SHOWN for text in triggers))
        for text in triggers:
            await self._step(state, parse_trigger(text, stage.origin.line))
        for instruction in stage.instructions:
            self._announce(instruction.text)
            await self._step(state, instruction)
        return state

    def _announce(self, text: str) -> None:
        self._voice.say(f"Step {self._around.next_step(self._stage)} : {text}\n")

    async def _step(self, state: StageState, instruction: Instruction) -> None:
        with self._watch.step(instruction):
            await self._do(state, instruction)
        self._say_id(state)

    async def _do(self, state: StageState, instruction: Instruction) -> None:
        try:
            if instruction.name == "RUN":
                await self._run(state, instruction)
            elif instruction.name in ("COPY", "ADD"):
                await self._copy(state, instruction)
            elif instruction.name in ("WORKDIR", "VOLUME"):
                await self._directories(state, instruction)
            else:
                self._configure(state, instruction)
        except DockerfileError:
            raise
        except InvalidParameter as error:
            if type(error) is not InvalidParameter:
                raise
            raise DockerfileError(instruction.line, error.message) from error

    def _say_id(self, state: StageState) -> None:
        self._voice.say(f" ---> {state.short_id()}\n")

    # --- instructions that change the configuration only ---

    def _configure(self, state: StageState, instruction: Instruction) -> None:
        name, escape = instruction.name, self._around.escape
        variables = state.scope.variables(state.config.env)
        if name == "ARG":
            state.scope.declare(instruction, state.config.env, escape)
            shown = _expand_all(instruction.rest, variables, escape)
        elif name == "MAINTAINER":
            state.author = instruction.rest
            shown = instruction.rest
        else:
            assert name in CONFIG_INSTRUCTIONS
            flags = "".join(f"--{key}={value} " for key, value in instruction.flags)
            state.config = apply_instruction(
                state.config,
                name,
                flags + instruction.rest if instruction.rest else "[]",
                cmd_is_set=state.cmd_is_set,
                arguments=state.scope.variables(None),
                escape=escape,
            )
            if name == "CMD":
                state.cmd_is_set = True
            shown = self._shown(state, instruction, variables)
        self._recorder.note(state, f"{_NOP} {name} {shown}")

    def _shown(self, state: StageState, instruction: Instruction, variables: dict[str, str]) -> str:
        if instruction.name in ("CMD", "ENTRYPOINT"):
            value = state.config.cmd if instruction.name == "CMD" else state.config.entrypoint
            words = value if isinstance(value, list) else []
            return "[" + " ".join(json.dumps(word, ensure_ascii=False) for word in words) + "]"
        if instruction.name in ("HEALTHCHECK", "ONBUILD", "SHELL") or instruction.words is not None:
            return instruction.rest
        return _expand_all(instruction.rest, variables, self._around.escape)

    # --- steps with layers ---

    async def _directories(self, state: StageState, instruction: Instruction) -> None:
        """WORKDIR and VOLUME: the directories are there from now on."""
        known = state.config.volumes or {}
        variables = state.scope.variables(state.config.env)
        state.config = apply_instruction(
            state.config,
            instruction.name,
            instruction.rest,
            cmd_is_set=state.cmd_is_set,
            arguments=state.scope.variables(None),
            escape=self._around.escape,
        )
        if instruction.name == "WORKDIR":
            wanted, shown = [state.workdir], state.workdir
        else:
            wanted = [posixpath.join("/", path) for path in state.config.volumes or {} if path not in known]
            shown = self._shown(state, instruction, variables)
        created_by = f"{_NOP} {instruction.name} {shown}"
        with self._tools.trees.open_layers(state.diff_ids) as below:
            missing = [path for path in wanted if not _is_there(below, path)]
        if not missing:
            self._recorder.note(state, created_by)
            return

        async def write(out: int, image: int) -> PackedLayer:
            items = [("make", -1, "", path, "", False) for path in missing]
            plan = {"time": int(time.time()), "owner": "", "mode": "", "clear_owner": True, "items": items}
            return await self._assemble(state, plan, set(), out, image)

        await self._recorder.layered(state, step_key("make", state.diff_ids, missing), created_by, write)

    async def _copy(self, state: StageState, instruction: Instruction) -> None:
        name, escape = instruction.name, self._around.escape
        variables = state.scope.variables(state.config.env)

        def put_in(text: str) -> str:
            return expand(text, variables, escape=escape)

        words = read_words(instruction, variables, escape, state.workdir)
        owner, mode = put_in(instruction.flag("chown")), put_in(instruction.flag("chmod"))
        excludes = [put_in(pattern) for pattern in instruction.all_flags("exclude")]
        async with AsyncExitStack() as stack:
            if name == "ADD" and any(map(is_git_address, words.sources)):
                await self._add_repository(state, instruction, words, (owner, mode, excludes), stack)
                return
            tree = await self._source_tree(instruction, put_in(instruction.flag("from")), stack)
            downloads = await self._downloads(instruction, words, stack)
            plan = await plan_copy(instruction, words, tree, downloads, excludes)
            flags = [f"--{key}={value}" for key, value in (("chown", owner), ("chmod", mode)) if value]
            shown = " ".join([name, *flags, f"{plan.kind}:{plan.digest}", "in", words.destination])
            link = instruction.switch("link") and not owner.strip("0123456789:")
            below = () if link else state.diff_ids

            async def write(out: int, image: int) -> PackedLayer:
                document = make_plan(plan, owner=owner, mode=mode, clear_owner=tree.is_context)
                return await self._assemble(state, document, plan.trees, out, image, link=link)

            unpacks = not instruction.all_flags("unpack") or instruction.switch("unpack")
            key = step_key("copy", below, shown, tree.is_context, unpacks)
            await self._recorder.layered(state, key, f"{_NOP} {shown} ", write)

    async def _add_repository(
        self,
        state: StageState,
        instruction: Instruction,
        words: CopyWords,
        options: tuple[str, str, list[str]],
        stack: AsyncExitStack,
    ) -> None:
        """ADD of a git repository: its commit is in the key, so it is fetched only when that is new."""
        owner, mode, excludes = options
        if len(words.sources) != 1:
            raise InvalidParameter("ADD of a git repository takes no other source beside it")
        repositories, request = self._tools.repositories, self._around.request
        commit = await repositories.resolve(
            parse_git_address(words.sources[0]),
            request,
            keep=instruction.switch("keep-git-dir"),
            checksum=instruction.flag("checksum"),
        )
        flags = [f"--{key}={value}" for key, value in (("chown", owner), ("chmod", mode)) if value]
        shown = " ".join(["ADD", *flags, f"git:{commit.id}", "in", words.destination])
        link = instruction.switch("link") and not owner.strip("0123456789:")

        async def write(out: int, image: int) -> PackedLayer:
            root = await stack.enter_async_context(repositories.open(commit, request))
            tree = Tree(root=root, is_context=True)
            whole = CopyWords(sources=("/",), destination=words.destination)
            plan = await plan_copy(instruction, whole, tree, (), excludes)
            document = make_plan(plan, owner=owner, mode=mode, clear_owner=True)
            return await self._assemble(state, document, plan.trees, out, image, link=link)

        below = () if link else state.diff_ids
        key = step_key("repository", below, shown, commit.key, excludes)
        await self._recorder.layered(state, key, f"{_NOP} {shown} ", write)

    async def _source_tree(self, instruction: Instruction, origin: str, stack: AsyncExitStack) -> Tree:
        if not origin:
            context = self._around.context
            return Tree(root=context.root, keeps=context.keeps, is_context=True)
        source = await self._around.origin(origin, self._stage, self._voice)
        if isinstance(source, Context):
            return Tree(root=source.root, keeps=source.keeps, is_context=True)
        root = stack.enter_context(self._tools.trees.open_layers(source.diff_ids))
        if root < 0:
            root = os.open(self._tools.trees.empty, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, root)
        return Tree(root=root)

    async def _downloads(
        self, instruction: Instruction, words: CopyWords, stack: AsyncExitStack
    ) -> list[Download]:
        if instruction.name != "ADD":
            if any(is_remote(source) for source in words.sources):
                raise InvalidParameter("source can't be a URL for COPY")
            return []
        return [
            await self._around.download(instruction, source, stack)
            for source in words.sources
            if is_remote(source)
        ]

    async def _assemble(
        self,
        state: StageState,
        plan: dict[str, object],
        trees: set[int],
        out: int,
        image: int,
        *,
        link: bool = False,
    ) -> PackedLayer:
        with self._tools.trees.open_layers(() if link else state.diff_ids) as below:
            return await file_trees.assemble_layer(
                plan, trees=trees, below=below, out=out, image=image, empty=self._tools.trees.empty
            )

    async def _run(self, state: StageState, instruction: Instruction) -> None:
        variables = state.scope.variables(state.config.env)
        async with AsyncExitStack() as stack:
            mounting = Mounting(self._tools.trees, self._around, self._stage, self._voice, stack)
            network = host_of_step(instruction, self._around.host, self._around.request.entitlements)
            argv = self._argv(state, instruction, mounting)
            for text in instruction.all_flags("mount"):
                await mounting.add(text, variables, self._around.escape, state.workdir)
            arguments = state.scope.arguments(state.config.env)
            shown = " ".join(argv)
            prefix = [f"{name}={value}" for name, value in sorted(arguments.items())]
            created_by = f"|{len(prefix)} {' '.join(prefix)} {shown} " if prefix else shown
            key = step_key(
                "run",
                state.diff_ids,
                argv,
                prefix,
                sorted(state.config.env or ()),
                (state.config.user, state.workdir, network.network_mode, sorted(network.extra_hosts or ())),
                mounting.keys,
                *(["insecure"] if network.privileged else []),
            )
            await self._cached_or_run(
                state,
                key,
                created_by,
                Command(
                    argv=tuple(argv),
                    shown=shown,
                    image_id=Digest(state.image_id or "sha256:" + "0" * 64),
                    layers=state.diff_ids,
                    config=replace(state.config, env=[*(state.config.env or ()), *prefix]),
                    host=network,
                    extra_env=tuple(
                        f"{name}={value}"
                        for name, value in state.scope.hidden_arguments(state.config.env).items()
                    ),
                ),
                mounting,
            )

    async def _cached_or_run(
        self, state: StageState, key: str, created_by: str, command: Command, mounting: Mounting
    ) -> None:
        known = self._recorder.find(state, key, created_by, layered=True)
        if known is not None and await self._recorder.take(state, known, created_by):
            return
        await mounting.mount()
        command = replace_command(
            command, mounts=tuple(mounting.points), extra_env=(*command.extra_env, *mounting.env)
        )
        runner, voice = self._tools.runner, self._voice

        async def speak(text: str) -> None:
            self._watch.say(text)
            voice.say(text)
            await voice.room()

        container_id = runner.create(command)
        voice.say(f" ---> Running in {container_id[:12]}\n")
        try:
            await runner.run(container_id, command, speak)

            async def write(out: int, image: int) -> PackedLayer:
                return await runner.pack(container_id, command, out, image)

            await self._recorder.store(state, key, created_by, write)
        except BaseException:
            await runner.remove(container_id)
            raise
        if not self._around.request.remove:
            runner.keep(container_id)
            return
        voice.say(f"Removing intermediate container {container_id[:12]}\n")
        # The next step does not wait for it, but the build does.
        self._around.do_behind(partial(runner.remove, container_id))

    def _argv(self, state: StageState, instruction: Instruction, mounting: Mounting) -> list[str]:
        if instruction.words is not None:
            return list(instruction.words)
        shell = list(state.config.shell or DEFAULT_SHELL)
        docs = instruction.heredocs
        if not docs:
            return [*shell, instruction.rest]
        words = split_words(instruction.rest, self._around.escape)
        if len(words) == 1 and len(docs) == 1:
            doc = docs[0]
            text = doc.content
            if text.startswith("#!"):
                return [mounting.add_script(doc.name, text)]
            return [*shell, text]
        return [*shell, "\n".join([instruction.rest, *(f"{doc.text}{doc.name}" for doc in docs)]) + "\n"]


def _expand_all(text: str, variables: dict[str, str], escape: str) -> str:
    return " ".join(expand(word, variables, escape=escape) for word in split_words(text, escape))


def _with_path(config: ContainerConfig) -> ContainerConfig:
    if any(entry.startswith("PATH=") for entry in config.env or ()):
        return config
    return replace(config, env=[*(config.env or ()), DEFAULT_PATH])


def _is_there(below: int, path: str) -> bool:
    if below < 0:
        return path == "/"
    try:
        os.close(openat2(below, path, os.O_PATH, resolve=Resolve.IN_ROOT | Resolve.NO_MAGICLINKS))
    except OSError:
        return False
    return True

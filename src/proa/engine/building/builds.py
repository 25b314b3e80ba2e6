# SPDX-License-Identifier: Apache-2.0
"""The use cases of builds: build, prune, what the cache takes. Source: Engine API, ImageBuild, BuildPrune."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import BinaryIO

import anyio
import anyio.to_thread
from msgspec.structs import replace

from proa.build.cache import CachedStep
from proa.build.git_address import is_git_context, parse_git_address
from proa.build.ignore import IgnoreRules
from proa.build.lexer import MAX_BYTES
from proa.build.parser import parse_dockerfile
from proa.engine.building.bases import check_platform
from proa.engine.building.build import Build, Tools
from proa.engine.building.context import Context, Contexts, read_ignore, read_text
from proa.engine.building.named import NamedContexts
from proa.engine.building.remote import fetch_context
from proa.engine.building.request import BuildRequest, Room, Tell
from proa.engine.building.state import StageState, now_text
from proa.engine.building.transcript import Transcript
from proa.engine.creation import check_config
from proa.engine.events import EventBus
from proa.engine.filters import Filters, check_filters, parse_until_ns
from proa.engine.isolation import ISOLATION_CONTAINER, Hulls
from proa.engine.together import machine_of
from proa.image.config import encode_config
from proa.image.content import digest_of
from proa.image.reference import Reference, parse_reference
from proa.image.store import Session
from proa.model.config import ContainerConfig, HostConfig
from proa.model.errors import CommandFailed, EngineError, InvalidParameter
from proa.model.ids import Digest
from proa.storage.files.trees import Tree, open_export

CACHE_MAX_BYTES = 20 << 30  # of the layers that only the cache needs
_PRUNE_FILTERS = ("until", "id", "type", "unused-for", "inuse", "shared", "private", "description", "parent")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRecord:
    """One entry of the cache. ``shared``: an image has its layer too, so removing it frees nothing."""

    id: str
    type: str
    description: str
    size_bytes: int
    created_at_ns: int
    used_at_ns: int
    uses: int
    in_use: bool = False
    shared: bool = False
    path: Path | None = None  # of a cache mount


class Builds:
    """Builds images."""

    def __init__(
        self,
        *,
        tools: Tools,
        contexts: Contexts,
        hulls: Hulls,
        events: EventBus,
        max_bytes: int = CACHE_MAX_BYTES,
    ) -> None:
        self._tools = tools
        self._contexts = contexts
        self._hulls = hulls
        self._events = events
        self._max_bytes = max_bytes

    @property
    def host_gateway(self) -> IPv4Address | None:
        """What clients put in place of host-gateway in ``--add-host``; None when there is nothing."""
        return self._tools.runner.host_gateway

    def knows_context(self, key: str) -> bool:
        """Whether a build with this key need not be sent its context; it may be gone when that begins."""
        return self._contexts.knows(key)

    def spool(self) -> BinaryIO:
        """Return an empty file for what must be whole before it can be used; it is gone when it is closed."""
        return self._tools.trees.spool()

    async def open(self) -> None:
        """Clear what a killed daemon left, and forget steps whose layers are gone."""
        await anyio.to_thread.run_sync(self._tools.trees.clear)
        await self._contexts.open()
        self._tools.cache.drop_lost(self._tools.images.store.has_layer)

    async def build(
        self, request: BuildRequest, context: AsyncIterator[bytes], tell: Tell, room: Room
    ) -> Digest:
        """Build an image; return its id, though it may not be kept. ``room`` is waited for between pieces
        of a command's output.

        Nothing is told before the request, the context and the Dockerfile have been found sound: until then
        an error is the request's.

        :raises InvalidParameter: a parameter, the context or the Dockerfile is wrong.
        :raises CommandFailed: a command of it failed.
        """
        names = [parse_reference(tag).with_default_tag() for tag in request.tags]
        for name in names:
            if name.digest:
                raise InvalidParameter("invalid reference: a tag cannot have a digest")
        check_platform(request.platform)
        host = self._host(request)
        transcript = Transcript(tell, room, quiet=request.quiet)
        try:
            async with AsyncExitStack() as stack:
                session = await stack.enter_async_context(self._tools.images.store.open_session())
                root, request = await self._open_context(request, context, stack)
                named = NamedContexts(
                    request,
                    repositories=self._tools.repositories,
                    client=self._tools.client,
                    contexts=self._contexts,
                    stack=stack,
                )
                await named.receive()
                build = await self._prepare(request, root, host, session, transcript, named)
                state = await build.run()
                image_id = await self._finish(build, state, session, names, transcript, tell)
        except EngineError as error:
            if request.quiet and transcript.kept and not isinstance(error, InvalidParameter):
                error.message = f"{transcript.kept}: {error.message}"
                error.args = (error.message,)
            raise
        except ExceptionGroup as errors:
            raise _single(errors) from None
        await self._shrink()
        return image_id

    async def _open_context(
        self, request: BuildRequest, context: AsyncIterator[bytes], stack: AsyncExitStack
    ) -> tuple[int, BuildRequest]:
        """Give the context's root for as long as the stack lasts, and the request that goes with it."""
        if is_git_context(request.remote):
            repositories = self._tools.repositories
            commit = await repositories.resolve(parse_git_address(request.remote), request)
            return await stack.enter_async_context(repositories.open(commit, request)), request
        if request.remote:
            fetched = await stack.enter_async_context(fetch_context(self._tools.client, request.remote))
            context, request = fetched.stream, fetched.adapt(request)
        root = await stack.enter_async_context(self._contexts.receive(context, request.context_key))
        return root, request

    async def _prepare(
        self,
        request: BuildRequest,
        root: int,
        host: HostConfig,
        session: Session,
        transcript: Transcript,
        named: NamedContexts,
    ) -> Build:
        text = request.dockerfile_text
        ignore = IgnoreRules([])
        if text is None:
            text = await read_text(root, request.dockerfile, MAX_BYTES)
            ignore = await read_ignore(root, request.dockerfile)
        if text is None:
            raise InvalidParameter(f"Cannot locate specified Dockerfile: {request.dockerfile}")
        dockerfile = await anyio.to_thread.run_sync(partial(parse_dockerfile, text, name=request.dockerfile))
        context = Context(root=root, path=Path(f"/proc/self/fd/{root}").readlink(), ignore=ignore)
        return Build(self._tools, request, dockerfile, context, host, session, transcript, named)

    def _host(self, request: BuildRequest) -> HostConfig:
        """Check and complete the configuration of the containers that run steps."""
        host = request.host
        if request.squash:
            raise InvalidParameter("squash is only supported with experimental mode")
        if machine_of(host):
            raise InvalidParameter('the steps of a build share no virtual machine: use isolation "vm"')
        mode = "bridge" if host.network_mode in ("", "default") else host.network_mode
        host = replace(
            host,
            network_mode=mode,
            isolation=host.isolation or ISOLATION_CONTAINER,
            shm_size=host.shm_size or 64 << 20,
            log_config=replace(host.log_config, type="json-file"),
        )
        check_config(ContainerConfig(), host)
        runtime = self._hulls.choose(host)
        self._hulls.check(runtime, host)
        return host

    async def _finish(
        self,
        build: Build,
        state: StageState,
        session: Session,
        names: Sequence[Reference],
        transcript: Transcript,
        tell: Tell,
    ) -> Digest:
        request = build.request
        voice = transcript.open_voice()
        transcript.advance()
        if request.labels:
            self._label(build, state)
            text = " ".join(f'"{key}"="{value}"' for key, value in sorted(request.labels.items()))
            voice.say(f"Step {build.last_step()} : LABEL {text}\n ---> {state.short_id()}\n")
        if request.take_files is not None:
            async with self._open_files(state) as pieces:
                await request.take_files(pieces)
        unused = build.scope.unused()
        if unused:
            voice.say(f"[Warning] One or more build-args [{' '.join(unused)}] were not consumed\n")
        if not request.keeps_image:
            return digest_of(encode_config(state.image()))
        if state.is_base and state.image_id:
            image_id = Digest(state.image_id)
            self._tools.images.add_names(image_id, names)
        elif state.is_base:
            raise InvalidParameter("No image was generated. Is your Dockerfile empty?")
        else:
            config = state.image()
            image_id = await session.put_blob(encode_config(config))
            session.register(image_id, config, state.layers, names=names)
        if request.quiet:
            tell({"stream": f"{image_id}\n"})
        tell({"aux": {"ID": image_id}})
        voice.say(f"Successfully built {image_id.removeprefix('sha256:')[:12]}\n")
        self._events.publish("image", "build", image_id, {"name": image_id})
        for name in names:
            voice.say(f"Successfully tagged {name.familiar}\n")
            self._events.publish("image", "tag", image_id, {"name": name.familiar})
        return image_id

    @asynccontextmanager
    async def _open_files(self, state: StageState) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give the tar of what was built."""
        trees = self._tools.trees
        async with (
            trees.mounted(trees.lowers(state.diff_ids), "/", writable=False) as root,
            open_export(Tree(root=root)) as pieces,
        ):
            yield pieces

    def _label(self, build: Build, state: StageState) -> None:
        labels = {**(state.config.labels or {}), **build.request.labels}
        state.config = replace(state.config, labels=labels)
        text = " ".join(f"{key}={value}" for key, value in sorted(build.request.labels.items()))
        created_by = f"/bin/sh -c #(nop)  LABEL {text}"
        key = f"label {state.key} {created_by}"
        known = None if build.request.no_cache else self._tools.cache.find(key)
        if known is None:
            known = self._tools.cache.put(key, description=created_by, created=now_text())
        state.add(created_by, known.created, None)

    # --- the cache ---

    async def records(self, filters: Filters | None = None) -> list[CacheRecord]:
        """Return the entries of the cache, the one longest unused first. Raises InvalidParameter."""
        check_filters(filters or {}, _PRUNE_FILTERS)
        until = parse_until_ns(filters or {}, time.time_ns())
        store = self._tools.images.store
        shared = {diff_id for entry in store.catalog for diff_id in entry.image.layers}
        found = [
            _record(step, shared=step.layer is not None and step.layer.diff_id in shared)
            for step in self._tools.cache.steps()
            if step.layer is not None
        ]
        for key, path, in_use in self._tools.trees.caches():
            status = path.stat()
            found.append(
                CacheRecord(
                    id=key,
                    type="exec.cachemount",
                    description=f"cache mount {key[:12]}",
                    size_bytes=await anyio.to_thread.run_sync(_tree_bytes, path),
                    created_at_ns=status.st_ctime_ns,
                    used_at_ns=status.st_mtime_ns,
                    uses=1,
                    in_use=in_use,
                    path=path,
                )
            )
        found = [record for record in found if _fits(record, filters or {}, until)]
        return sorted(found, key=lambda record: record.used_at_ns)

    async def prune(self, filters: Filters, *, all: bool, keep_bytes: int = 0) -> tuple[list[str], int]:
        """Remove entries of the cache, the longest unused first; return their ids and the bytes freed.

        :param all: also those whose layers images have too, which frees nothing.
        :param keep_bytes: stop when no more than this is left.
        :raises InvalidParameter: a filter is unknown.
        """
        check_filters(filters, _PRUNE_FILTERS)
        until = parse_until_ns(filters, time.time_ns())
        records = await self.records()
        left = sum(record.size_bytes for record in records if not record.shared)
        chosen: list[CacheRecord] = []
        for record in records:
            if record.in_use or (record.shared and not all) or not _fits(record, filters, until):
                continue
            if keep_bytes and left <= keep_bytes:
                break
            chosen.append(record)
            left -= 0 if record.shared else record.size_bytes
        freed = await self._remove(chosen)
        if all and not filters and not keep_bytes:
            self._tools.cache.remove([step.key for step in self._tools.cache.steps() if step.layer is None])
        self._events.publish("builder", "prune", "", {"reclaimed": str(freed)})
        return [record.id for record in chosen], freed

    async def _remove(self, records: Sequence[CacheRecord]) -> int:
        steps = {step.key: step for step in self._tools.cache.steps()}
        layers = [steps[record.id].layer for record in records if record.id in steps]
        self._tools.cache.remove([record.id for record in records])
        known = [layer for layer in layers if layer is not None]
        freed = await self._tools.images.store.collect(
            {layer.diff_id for layer in known}, {layer.blob for layer in known}
        )
        total = freed.size_bytes
        for record in records:
            if record.path is not None:
                total += record.size_bytes
                await self._tools.trees.remove_cache(record.path)
        return total

    async def _shrink(self) -> None:
        """Keep the cache within its bound: what was longest unused goes first."""
        steps = [step for step in self._tools.cache.steps() if step.layer is not None]
        total = sum(step.size_bytes for step in steps)
        if total > self._max_bytes:
            await self.prune({}, all=False, keep_bytes=self._max_bytes * 9 // 10)


def _record(step: CachedStep, *, shared: bool) -> CacheRecord:
    return CacheRecord(
        id=step.key,
        type="regular",
        description=step.description,
        size_bytes=step.size_bytes,
        created_at_ns=step.created_at_ns,
        used_at_ns=step.used_at_ns,
        uses=step.uses,
        shared=shared,
    )


def _fits(record: CacheRecord, filters: Filters, until_ns: int | None) -> bool:
    if until_ns is not None and record.used_at_ns > until_ns:
        return False
    tests: dict[str, Callable[[str], bool]] = {
        "id": lambda text: record.id.startswith(text),
        "type": lambda text: record.type == text,
        "description": lambda text: text in record.description,
        "inuse": lambda text: record.in_use == (text.lower() in ("1", "true")),
        "shared": lambda text: record.shared == (text.lower() in ("1", "true")),
        "private": lambda text: record.shared != (text.lower() in ("1", "true")),
        "parent": lambda _: False,
    }
    return all(
        any(tests[name](value) for value in values) for name, values in filters.items() if name in tests
    )


def _tree_bytes(root: Path) -> int:
    return sum(path.lstat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def _single(error: BaseException) -> BaseException:
    """Return the error of the stage that failed first; the others were only called off."""
    while isinstance(error, BaseExceptionGroup):
        inner = sorted(error.exceptions, key=lambda one: not isinstance(one, CommandFailed))
        error = inner[0]
    return error

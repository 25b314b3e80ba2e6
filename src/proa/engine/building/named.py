# SPDX-License-Identifier: Apache-2.0
"""Named contexts: what a client puts in place of an image or a stage, wherever its name stands.

A source is ``docker-image://REFERENCE``, ``target:STAGE`` (a stage further up), the address of an archive or
of a git repository, or a stream that the client sends, of a directory. Trees are fetched when a step wants
them.

Source: docker buildx build reference, ``--build-context``; Dockerfile reference, COPY --from.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import anyio

from proa.build.git_address import is_git_context, parse_git_address
from proa.build.ignore import IgnoreRules
from proa.distribution.registries import Registries
from proa.engine.building.context import Context, Contexts
from proa.engine.building.remote import fetch_context
from proa.engine.building.repositories import Repositories
from proa.engine.building.request import BuildRequest, ContextSource
from proa.image.reference import parse_reference
from proa.model.errors import InvalidParameter

IMAGE, STAGE = "docker-image://", "target:"


class NamedContexts:
    """The named contexts of one build; their trees stay for as long as ``stack`` lasts.

    :raises InvalidParameter: a source is of no kind that there is.
    """

    def __init__(
        self,
        request: BuildRequest,
        *,
        repositories: Repositories,
        client: Registries,
        contexts: Contexts,
        stack: AsyncExitStack,
    ) -> None:
        self._request = request
        self._repositories = repositories
        self._client = client
        self._contexts = contexts
        self._stack = stack
        self._sources = {_normal(name): source for name, source in request.contexts.items()}
        self._trees: dict[str, Context] = {}
        self._fetching = anyio.Lock()
        for name, source in request.contexts.items():
            _check(name, source)

    async def receive(self) -> None:
        """Take the streams, in the order of the request: they follow each other. Raises InvalidParameter."""
        for name, source in self._sources.items():
            if not isinstance(source, str):
                self._trees[name] = await self._take(source())

    def image(self, name: str) -> str:
        """Return the image's name that a name stands for, "" when it stands for no image."""
        return self._text(name, IMAGE)

    def stage(self, name: str) -> str:
        """Return the stage's name that a name stands for: itself, when no context has it; "" when it is
        something else."""
        if _normal(name) not in self._sources:
            return name
        return self._text(name, STAGE)

    async def tree(self, name: str) -> Context | None:
        """Return the files that a name stands for, None when it stands for no files.

        :raises InvalidParameter: they cannot be fetched.
        """
        key = _normal(name)
        source = self._sources.get(key)
        if source is None or self.image(name) or self._text(name, STAGE):
            return None
        async with self._fetching:
            if key not in self._trees:
                assert isinstance(source, str)
                self._trees[key] = await self._fetch(name, source)
        return self._trees[key]

    def _text(self, name: str, prefix: str) -> str:
        source = self._sources.get(_normal(name), "")
        if isinstance(source, str) and source.startswith(prefix):
            return source.removeprefix(prefix)
        return ""

    async def _fetch(self, name: str, source: str) -> Context:
        if is_git_context(source):
            commit = await self._repositories.resolve(parse_git_address(source), self._request)
            root = await self._stack.enter_async_context(self._repositories.open(commit, self._request))
            return _context(root)
        async with fetch_context(self._client, source) as fetched:
            if fetched.is_dockerfile:
                raise InvalidParameter(f"context {name}: {source} is no archive")
            return await self._take(fetched.stream)

    async def _take(self, stream: AsyncIterator[bytes]) -> Context:
        return _context(await self._stack.enter_async_context(self._contexts.receive(stream)))


def _context(root: int) -> Context:
    return Context(root=root, path=Path(f"/proc/self/fd/{root}").readlink(), ignore=IgnoreRules([]))


def _check(name: str, source: ContextSource) -> None:
    if not name:
        raise InvalidParameter("a named context has no name")
    if not isinstance(source, str) or is_git_context(source):
        return
    if source.startswith(IMAGE):
        parse_reference(source.removeprefix(IMAGE))
    elif not source.startswith(("http://", "https://", STAGE)):
        raise InvalidParameter(f"unsupported context source {source.partition(':')[0]} for {name}")


def _normal(name: str) -> str:
    """One name for all that mean the same image, and for a stage in capitals or not."""
    try:
        return str(parse_reference(name.lower()).with_default_tag())
    except InvalidParameter:
        return name.lower()

# SPDX-License-Identifier: Apache-2.0
"""Git repositories in builds: as a context, and as a source of ADD.

A repository's files become a read-only file system, as every context does; which commit a name means is asked
for in each build, so that a step is found in the cache as long as that is the same.

Source: Dockerfile reference, ADD; docker build reference, "Git repositories" and "Build secrets".
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from proa.build.git_address import GitAddress
from proa.distribution.git import Git, Repository
from proa.engine.building.context import Contexts
from proa.engine.building.request import BuildRequest
from proa.engine.building.trees import BuildTrees
from proa.model.errors import InvalidParameter

TOKEN_SECRET = "GIT_AUTH_TOKEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A commit of a repository. ``keep``: its files come with the directory ``.git``."""

    address: GitAddress
    id: str
    keep: bool = False

    @property
    def key(self) -> list[object]:
        """What its files depend on; with ``.git`` also on where it came from."""
        where = [self.address.url, self.address.ref] if self.keep else []
        return ["git", self.id, self.address.directory, *where]


class Repositories:
    """Resolves and fetches."""

    def __init__(self, git: Git, contexts: Contexts, trees: BuildTrees) -> None:
        self._git = git
        self._contexts = contexts
        self._trees = trees

    async def resolve(
        self, address: GitAddress, request: BuildRequest, *, keep: bool = False, checksum: str = ""
    ) -> Commit:
        """Ask which commit an address means. Raises InvalidParameter."""
        async with AsyncExitStack() as stack:
            place = await stack.enter_async_context(self._trees.scratch())
            repository = await self._repository(address, request)
            commit = await self._git.resolve(repository, address.ref, place)
        if checksum and not commit.startswith(checksum):
            raise InvalidParameter(f"expected checksum to match {checksum}, got {commit}")
        return Commit(address=address, id=commit, keep=keep)

    @asynccontextmanager
    async def open(self, commit: Commit, request: BuildRequest) -> AsyncIterator[int]:
        """Give a descriptor of a directory with a commit's files. Raises InvalidParameter."""
        address = commit.address
        async with AsyncExitStack() as stack:
            async with AsyncExitStack() as fetching:
                place = await fetching.enter_async_context(self._trees.scratch())
                pieces = await fetching.enter_async_context(
                    self._git.open_tree(
                        await self._repository(address, request),
                        commit.id,
                        address.ref,
                        address.directory,
                        keep=commit.keep,
                        place=place,
                    )
                )
                root = await stack.enter_async_context(self._contexts.receive(pieces))
            yield root

    async def _repository(self, address: GitAddress, request: BuildRequest) -> Repository:
        token = b""
        if "://" in address.url:
            host = urlsplit(address.url).hostname or ""
            for name in (f"{TOKEN_SECRET}.{host}", TOKEN_SECRET):
                token = token or request.secrets.get(name, b"").strip()
                if not token and request.answers is not None:
                    token = (await request.answers.secret(name) or b"").strip()
        return Repository(url=address.url, shown=address.shown, token=token.decode(errors="replace"))

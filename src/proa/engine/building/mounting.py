# SPDX-License-Identifier: Apache-2.0
"""The mounts of one RUN: what they mean for the cache's key, and, when it must run, where they are.

Source: Dockerfile reference, RUN --mount.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import anyio.to_thread

from proa.build.mounts import RunMount, parse_mount
from proa.build.parser import Stage
from proa.engine.building.context import Context
from proa.engine.building.request import BuildRequest
from proa.engine.building.state import StageState
from proa.engine.building.transcript import Voice
from proa.engine.building.trees import BuildTrees, Seed
from proa.engine.container import MountPoint
from proa.image.shellwords import expand
from proa.model.errors import InvalidParameter, NotFound
from proa.storage.files.gather import Gatherer

SECRETS_DIR = "/run/secrets"
DEFAULT_AGENT = "default"
SCRIPTS_DIR = "/dev/pipes"


class Surroundings(Protocol):
    """What mounts need of their build."""

    @property
    def request(self) -> BuildRequest: ...
    @property
    def context(self) -> Context: ...
    async def origin(self, name: str, stage: Stage, voice: Voice) -> StageState | Context: ...


class Mounting:
    """Collects mounts (``add``), then makes them (``mount``) for as long as ``stack`` lasts.

    :ivar keys: what the result of the command depends on.
    :ivar points: the container's mounts, ``env`` its variables; filled by ``mount``.
    """

    def __init__(
        self, trees: BuildTrees, around: Surroundings, stage: Stage, voice: Voice, stack: AsyncExitStack
    ) -> None:
        self._trees = trees
        self._around = around
        self._stage = stage
        self._voice = voice
        self._stack = stack
        self._wanted: list[tuple[RunMount, StageState | Context]] = []
        self._scripts: list[tuple[str, bytes]] = []
        self._secrets: dict[str, bytes] = {}
        self._agents = 0  # mounted so far
        self.keys: list[object] = []
        self.points: list[MountPoint] = []
        self.env: list[str] = []

    async def add(self, text: str, variables: dict[str, str], escape: str, workdir: str) -> None:
        """Take one ``--mount``. Raises InvalidParameter, NoSuchImage."""
        wanted = parse_mount(text, lambda word: expand(word, variables, escape=escape), workdir)
        if wanted.type == "ssh" and not await self._has_agent(wanted):
            return
        if wanted.type == "secret" and not await self._has_secret(wanted):
            return
        if wanted.type == "cache" and wanted.source and not wanted.origin:
            raise InvalidParameter("RUN --mount=type=cache: source= is a path in what from= names")
        origin: StageState | Context = self._around.context
        if wanted.type in ("bind", "cache") and wanted.origin:
            origin = await self._around.origin(wanted.origin, self._stage, self._voice)
        self._wanted.append((wanted, origin))
        described: list[object] = [wanted.type, wanted.target, wanted.id, wanted.size_bytes, wanted.env]
        if wanted.type == "bind" or (wanted.type == "cache" and wanted.origin):
            described.append(await self._digest(wanted, origin))
        self.keys.append(described)

    def add_script(self, name: str, text: str) -> str:
        """Take a here-document with an interpreter of its own; return where the file will be."""
        self._scripts.append((name, text.encode(errors="surrogateescape")))
        self.keys.append(["script", text])
        return f"{SCRIPTS_DIR}/{name.replace('/', '_')}"

    async def mount(self) -> None:
        """Make all of them. Raises InvalidParameter when a source is not there."""
        for wanted, origin in self._wanted:
            if wanted.type == "tmpfs":
                options = (f"size={wanted.size_bytes}",) if wanted.size_bytes else ()
                self.points.append(
                    MountPoint(type="tmpfs", destination=wanted.target, rw=True, options=options)
                )
            elif wanted.type == "cache":
                await self._mount_cache(wanted, origin)
            elif wanted.type == "secret":
                self._mount_secret(wanted)
            elif wanted.type == "ssh":
                await self._mount_agent(wanted)
            else:
                await self._mount_tree(wanted, origin)
        for name, data in self._scripts:
            script = RunMount(type="secret", mode=0o755)
            path = self._stack.enter_context(self._trees.secret(data, script))
            self._bind(str(path), f"{SCRIPTS_DIR}/{name.replace('/', '_')}", rw=False)
        # A mount below another must come after it, or it would be hidden.
        self.points.sort(key=lambda point: point.destination.count("/"))

    def _bind(self, source: str, target: str, *, rw: bool) -> None:
        self.points.append(
            MountPoint(type="bind", source=source, destination=target, rw=rw, propagation="rprivate")
        )

    async def _has_agent(self, wanted: RunMount) -> bool:
        answers = self._around.request.answers
        if answers is not None and await answers.has_agent(wanted.id or DEFAULT_AGENT):
            return True
        if not wanted.required:
            return False
        if answers is None:
            raise InvalidParameter(
                "RUN --mount=type=ssh: the classic build API has no way to reach the client's SSH agent"
            )
        raise InvalidParameter(f"unset ssh forward key {wanted.id or DEFAULT_AGENT}")

    async def _mount_agent(self, wanted: RunMount) -> None:
        answers = self._around.request.answers
        assert answers is not None
        path = self._stack.enter_context(self._trees.socket_path())
        await self._stack.enter_async_context(answers.serve_agent(wanted.id or DEFAULT_AGENT, path))
        os.chown(path, wanted.uid, wanted.gid)
        path.chmod(0o600 if wanted.mode < 0 else wanted.mode)
        target = wanted.target or f"/run/buildkit/ssh_agent.{self._agents}"
        if not self._agents:
            self.env.append(f"SSH_AUTH_SOCK={target}")
        self._agents += 1
        self._bind(str(path), target, rw=True)

    async def _has_secret(self, wanted: RunMount) -> bool:
        name, request = _secret_id(wanted), self._around.request
        data = request.secrets.get(name)
        if data is None and request.answers is not None:
            data = await request.answers.secret(name)
        if data is not None:
            self._secrets[name] = data
            return True
        if wanted.required:
            raise InvalidParameter(f"secret {_secret_id(wanted)}: not found")
        return False

    def _mount_secret(self, wanted: RunMount) -> None:
        name = _secret_id(wanted)
        data = self._secrets[name]
        if wanted.env:
            self.env.append(f"{wanted.env}={data.decode(errors='surrogateescape')}")
            if not wanted.target:
                return
        path = self._stack.enter_context(self._trees.secret(data, wanted))
        self._bind(str(path), wanted.target or f"{SECRETS_DIR}/{name}", rw=False)

    async def _mount_cache(self, wanted: RunMount, origin: StageState | Context) -> None:
        seed = None
        if wanted.origin:
            seed = Seed(lowers=self._lowers(origin), digest=await self._digest(wanted, origin))
        try:
            path = await self._stack.enter_async_context(self._trees.cache(wanted, seed))
        except NotFound:
            raise InvalidParameter(f"mount source {wanted.source}: not found") from None
        self._bind(str(path), wanted.target, rw=not wanted.read_only)

    def _lowers(self, origin: StageState | Context) -> list[Path]:
        return [origin.path] if isinstance(origin, Context) else self._trees.lowers(origin.diff_ids)

    async def _mount_tree(self, wanted: RunMount, origin: StageState | Context) -> None:
        try:
            path = await self._stack.enter_async_context(
                self._trees.mounted(self._lowers(origin), wanted.source, writable=not wanted.read_only)
            )
        except NotFound:
            raise InvalidParameter(f"mount source {wanted.source}: not found") from None
        self._bind(str(path), wanted.target, rw=not wanted.read_only)

    async def _digest(self, wanted: RunMount, origin: StageState | Context) -> str:
        """Return the digest of what a bind mount shows. A stage's is that of its layers: nothing is read."""
        if not isinstance(origin, Context):
            text = " ".join([wanted.source, *origin.diff_ids])
            return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
        digest = hashlib.sha256()
        gatherer = Gatherer(origin.root, kept=lambda _: True, with_owners=False)
        try:
            await anyio.to_thread.run_sync(
                gatherer.gather, posixpath.normpath("/" + wanted.source).lstrip("/"), digest
            )
        except OSError:
            raise InvalidParameter(f"mount source {wanted.source}: not found") from None
        return digest.hexdigest()


def _secret_id(wanted: RunMount) -> str:
    return wanted.id or wanted.target.rpartition("/")[2]

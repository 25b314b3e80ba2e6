# SPDX-License-Identifier: Apache-2.0
"""Files of containers that only a guest's kernel can reach: copied, listed and exported by the guest's agent.

A running one is asked itself; for another one a machine is started that has the disks and begins no
program, and the unit's lock is held until the copy is over: the disk is that machine's alone. Whatever the
guest says is a stranger's: its archives are read by the confined child and written anew.

Source: proa.runtime.seam.FileTask; decision 0041.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio

from proa.engine.container import Container, State
from proa.engine.launcher import Launcher
from proa.engine.registry import Registry
from proa.engine.unit import Units
from proa.model.errors import Conflict, EngineError, Internal, InvalidParameter, StartFailed, WrongState
from proa.runtime.seam import FilesKind, FilesRequest, FileTask, Process, StreamId
from proa.storage.files import trees
from proa.storage.files.paths import base_name, clean, go_mode
from proa.storage.files.trees import PathMissing, PathStat, WriteRules
from proa.storage.rootfs import Roots

FOUND_MAX = 64 * 1024  # bytes of what was found at a path
MESSAGE_MAX = 1000
_INVALID, _MISSING = 1, 2  # exit codes, see FileTask.open_files
_KEY_LENGTH, _KEY_MODE, _KEY_TIME, _KEY_TARGET = 36, 45, 21, 49


class GuestFiles:
    """The same as ``Files`` for containers whose root file system is a block device."""

    def __init__(self, *, registry: Registry, units: Units, launcher: Launcher, roots: Roots) -> None:
        self._registry = registry
        self._units = units
        self._launcher = launcher
        self._roots = roots

    async def stat(self, container: Container, path: str) -> PathStat:
        """Raises PathMissing, InvalidParameter."""
        request = FilesRequest(kind=FilesKind.STAT, path=_cleaned(path))
        async with self._operate(container, request) as operation:
            return await operation.found(path)

    @asynccontextmanager
    async def open_archive(
        self, container: Container, path: str
    ) -> AsyncIterator[tuple[PathStat, AsyncIterator[bytes]]]:
        """Raises PathMissing, InvalidParameter on entering."""
        name = base_name(_cleaned(path))
        request = FilesRequest(kind=FilesKind.READ, path=_cleaned(path), name=name)
        async with self._operate(container, request) as operation:
            found = await operation.found(path)
            rewritten = trees.open_rewritten(operation.output(), empty=self._roots.empty, below=name)
            async with rewritten as pieces:
                yield found, pieces

    @asynccontextmanager
    async def open_export(self, container: Container) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give the tar of the root file system, without what is mounted in it."""
        request = FilesRequest(kind=FilesKind.EXPORT)
        async with (
            self._operate(container, request) as operation,
            trees.open_rewritten(operation.output(), empty=self._roots.empty) as pieces,
        ):
            yield pieces

    async def put_archive(
        self, container: Container, path: str, stream: AsyncIterator[bytes], rules: WriteRules
    ) -> None:
        """Raises PathMissing, InvalidParameter."""
        request = FilesRequest(
            kind=FilesKind.WRITE,
            path=_cleaned(path),
            strict=rules.strict,
            user=rules.user,
            read_only_root=rules.read_only_root,
            volumes=rules.volumes,
        )
        rewritten = trees.open_rewritten(stream, empty=self._roots.empty, for_guest=True)
        async with self._operate(container, request) as operation:
            async with rewritten as pieces:
                await operation.feed(pieces)
            await operation.finish()

    @asynccontextmanager
    async def open_upper(self, container: Container, *, freeze: bool = False) -> AsyncIterator[Path]:
        """Give a directory like the overlay's upper one, a copy of what the container wrote."""
        request = FilesRequest(kind=FilesKind.UPPER, freeze=freeze and container.state is State.RUNNING)
        async with self._roots.open_scratch(container.id) as upper:
            async with self._operate(container, request) as operation:
                await trees.unpack_upper(upper, operation.output())
                await operation.finish()
            yield upper

    # --- machinery ---

    @asynccontextmanager
    async def _operate(self, container: Container, request: FilesRequest) -> AsyncIterator[_Operation]:
        mounted = request.kind not in (FilesKind.UPPER, FilesKind.EXPORT)
        async with self._open_task(container, mounted=mounted) as task:
            try:
                process = await task.open_files(request)
            except StartFailed as error:
                raise InvalidParameter(error.message) from error
            operation = _Operation(process)
            try:
                yield operation
            finally:
                with anyio.CancelScope(shield=True):
                    await operation.close()

    @asynccontextmanager
    async def _open_task(self, container: Container, *, mounted: bool) -> AsyncIterator[FileTask]:
        unit = self._units[container.id]
        async with AsyncExitStack() as stack:
            async with AsyncExitStack() as locked:
                await locked.enter_async_context(unit.lock)
                with self._units.checked(unit):
                    container = self._registry.get(unit.id)
                if container.state in (State.DEAD, State.REMOVING):
                    raise Conflict(f"container {container.id} is {container.state.value}")
                if not container.is_alive:
                    stack.push_async_exit(locked.pop_all())
                    task = await stack.enter_async_context(
                        self._launcher.serve_files(container, mounted=mounted)
                    )
                elif isinstance(unit.task, FileTask):
                    task = unit.task
                else:
                    raise WrongState(f"container {container.id} cannot be reached")
            yield task


class _Operation:
    """A process that serves files, and what it says."""

    def __init__(self, process: Process) -> None:
        assert process.stdio is not None  # FileTask attaches always
        self._process = process
        self._stdio = process.stdio
        self._rest = b""
        self._errors = b""
        self._is_over = False

    async def found(self, path: str) -> PathStat:
        """Read what it found at ``path``. Raises what it refuses with."""
        size = int.from_bytes(await self._take(4), "little")
        if size > FOUND_MAX:
            raise Internal("the virtual machine's agent answered nonsense")
        fields = _fields(await self._take(size))
        mode = int.from_bytes(fields.get(_KEY_MODE, b"")[:4], "little")
        return PathStat(
            name=base_name(_cleaned(path)),
            size=min(int.from_bytes(fields.get(_KEY_LENGTH, b"")[:8], "little"), 2**63 - 1),
            mode=go_mode(mode),
            mtime_ns=int.from_bytes(fields.get(_KEY_TIME, b"")[:8], "little", signed=True),
            target=fields.get(_KEY_TARGET, b"").decode(errors="replace"),
        )

    async def output(self) -> AsyncIterator[bytes]:
        """Yield the rest of its output. Raises, at the end of it, what it failed with."""
        if self._rest:
            rest, self._rest = self._rest, b""
            yield rest
        while piece := await self._receive():
            yield piece
        await self.finish()

    async def feed(self, pieces: AsyncIterator[bytes]) -> None:
        """Give it its input, until it wants no more."""
        with contextlib.suppress(anyio.BrokenResourceError):
            async for piece in pieces:
                await self._stdio.send(piece)
            await self._stdio.send_eof()

    async def finish(self) -> None:
        """Wait for its success. Raises what it failed with."""
        while await self._receive():
            pass
        status = await self._process.wait()
        if status.code == 0:
            return
        text = self._errors[:MESSAGE_MAX].decode(errors="replace")
        message = "".join(c if c.isprintable() else "\ufffd" for c in text) or "the agent failed"
        if status.code == _MISSING:
            raise PathMissing(message)
        raise InvalidParameter(message) if status.code == _INVALID else Internal(message)

    async def close(self) -> None:
        if not self._is_over:
            with contextlib.suppress(EngineError):
                await self._process.kill()
        await self._stdio.aclose()

    async def _take(self, count: int) -> bytes:
        while len(self._rest) < count:
            piece = await self._receive()
            if not piece:
                await self.finish()
                raise Internal("the virtual machine's agent said too little")
            self._rest += piece
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    async def _receive(self) -> bytes:
        """Return the next piece of standard output, empty at the end."""
        while not self._is_over:
            try:
                stream, data = await self._stdio.receive()
            except anyio.EndOfStream:
                self._is_over = True
                break
            if stream is StreamId.STDOUT:
                return data
            self._errors = (self._errors + data)[:MESSAGE_MAX]
        return b""


def _fields(payload: bytes) -> dict[int, bytes]:
    """Read fields ``u16 key, u32 length, bytes``; what is cut short is left out."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 6 <= len(payload):
        key = int.from_bytes(payload[at : at + 2], "little")
        length = int.from_bytes(payload[at + 2 : at + 6], "little")
        found[key] = payload[at + 6 : at + 6 + length]
        at += 6 + length
    return found


def _cleaned(path: str) -> str:
    if "\0" in path:
        raise InvalidParameter(f"lstat {path!r}: invalid argument")
    return clean(path)

# SPDX-License-Identifier: Apache-2.0
"""Trees of files, read and written as tar by a confined child: the face of this package.

A *tree* is said by where it is: a directory with mounts over it, or the mount namespace of something running.
Every call starts one child (20 ms), which ends with the call, however that ends: also when it is cancelled,
or the daemon is killed. Nothing here blocks the event loop, and memory does not grow with a tree or an
archive.

Source: Engine API, ContainerArchive, PutContainerArchive, ContainerExport, ContainerChanges.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import sysconfig
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

import proa
from proa.host import process
from proa.model.errors import EngineError, Internal, InvalidParameter, NotFound, ToolFailed
from proa.model.ids import Digest

PIPE_BYTES = 1 << 20  # the most an unprivileged pipe holds; fewer switches between us and the child
PIECE_BYTES = 256 * 1024
ANSWER_MAX = 1 << 20  # bytes of one line from the child
_BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from proa.storage.files.program import main; main()"
)
_STDERR_BYTES = 16 * 1024

Json = dict[str, Any]  # Any: what the child says


class PathMissing(NotFound):
    """There is nothing at a path inside the tree. Callers word it for their users."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeMount:
    """A directory or file of the host, seen at ``target`` of a tree, with what is mounted below it.

    :ivar subpath: inside ``source``, where a stranger may have put links: they do not lead out of it.
    """

    source: Path
    target: str
    read_only: bool = False
    subpath: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Where a tree is.

    :ivar root: its directory, a mount point or not; ``mounts`` come over it, in their order, and their
        targets are made where they are missing.
    :ivar namespace: a descriptor of a mount namespace instead, of which the tree is the root. It is not
        closed.
    """

    root: Path = Path("/nonexistent")
    mounts: Sequence[TreeMount] = ()
    namespace: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class PathStat:
    """What is at a path. ``mode`` has the bits of Go's FileMode; ``target`` is where a link ends."""

    name: str
    size: int
    mode: int
    mtime_ns: int
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteRules:
    """How an archive is put into a tree.

    :ivar strict: refuse to replace a directory by something else, and the other way round.
    :ivar user: as ContainerConfig.User, looked up in the tree: the owner of all that is made. "" keeps the
        archive's owners.
    :ivar read_only_root: refuse to write outside of ``volumes`` (target, whether it may be written).
    """

    strict: bool = False
    user: str = ""
    read_only_root: bool = False
    volumes: Sequence[tuple[str, bool]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLayer:
    """A layer's tar. ``diff_id`` is its digest; ``is_empty`` when it changes nothing."""

    diff_id: Digest
    size_bytes: int
    is_empty: bool


async def stat_path(tree: Tree, path: str) -> PathStat:
    """Look a path up. Raises PathMissing, InvalidParameter."""
    async with _child(tree, {"do": "stat", "path": path}) as child:
        return _path_stat(await child.found())


@contextlib.asynccontextmanager
async def open_archive(tree: Tree, path: str) -> AsyncIterator[tuple[PathStat, AsyncIterator[bytes]]]:
    """Give what is at the path, and the tar of it, named and cut as ``docker cp`` wants it.

    The pieces must be read inside the block; one that leaves it early ends the child.

    :raises PathMissing, InvalidParameter: on entering.
    :raises EngineError: while reading, when something cannot be read.
    """
    async with _child(tree, {"do": "read", "path": path}, reads=True) as child:
        yield _path_stat(await child.found()), child.pieces()


@contextlib.asynccontextmanager
async def open_export(tree: Tree) -> AsyncIterator[AsyncIterator[bytes]]:
    """Give the tar of the whole tree; names without a leading slash, in the same order each time."""
    async with _child(tree, {"do": "export"}, reads=True) as child:
        await child.found()
        yield child.pieces()


async def put_archive(tree: Tree, path: str, stream: AsyncIterator[bytes], rules: WriteRules) -> None:
    """Unpack an archive (plain, gzip, bzip2, xz or zstd) into the directory at the path.

    What was unpacked before a fault stays. What follows the archive's end is not read.

    :raises PathMissing: there is no such directory.
    :raises InvalidParameter: the archive is broken or hostile, or may not go there; the message says why.
    """
    request = {
        "do": "write",
        "path": path,
        "strict": rules.strict,
        "user": rules.user,
        "read_only_root": rules.read_only_root,
        "volumes": list(rules.volumes),
    }
    async with _child(tree, request, writes=True) as child:
        await child.feed(stream)
        await child.done()


async def pack_upper(
    upper: Path, below: int, out: int, *, ignored: Collection[str] = (), image: int = -1
) -> PackedLayer:
    """Write what an overlay's upper directory changes as a layer's tar to the file ``out``.

    Whiteouts and opaque directories become what the OCI image-spec says. Whoever may write to the overlay
    should be frozen meanwhile.

    :param below: a descriptor of the directory that the layers below make together (``Layers.open_merged``);
        -1 when there are none.
    :param ignored: paths without a leading slash that are no change when they are empty and not below: what a
        runtime makes to mount on.
    :param image: an empty file for the layer's EROFS image, unless it is -1; ``out`` must be readable then.
    :raises InvalidParameter: a file cannot be part of a layer.
    :raises Internal: the disk is full.
    """
    request = {"do": "layer", "below": below, "out": out, "ignored": list(ignored), "image": image}
    fds = [fd for fd in (below, out, image) if fd >= 0]
    async with _child(Tree(root=upper), request, pass_fds=fds) as child:
        done = await child.done()
    return PackedLayer(
        diff_id=Digest(f"sha256:{done['digest']}"), size_bytes=done["size"], is_empty=not done["members"]
    )


async def assemble_layer(
    plan: Json, *, trees: Collection[int], below: int, out: int, image: int, empty: Path
) -> PackedLayer:
    """Write the layer of a COPY or ADD to the file ``out``, and its EROFS image to ``image``. The plan
    is as ``assemble`` reads it.

    :param trees: the descriptors that the plan names.
    :param below: a descriptor of the directory that the layers below make together; -1 when there are none.
    :param empty: an empty directory, which becomes the child's root.
    :raises InvalidParameter: a file cannot go where it should, or an archive is broken; the message says why.
    :raises Internal: the disk is full.
    """
    with os.fdopen(os.memfd_create("plan", os.MFD_CLOEXEC), "wb") as file:
        file.write(json.dumps(plan).encode())
        file.flush()
        file.seek(0)
        unpacks = any(item[0] == "archive" for item in plan["items"])
        request: Json = {"do": "assemble", "plan": file.fileno(), "below": below, "out": out}
        request |= {"image": image, "unpacks": unpacks}
        fds = {file.fileno(), out, image, *trees} | ({below} if below >= 0 else set())
        async with _child(Tree(root=empty), request, pass_fds=fds) as child:
            done = await child.done()
    return PackedLayer(
        diff_id=Digest(f"sha256:{done['digest']}"), size_bytes=done["size"], is_empty=not done["members"]
    )


@contextlib.asynccontextmanager
async def open_rewritten(
    stream: AsyncIterator[bytes], *, empty: Path, below: str | None = None, for_guest: bool = False
) -> AsyncIterator[AsyncIterator[bytes]]:
    """Give a stranger's archive checked and written anew; see ``rewrite.rewrite``.

    Whatever ``stream`` raises is raised where the block ends, in a group.

    :param empty: an empty directory, which becomes the child's root.
    """
    request: Json = {"do": "rewrite", "below": below, "for_guest": for_guest}
    async with (
        _child(Tree(root=empty), request, reads=True, writes=True) as child,
        anyio.create_task_group() as feeding,
    ):
        feeding.start_soon(child.feed, stream)
        await child.found()
        yield child.pieces()
        feeding.cancel_scope.cancel()


async def unpack_upper(directory: Path, stream: AsyncIterator[bytes]) -> None:
    """Unpack the tar of an overlay's upper directory into an empty one, with its whiteouts and opaque marks.

    :raises InvalidParameter: the archive is broken.
    :raises Internal: the disk is full.
    """
    async with _child(Tree(root=directory), {"do": "unpack_upper"}, writes=True) as child:
        await child.feed(stream)
        await child.done()


@contextlib.asynccontextmanager
async def open_changes(
    upper: Path, below: int, *, ignored: Collection[str] = ()
) -> AsyncIterator[AsyncIterator[tuple[int, str]]]:
    """Give kind (0 modified, 1 added, 2 deleted) and absolute path of each change, however many there are.

    Parameters as of ``pack_upper``. They must be read inside the block.
    """
    request = {"do": "changes", "below": below, "ignored": list(ignored)}
    fds = [below] if below >= 0 else []
    async with _child(Tree(root=upper), request, reads=True, pass_fds=fds) as child:
        await child.found()
        yield _changes(child)


async def _changes(child: _Child) -> AsyncIterator[tuple[int, str]]:
    rest = b""
    async for piece in child.pieces():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            for kind, path in json.loads(line):
                yield kind, path


# --- the child ---


class _Child:
    """A running child and our ends of its pipes."""

    def __init__(self, spawned: process.Spawned, answers: int, errors: int, output: int, feed: int) -> None:
        self._spawned = spawned
        self._answers = answers
        self._errors = errors
        self._output = output
        self._input = feed
        self._text = b""

    async def found(self) -> Json:
        """Wait until it has found what was asked for. Raises what it refuses with."""
        return dict((await self._answer())["found"])

    async def done(self) -> Json:
        """Wait for its success. Raises what it failed with."""
        answer = await self._answer()
        return dict(answer["done"] or {})

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield its output. Raises, at the end of it, what it failed with."""
        while True:
            try:
                data = os.read(self._output, PIECE_BYTES)
            except BlockingIOError:
                await anyio.wait_readable(self._output)
                continue
            if not data:
                break
            yield data
        await self.done()

    async def feed(self, stream: AsyncIterator[bytes]) -> None:
        """Give it its input, until it wants no more."""
        try:
            async for data in stream:
                view = memoryview(data)
                while view:
                    try:
                        view = view[os.write(self._input, view) :]
                    except BlockingIOError:
                        await anyio.wait_writable(self._input)
        except BrokenPipeError:
            return
        finally:
            os.close(self._input)
            self._input = -1

    def close(self) -> None:
        for fd in (self._answers, self._errors, self._output, self._input):
            if fd >= 0:
                os.close(fd)

    async def stop(self) -> None:
        await self._spawned.stop(grace_s=0)

    async def _answer(self) -> Json:
        while b"\n" not in self._text:
            try:
                data = os.read(self._answers, 65536)
            except BlockingIOError:
                await anyio.wait_readable(self._answers)
                continue
            if not data or len(self._text) > ANSWER_MAX:
                raise await self._failure()
            self._text += data
        line, _, self._text = self._text.partition(b"\n")
        answer: Json = json.loads(line)
        if "error" in answer:
            raise _error(*answer["error"])
        return answer

    async def _failure(self) -> EngineError:
        status = await self._spawned.wait()
        text = b""
        with contextlib.suppress(BlockingIOError):
            text = os.read(self._errors, _STDERR_BYTES)
        return ToolFailed(["file program"], status, text.decode(errors="replace"))


@contextlib.asynccontextmanager
async def _child(
    tree: Tree, request: Json, *, reads: bool = False, writes: bool = False, pass_fds: Collection[int] = ()
) -> AsyncIterator[_Child]:
    with contextlib.ExitStack() as theirs:
        ours: list[int] = []
        try:
            answers, their_answers = _pipe(ours, theirs)
            errors, their_errors = _pipe(ours, theirs)
            output, their_output = _pipe(ours, theirs) if reads else (-1, None)
            feed, their_input = _pipe(ours, theirs, inward=True) if writes else (-1, None)
            request = {
                **request,
                "root": os.fspath(tree.root),
                "mounts": [
                    [os.fspath(one.source), one.subpath, one.target, one.read_only] for one in tree.mounts
                ],
                "namespace": tree.namespace,
            }
            passed = {their_answers, *pass_fds, *([tree.namespace] if tree.namespace >= 0 else [])}
            spawned = process.spawn_now(
                [
                    *(sys.executable, "-I", "-S", "-c", _BOOTSTRAP),
                    Path(proa.__file__).parents[1],
                    str(their_answers),
                    sysconfig.get_path("platlib"),
                    json.dumps(request),
                ],
                stdin=their_input,
                stdout=their_output,
                stderr=their_errors,
                pass_fds=passed,
            )
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
    child = _Child(spawned, answers, errors, output, feed)
    try:
        yield child
    finally:
        await child.stop()
        child.close()


def _pipe(ours: list[int], theirs: contextlib.ExitStack, *, inward: bool = False) -> tuple[int, int]:
    """Return our end and the child's of a pipe; ``inward`` when the child reads."""
    read, write = os.pipe2(os.O_CLOEXEC)
    mine, other = (write, read) if inward else (read, write)
    ours.append(mine)
    theirs.callback(os.close, other)
    os.set_blocking(mine, False)
    with contextlib.suppress(OSError):  # a limit of all pipes of a user; then it is a slower one
        fcntl.fcntl(mine, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return mine, other


def _path_stat(found: Json) -> PathStat:
    return PathStat(**found)


def _error(kind: str, message: str) -> EngineError:
    if kind == "missing":
        return PathMissing(message)
    return InvalidParameter(message) if kind == "invalid" else Internal(message)


def open_namespace(pid: int, root: Path) -> int:
    """Open the mount namespace of a process, whose root must be the file system mounted at ``root``.

    Returns a descriptor for ``Tree.namespace``; -1 when the process has ended, and its number, perhaps, is
    another's by now.
    """
    try:
        fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/root").stat().st_dev == root.stat().st_dev:
            return fd
    os.close(fd)
    return -1

# SPDX-License-Identifier: Apache-2.0
"""The Dockerfile front end's attributes as a request for proa's builder, and where its context comes from.

Source: BuildKit, frontend/dockerui (config.go, attr.go), frontend/dockerfile; buildx, build/opt.go.
"""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from proa.api.buildkit.board import Board
from proa.api.buildkit.sessions import Session
from proa.build.ignore import read_ignore_file
from proa.build.lexer import MAX_BYTES
from proa.engine.building.request import BuildRequest, ContextSource
from proa.model.config import HostConfig, Ulimit
from proa.model.errors import InvalidParameter, NotImplementedHere

NAME = "dockerfile.v0"
UPLOAD = "http://buildkit-session"
DOCKERFILE = "Dockerfile"
IGNORE = ".dockerignore"
NO_CONTEXTS = "the build context {name} is not supported: give a directory, docker-image:// or an address"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A build as it is asked for: the request, and where the client has its files.

    :ivar upload: the path of an archive on the client's standard input, "" when there is none.
    :ivar local_dockerfile: the Dockerfile is in a directory of the client.
    """

    request: BuildRequest
    context: str
    dockerfile: str
    upload: str
    local_dockerfile: bool


def read_attributes(attrs: Mapping[str, str], tags: Sequence[str], caches: Sequence[str]) -> Wanted:
    """Read what a client asks. Raises InvalidParameter, NotImplementedHere for what is not there."""
    _refuse(attrs)
    remote = attrs.get("context", "")
    upload = remote.removeprefix(UPLOAD) if remote.startswith(UPLOAD) else ""
    request = BuildRequest(
        dockerfile=attrs.get("filename") or DOCKERFILE,
        tags=tuple(tags),
        remote="" if upload else remote,
        build_args=_prefixed(attrs, "build-arg:"),
        labels=_prefixed(attrs, "label:"),
        target=attrs.get("target", ""),
        no_cache=attrs.get("no-cache") == "",  # with a value it is that of --no-cache-filter
        no_cache_stages=frozenset(attrs.get("no-cache", "").lower().split(",")) - {""},
        cache_from=tuple(caches),
        pull=attrs.get("image-resolve-mode") == "pull",
        platform=attrs.get("platform", "").lower(),
        host=HostConfig(
            network_mode=_network(attrs.get("force-network-mode", "")),
            extra_hosts=_hosts(attrs.get("add-hosts", "")) or None,
            cgroup_parent=attrs.get("cgroup-parent", ""),
            shm_size=_number(attrs, "shm-size"),
            ulimits=_ulimits(attrs.get("ulimit", "")) or None,
        ),
    )
    return Wanted(
        request=request,
        context=attrs.get("contextkey") or "context",
        dockerfile=attrs.get("dockerfilekey") or "dockerfile",
        upload=upload,
        local_dockerfile=not remote or "dockerfilekey" in attrs,
    )


def _refuse(attrs: Mapping[str, str]) -> None:
    for name, source in _prefixed(attrs, "context:").items():
        if source.startswith(("input:", "oci-layout:")):
            raise NotImplementedHere(NO_CONTEXTS.format(name=name))
    if "requestid" in attrs:
        raise NotImplementedHere(f"proa does not answer {attrs['requestid']}: it only builds")
    if "," in attrs.get("platform", ""):
        raise InvalidParameter("proa builds for one platform at a time")


# --- files of the client ---


async def load_dockerfile(wanted: Wanted, session: Session, board: Board) -> str:
    """Return the Dockerfile. Raises InvalidParameter when there is none."""
    name = wanted.request.dockerfile
    with board.step(f"[internal] load build definition from {name}") as key:
        files = await _files(session, wanted.dockerfile, [name], board, key, "dockerfile")
        data = files.get(name)
        if data is None:
            raise InvalidParameter(f"failed to read dockerfile: open {name}: no such file or directory")
        return data.decode(errors="replace")


async def load_ignored(wanted: Wanted, session: Session, board: Board) -> list[str]:
    """Return the patterns of what the context is sent without."""
    name = wanted.request.dockerfile
    own = f"{name}{IGNORE}"
    with board.step(f"[internal] load {IGNORE}") as key:
        found = await _files(session, wanted.dockerfile, [own], board, key, "context")
        if own not in found:
            found = await _files(session, wanted.context, [IGNORE], board, key, "context")
        data = found.get(own, found.get(IGNORE, b""))
        return read_ignore_file(data.decode(errors="replace"))


@asynccontextmanager
async def open_context(
    wanted: Wanted, session: Session, board: Board, ignored: Sequence[str], knows: Callable[[str], bool]
) -> AsyncIterator[tuple[str, AsyncGenerator[bytes, None]]]:
    """Give the context's key and its tar, which is not read when the key is known.

    As with BuildKit, a directory has not changed when no name, size, mode or time (in ns) in it has.
    """
    async with AsyncExitStack() as stack:
        with ExitStack() as step:
            vertex = step.enter_context(board.step("[internal] load build context"))
            if wanted.upload:
                key, pieces = "", session.upload(wanted.upload)
            else:
                directory = await stack.enter_async_context(
                    session.directory(wanted.context, excludes=ignored)
                )
                key, pieces = directory.digest(), directory.tar()
                key = f"{session.shared_key} {wanted.context} {key}" if session.shared_key else ""
            shown = ExitStack() if knows(key) else step.pop_all()
        stack.push(shown)  # should nobody read the tar
        yield key, _taken(pieces, shown, board, vertex)


async def _taken(
    pieces: AsyncGenerator[bytes, None], step: ExitStack, board: Board, vertex: str
) -> AsyncGenerator[bytes, None]:
    """Pass a context on; its step ends with it."""
    total, label = 0, "transferring context:"
    with step:
        async with aclosing(pieces):
            async for piece in pieces:
                total += len(piece)
                board.status(vertex, label, total)
                yield piece
        board.status(vertex, label, total, done=True)


async def _files(
    session: Session, directory: str, names: Sequence[str], board: Board, key: str, what: str
) -> dict[str, bytes]:
    """Return those of a few text files that are there; a link is followed by the client."""
    archive = bytearray()
    async with (
        session.directory(directory, includes=names, follows=names) as found_there,
        aclosing(found_there.tar()) as pieces,
    ):
        async for piece in pieces:
            archive += piece
            if len(archive) > 2 * MAX_BYTES:
                raise InvalidParameter(f"the files {', '.join(names)} are larger than {MAX_BYTES} bytes")
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(bytes(archive))) as tar:
        for name in names:
            data = _read(tar, name)
            if data is not None:
                found[name] = data
    board.status(key, f"transferring {what}:", sum(map(len, found.values())), done=True)
    return found


def _read(tar: tarfile.TarFile, name: str) -> bytes | None:
    try:
        file = tar.extractfile(name)  # follows links inside the archive
    except KeyError:
        return None
    except RecursionError:
        raise InvalidParameter(f"open {name}: too many levels of symbolic links") from None
    return file.read() if file is not None else None


def named_contexts(attrs: Mapping[str, str], session: Session) -> dict[str, ContextSource]:
    """Return the contexts of ``--build-context``; the client's directories are taken when they are called."""
    return {
        name: partial(_local, session, source.removeprefix("local:"))
        if source.startswith("local:")
        else source
        for name, source in _prefixed(attrs, "context:").items()
    }


async def _local(session: Session, name: str) -> AsyncGenerator[bytes, None]:
    async with session.directory(name) as directory, aclosing(directory.tar()) as pieces:
        async for piece in pieces:
            yield piece


# --- values ---


def _prefixed(attrs: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {key.removeprefix(prefix): value for key, value in attrs.items() if key.startswith(prefix)}


def _network(mode: str) -> str:
    return "" if mode == "sandbox" else mode


def _hosts(text: str) -> list[str]:
    found = []
    for entry in next(csv.reader([text]), []):
        host, equals, address = entry.partition("=")
        if not equals or not host or not address:
            raise InvalidParameter(f"invalid key-value pair {entry} in add-hosts")
        found.append(f"{host}:{address}")
    return found


def _number(attrs: Mapping[str, str], name: str) -> int:
    text = attrs.get(name) or "0"
    if not (text.isascii() and text.isdecimal()):
        raise InvalidParameter(f"{name}: invalid number {text!r}")
    return int(text)


def _ulimits(text: str) -> list[Ulimit]:
    found = []
    for entry in next(csv.reader([text]), []):
        name, _, limits = entry.partition("=")
        soft, _, hard = limits.partition(":")
        try:
            found.append(Ulimit(name=name, soft=int(soft), hard=int(hard or soft)))
        except ValueError as error:
            raise InvalidParameter(f"invalid ulimit {entry!r}") from error
    return found

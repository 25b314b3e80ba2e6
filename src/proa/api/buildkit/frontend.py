# SPDX-License-Identifier: Apache-2.0
"""The Dockerfile front end's attributes as a request for proa's builder, and where its context comes from.

Source: BuildKit, frontend/dockerui (config.go, attr.go), frontend/dockerfile; buildx, build/opt.go.
"""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from proa.api.buildkit.board import Board
from proa.api.buildkit.sessions import Session
from proa.build.ignore import read_ignore_file
from proa.build.lexer import MAX_BYTES
from proa.engine.building.request import BuildRequest
from proa.model.config import HostConfig, Ulimit
from proa.model.errors import InvalidParameter, NotImplementedHere

NAME = "dockerfile.v0"
UPLOAD = "http://buildkit-session"
DOCKERFILE = "Dockerfile"
IGNORE = ".dockerignore"
NO_CONTEXTS = (
    "proa's BuildKit API has no further build contexts yet (--build-context {name}): "
    "copy the files into the context, or name the image in the Dockerfile"
)


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
        no_cache="no-cache" in attrs,
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
    for key in attrs:
        if key.startswith("context:"):
            raise NotImplementedHere(NO_CONTEXTS.format(name=key.removeprefix("context:")))
    if "requestid" in attrs:
        raise NotImplementedHere(f"proa does not answer {attrs['requestid']}: it only builds")
    if "," in attrs.get("platform", ""):
        raise InvalidParameter("proa builds for one platform at a time")
    if attrs.get("no-cache"):
        raise NotImplementedHere("--no-cache-filter is not supported: use --no-cache, for all stages")


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


async def context_of(
    wanted: Wanted, session: Session, board: Board, ignored: Sequence[str]
) -> AsyncGenerator[bytes, None]:
    """Yield the context as a tar."""
    with board.step("[internal] load build context") as key:
        taken = 0

        def told(count: int) -> None:
            nonlocal taken
            taken = count
            board.status(key, "transferring context:", count)

        if wanted.upload:
            async with aclosing(session.upload(wanted.upload)) as pieces:
                async for piece in pieces:
                    told(taken + len(piece))
                    yield piece
        else:
            async with aclosing(session.directory(wanted.context, told, excludes=ignored)) as pieces:
                async for piece in pieces:
                    yield piece
        board.status(key, "transferring context:", taken, done=True)


async def _files(
    session: Session, directory: str, names: Sequence[str], board: Board, key: str, what: str
) -> dict[str, bytes]:
    """Return those of a few text files that are there; a link is followed by the client."""
    archive = bytearray()
    label = f"transferring {what}:"

    def told(count: int) -> None:
        board.status(key, label, count)

    async with aclosing(session.directory(directory, told, includes=names, follows=names)) as pieces:
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
    board.status(key, label, sum(map(len, found.values())), done=True)
    return found


def _read(tar: tarfile.TarFile, name: str) -> bytes | None:
    try:
        file = tar.extractfile(name)  # follows links inside the archive
    except KeyError:
        return None
    except RecursionError:
        raise InvalidParameter(f"open {name}: too many levels of symbolic links") from None
    return file.read() if file is not None else None


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

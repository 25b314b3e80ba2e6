# SPDX-License-Identifier: Apache-2.0
"""Git repositories: which commit a name means, and its files as a tar.

git runs in a confined child (``proa.distribution.git_program``), because a repository and its server are
strangers: without privileges, as nobody, with a root of its own in which there is nothing but programs, for a
bounded time and on a bounded amount of disk.

Source: git-ls-remote(1), git-fetch(1); BuildKit, what its git source does.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio

import proa
from proa.host import process
from proa.model.errors import InvalidParameter, ToolFailed

RESOLVE_S = 60.0
FETCH_S = 600.0
MAX_BYTES = 16 << 30  # on disk, the repository and its files together
_BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from proa.distribution.git_program import main; main()"
)
_FAILED = 3  # the child's status when git failed
_PIECE = 256 * 1024
_PIPE_BYTES = 1 << 20
_STDERR_BYTES = 16 * 1024
_ANSWER_MAX = 16 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")

Json = dict[str, Any]  # Any: the child's request


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """Where a repository is, and how to be let in.

    :ivar token: for http and https, "" without.
    :ivar agent: the socket of an SSH agent below the place where git works; None without.
    """

    url: str
    shown: str
    token: str = ""
    agent: Path | None = None


class Git:
    """Asks git servers. ``environment`` names proxies; None means the process's own."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = os.environ if environment is None else environment

    async def resolve(self, repository: Repository, ref: str, place: Path) -> str:
        """Return the commit that a branch, tag or commit means now; "" is the default branch.

        :param place: an empty directory to work in.
        :raises InvalidParameter: there is no such repository or ref, or it cannot be reached.
        """
        if _COMMIT.fullmatch(ref):
            return ref
        request = self._request(repository, place, {"do": "resolve", "ref": ref})
        text = b""
        async with _open(repository, request, RESOLVE_S) as pieces:
            async for piece in pieces:
                text += piece
                if len(text) > _ANSWER_MAX:
                    raise InvalidParameter(f"failed to list refs of {repository.shown}: there are too many")
        found = choose_commit(text.decode(errors="replace"), ref)
        if found is None:
            raise InvalidParameter(
                f"repository does not contain ref {ref or 'HEAD'}, output: {repository.shown}"
            )
        return found

    @asynccontextmanager
    async def open_tree(
        self, repository: Repository, commit: str, ref: str, directory: str, *, keep: bool, place: Path
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give the tar of a commit's files with those of its submodules, owned by 0:0.

        :param keep: leave the directory ``.git`` in it.
        :param place: an empty directory to work in; what is left in it is the caller's to remove.
        :raises InvalidParameter: while reading: it is not there, or exceeds a limit.
        """
        request = self._request(
            repository,
            place,
            {"do": "fetch", "commit": commit, "ref": ref, "directory": directory, "keep": keep},
        )
        async with _open(repository, request, FETCH_S) as pieces:
            yield pieces

    def _request(self, repository: Repository, place: Path, what: Json) -> Json:
        if shutil.which("git") is None:
            raise InvalidParameter("git is not installed on the daemon's host: apt install git")
        settings: list[tuple[str, str]] = []
        if repository.token and "://" in repository.url:
            parts = urlsplit(repository.url)
            told = base64.b64encode(f"x-access-token:{repository.token}".encode()).decode()
            host = parts.netloc.rpartition("@")[2]
            settings.append((f"http.{parts.scheme}://{host}/.extraheader", f"Authorization: basic {told}"))
        return {
            **what,
            "url": repository.url,
            "place": os.fspath(place),
            "agent": repository.agent.name if repository.agent else "",
            "settings": settings,
            "env": {name: self._environment[name] for name in _PROXIES if name in self._environment},
            "max_bytes": MAX_BYTES,
        }


def choose_commit(listing: str, ref: str) -> str | None:
    """Return the commit that a ref means in what ``git ls-remote`` said, None when it is not there.

    A full name first, then a branch, then a tag, which may point to an object that points to the commit.
    """
    found: dict[str, str] = {}
    for line in listing.splitlines():
        commit, tab, name = line.partition("\t")
        if tab and _COMMIT.fullmatch(commit):
            found[name] = commit
    names: Sequence[str] = [ref, f"refs/heads/{ref}", f"refs/tags/{ref}"] if ref else ["HEAD"]
    for name in names:
        if name in found:
            return found.get(f"{name}^{{}}", found[name])
    return None


@asynccontextmanager
async def _open(
    repository: Repository, request: Json, timeout_s: float
) -> AsyncIterator[AsyncIterator[bytes]]:
    """Start the child; give its output."""
    with ExitStack() as ours:
        with ExitStack() as theirs:
            question = os.memfd_create("request", os.MFD_CLOEXEC)
            theirs.callback(os.close, question)
            os.write(question, json.dumps(request).encode())
            os.lseek(question, 0, os.SEEK_SET)
            output, their_output = _pipe(ours, theirs)
            errors, their_errors = _pipe(ours, theirs)
            child = process.spawn_now(
                [*(sys.executable, "-I", "-S", "-c", _BOOTSTRAP), Path(proa.__file__).parents[1]],
                stdin=question,
                stdout=their_output,
                stderr=their_errors,
            )
        try:
            with anyio.move_on_after(timeout_s) as deadline:
                yield _pieces(repository, child, output, errors)
            if deadline.cancelled_caught:
                raise InvalidParameter(
                    f"failed to fetch remote {repository.shown}: it took longer than {timeout_s:g} seconds"
                )
        finally:
            await child.stop()


async def _pieces(
    repository: Repository, child: process.Spawned, output: int, errors: int
) -> AsyncIterator[bytes]:
    while True:
        try:
            data = os.read(output, _PIECE)
        except BlockingIOError:
            await anyio.wait_readable(output)
            continue
        if not data:
            break
        yield data
    status = await child.wait()
    if status == 0:
        return
    text = b""
    with suppress(BlockingIOError):
        text = os.read(errors, _STDERR_BYTES)  # it is short: git's words go to a file first
    told = text.decode(errors="replace").strip()
    if status != _FAILED:
        raise ToolFailed(["git program"], status, told)
    raise InvalidParameter(f"failed to fetch remote {repository.shown}: {told}")


def _pipe(ours: ExitStack, theirs: ExitStack) -> tuple[int, int]:
    read, write = os.pipe2(os.O_CLOEXEC)
    ours.callback(os.close, read)
    theirs.callback(os.close, write)
    os.set_blocking(read, False)
    with suppress(OSError):  # a limit of all pipes of a user; then it is a slower one
        fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return read, write

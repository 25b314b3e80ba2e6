# SPDX-License-Identifier: Apache-2.0
"""Copies files into and out of a guest by its qemu-guest-agent, as tar, with the rules of ``docker cp``.

The guest's own tar packs and unpacks, in a temporary file that only its root can read: the agent keeps no
more than 16 MiB of what a command writes, but it reads and writes files piece by piece. So an error of tar is
known before the first byte goes out, and the guest needs room for the archive. What comes out is a guest's
word: bytes for the user, of which nothing is unpacked here.

Source: QEMU docs/interop/qemu-ga-ref, guest-file-open, guest-file-read, guest-file-write, guest-file-close;
Engine API, ContainerArchive, ContainerArchiveInfo, PutContainerArchive.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio

from proa.machines.agent import Agent
from proa.model.errors import EngineError, Internal, InvalidParameter, NotFound
from proa.storage.files.paths import base_name, clean, go_mode

PIECE_BYTES = 1024 * 1024
TAR_TIMEOUT_S = 3600.0  # for tens of gigabytes on a slow disk
_SHORT_TIMEOUT_S = 60.0  # for what takes milliseconds, under emulation on a busy host
_UNTIDY_TIMEOUT_S = 10.0  # for tidying up when the caller has gone
_ENV = ("LC_ALL=C", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
_MISSING = "No such file or directory"
_LOOK = """stat -c '%f %s %Y' "$1" || exit; if [ -L "$1" ]; then readlink -f "$1" || readlink "$1"; fi"""
_MAKE = """
for directory in /var/tmp /tmp /run; do mktemp "$directory/proa-cp.XXXXXX" 2>/dev/null && exit; done
echo 'there is no room for a temporary file in /var/tmp, /tmp or /run' >&2
exit 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestPath:
    """What is at a path of a guest.

    :ivar mode: with the bits of Go's FileMode.
    :ivar target: of a symbolic link: where it ends.
    """

    name: str
    size: int
    mode: int
    mtime_ns: int
    target: str


async def look(agent: Agent, path: str) -> GuestPath:
    """Tell what is at a path; a link at its end is followed when a slash or ``/.`` comes after it.

    :raises NotFound: nothing is.
    :raises InvalidParameter: the guest cannot say, with its reason.
    """
    path = clean(path)
    done = await agent.run(["/bin/sh", "-c", _LOOK, "sh", path], env=_ENV, timeout_s=_SHORT_TIMEOUT_S)
    if done.exit_code:
        reason = _last_line(done.stderr)
        if reason.endswith(_MISSING):
            raise NotFound(f"Could not find the file {path} in the virtual machine")
        raise InvalidParameter(f"the guest: {reason or 'it has no stat'}")
    first, _, target = done.stdout.decode(errors="replace").partition("\n")
    try:
        mode, size, mtime = first.split()
        return GuestPath(
            name=base_name(path),
            size=int(size),
            mode=go_mode(int(mode, 16)),
            mtime_ns=int(mtime) * 1_000_000_000,
            target=target.removesuffix("\n"),
        )
    except ValueError as error:
        raise Internal(f"the guest answers nonsense: {first!r}") from error


@asynccontextmanager
async def packed(agent: Agent, path: str) -> AsyncIterator[AsyncIterator[bytes]]:
    """Pack a file or directory in the guest; yields the pieces of the tar. Raises InvalidParameter."""
    directory, name = _split(clean(path))
    async with _temporary(agent) as archive:
        done = await agent.run(
            ["tar", "-C", directory, "-c", "-f", archive, "--", name], env=_ENV, timeout_s=TAR_TIMEOUT_S
        )
        # GNU tar ends with 1 when all was packed but something was written to meanwhile: logs are.
        if done.exit_code and not (done.exit_code == 1 and b"file changed as we read it" in done.stderr):
            raise InvalidParameter(f"the guest: {_last_line(done.stderr) or 'tar failed'}")
        async with _opened(agent, archive, "r") as handle:
            yield _read(agent, handle)


async def unpack(agent: Agent, path: str, pieces: AsyncIterator[bytes], *, keep_owner: bool) -> None:
    """Unpack a tar in a directory of the guest. Raises NotFound, InvalidParameter, Unavailable."""
    directory = clean(path)
    await look(agent, directory.rstrip("/") + "/.")
    async with _temporary(agent) as archive:
        async with _opened(agent, archive, "w") as handle:
            async for piece in pieces:
                for start in range(0, len(piece), PIECE_BYTES):
                    await _write(agent, handle, piece[start : start + PIECE_BYTES])
        owner = [] if keep_owner else ["-o"]
        command = ["tar", "-C", directory, "-x", "-p", *owner, "-f", archive]
        done = await agent.run(command, env=_ENV, timeout_s=TAR_TIMEOUT_S)
        if done.exit_code:
            raise InvalidParameter(f"the guest: {_last_line(done.stderr) or 'tar failed'}")


# --- machinery ---


@asynccontextmanager
async def _temporary(agent: Agent) -> AsyncIterator[str]:
    """A file in the guest that is gone at the end of the block."""
    done = await agent.run(["/bin/sh", "-c", _MAKE], env=_ENV, timeout_s=_SHORT_TIMEOUT_S)
    path = done.stdout.decode(errors="replace").removesuffix("\n")
    if done.exit_code or not path.startswith("/"):
        raise InvalidParameter(f"the guest: {_last_line(done.stderr) or 'it has no mktemp'}")
    try:
        yield path
    finally:
        with anyio.move_on_after(_UNTIDY_TIMEOUT_S, shield=True), contextlib.suppress(EngineError):
            await agent.run(["rm", "-f", path], env=_ENV, timeout_s=_UNTIDY_TIMEOUT_S)


@asynccontextmanager
async def _opened(agent: Agent, path: str, mode: str) -> AsyncIterator[int]:
    handle = await agent.call("guest-file-open", {"path": path, "mode": mode})
    if not isinstance(handle, int):
        raise Internal("the guest agent answers nonsense: a file has no handle")
    closed = False
    try:
        yield handle
        closed = True
        await agent.call("guest-file-close", {"handle": handle})  # which tells of a disk that is full
    finally:
        if not closed:
            with anyio.move_on_after(_UNTIDY_TIMEOUT_S, shield=True), contextlib.suppress(EngineError):
                await agent.call("guest-file-close", {"handle": handle})


async def _read(agent: Agent, handle: int) -> AsyncIterator[bytes]:
    while True:
        found = await agent.ask("guest-file-read", {"handle": handle, "count": PIECE_BYTES})
        try:
            data = base64.b64decode(found.get("buf-b64", ""), validate=True)
        except (TypeError, ValueError, binascii.Error) as error:
            raise Internal(f"the guest agent answers nonsense: {error}") from error
        if data:
            yield data
        if found.get("eof") or not data:
            return


async def _write(agent: Agent, handle: int, data: bytes) -> None:
    while data:
        wanted = {"handle": handle, "buf-b64": base64.b64encode(data).decode()}
        count = (await agent.ask("guest-file-write", wanted)).get("count")
        if not isinstance(count, int) or not 0 < count <= len(data):
            raise Internal("the guest agent answers nonsense: it wrote nothing, and says of no error")
        data = data[count:]


def _split(path: str) -> tuple[str, str]:
    """Cut a clean path into the directory that tar goes to and the name that it packs."""
    if path.endswith("/."):
        return path, "."
    directory, _, name = path.rstrip("/").rpartition("/")
    return directory or "/", name or "."


def _last_line(words: bytes) -> str:
    """What a program said last, which a guest decides: short, and printable."""
    lines: Sequence[str] = words.decode(errors="replace").strip().splitlines()
    line = lines[-1] if lines else ""
    return "".join(letter if letter.isprintable() else "?" for letter in line[:300])

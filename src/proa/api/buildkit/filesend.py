# SPDX-License-Identifier: Apache-2.0
"""Gives a directory to a client (moby.filesync.v1.FileSend, DiffCopy): what was built, from its tar.

The other way round of ``filesync``: we name every entry (STAT, sorted by the parts of its path), the client
asks for the contents it wants, in any order, and says when it has all. So the tar is put into a file first.

Source: fsutil, send.go, receive.go, validator.go, hardlinks.go, types.proto; Go, io/fs (FileMode).
"""

from __future__ import annotations

import math
import tarfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import anyio
import anyio.to_thread

from proa.api.buildkit import gomode
from proa.api.buildkit.filesync import MAX_ENTRIES, PacketStream, next_packet
from proa.api.buildkit.proto import buildkit_pb2 as pb
from proa.model.errors import InvalidParameter

PIECE_BYTES = 256 << 10
_XATTR = "SCHILY.xattr."


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as the client is told of it; ``content`` has its bytes, if it has any."""

    stat: pb.Stat
    content: tarfile.TarInfo | None


async def spool(pieces: AsyncIterator[bytes], file: BinaryIO) -> None:
    """Put a tar into a file, which is then read from its beginning."""
    async for piece in pieces:
        await anyio.to_thread.run_sync(file.write, piece)
    file.seek(0)


async def send_directory(stream: PacketStream, file: BinaryIO) -> None:
    """Send what is in a tar, and return when the client has it.

    :raises InvalidParameter: the client cannot write it, breaks the rules, or leaves; or a name is not UTF-8.
    """
    tar = await anyio.to_thread.run_sync(_open, file)
    with tar:
        entries = await anyio.to_thread.run_sync(lambda: list(entries_of(tar)))
        wanted, asked = anyio.create_memory_object_stream[pb.Packet](math.inf)
        failure: Exception | None = None

        async def listen() -> None:
            nonlocal failure
            with wanted:
                try:
                    while (packet := await next_packet(stream)).type != pb.Packet.FIN:
                        wanted.send_nowait(packet)
                except Exception as error:  # noqa: BLE001 (raised again below, outside the task group)
                    failure = error
                    group.cancel_scope.cancel()

        with asked:
            async with anyio.create_task_group() as group:
                # Requests come while the names still go out, and the client must never wait for us to read.
                group.start_soon(listen)
                try:
                    await _send_all(stream, tar, entries, asked)
                except Exception as error:  # noqa: BLE001 (as above)
                    failure = failure or error
                    group.cancel_scope.cancel()
        if failure is not None:
            raise failure
    await stream.send_message(pb.Packet(type=pb.Packet.FIN), end=True)


def _open(file: BinaryIO) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="r:", errors="surrogateescape")


async def _send_all(
    stream: PacketStream, tar: tarfile.TarFile, entries: list[Entry], asked: AsyncIterator[pb.Packet]
) -> None:
    for entry in entries:
        await stream.send_message(pb.Packet(type=pb.Packet.STAT, stat=entry.stat))
    await stream.send_message(pb.Packet(type=pb.Packet.STAT))
    async for packet in asked:
        await _send_content(stream, tar, entries, packet)


async def _send_content(
    stream: PacketStream, tar: tarfile.TarFile, entries: list[Entry], packet: pb.Packet
) -> None:
    content = entries[packet.id].content if packet.id < len(entries) else None
    if packet.type != pb.Packet.REQ or content is None:
        raise InvalidParameter("the client asks for what it was not offered")
    file = tar.extractfile(content)
    assert file is not None
    while data := await anyio.to_thread.run_sync(file.read, PIECE_BYTES):
        await stream.send_message(pb.Packet(type=pb.Packet.DATA, id=packet.id, data=data))
    await stream.send_message(pb.Packet(type=pb.Packet.DATA, id=packet.id))


def entries_of(tar: tarfile.TarFile) -> Iterator[Entry]:
    """Yield a tar's entries in the order of their paths, as clients want them. Raises InvalidParameter.

    A file with several names has its contents with the first of them; the others are links to that. Pure, but
    for the reading.
    """
    found: dict[str, tarfile.TarInfo] = {}
    for info in tar:
        path = info.name.strip("/")
        if path not in ("", "."):
            found[path] = info
        if len(found) > MAX_ENTRIES:
            raise InvalidParameter(f"there are more than {MAX_ENTRIES} files")
    first: dict[str, str] = {}  # by the name that the tar has the contents with
    for path in sorted(found, key=lambda path: path.encode(errors="surrogateescape").split(b"/")):
        info = found[path]
        _check_text(path)
        original = info.linkname.strip("/") if info.islnk() else path
        content = found.get(original)
        if content is None or content.islnk():
            raise InvalidParameter(f"{path} is a link to what is not there")
        if content.isreg():
            other = first.setdefault(original, path)
            stat = _stat(path, content, "" if other == path else other)
            yield Entry(stat, content if other == path else None)
        else:
            _check_text(content.linkname)
            yield Entry(_stat(path, content, content.linkname), None)


def _stat(path: str, info: tarfile.TarInfo, link: str) -> pb.Stat:
    mode = info.mode & 0o777
    for flag, bit in gomode.SPECIAL_BITS:
        mode |= flag if info.mode & bit else 0
    if info.isdir():
        mode |= gomode.DIR
    elif info.issym():
        mode |= gomode.SYMLINK
    elif info.ischr():
        mode |= gomode.DEVICE | gomode.CHAR
    elif info.isblk():
        mode |= gomode.DEVICE
    elif info.isfifo():
        mode |= gomode.PIPE
    return pb.Stat(
        path=path,
        mode=mode,
        uid=info.uid,
        gid=info.gid,
        size=info.size if info.isreg() and not link else 0,
        mod_time=int(info.mtime) * 1_000_000_000,
        linkname=link,
        devmajor=info.devmajor,
        devminor=info.devminor,
        xattrs={
            name.removeprefix(_XATTR): value.encode(errors="surrogateescape")
            for name, value in info.pax_headers.items()
            if name.startswith(_XATTR)
        },
    )


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = text.encode(errors="surrogateescape")
        raise InvalidParameter(f"{shown!r} is not UTF-8: it cannot be sent; use type=tar") from None

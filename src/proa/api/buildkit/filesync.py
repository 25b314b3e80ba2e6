# SPDX-License-Identifier: Apache-2.0
"""Takes a directory from a client (moby.filesync.v1.FileSync, DiffCopy) as a tar.

The client names every entry first (STAT, parents before what is in them), then sends the contents that it is
asked for, several files at once. Nothing is believed: paths, sizes and the order are checked before anything
is passed on, and what goes on is a tar for the confined child that takes contexts.

Source: fsutil, send.go, receive.go, validator.go, types.proto; Go, io/fs (FileMode).
"""

from __future__ import annotations

import hashlib
import tarfile
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from proa.api.buildkit import gomode
from proa.api.buildkit.proto import buildkit_pb2 as pb
from proa.model.errors import InvalidParameter

MAX_ENTRIES = 1_000_000
PATH_MAX_BYTES = 4096
FILE_MAX_BYTES = 64 << 30
XATTRS_MAX_BYTES = 64 << 10
SMALL_BYTES = 256 << 10  # files that may be asked for together
AHEAD_BYTES = 2 << 20
AHEAD_FILES = 64
BLOCK = 512


class PacketStream(Protocol):
    """The call; grpclib's stream is one."""

    async def recv_message(self) -> pb.Packet | None: ...
    async def send_message(self, message: pb.Packet, *, end: bool = False) -> None: ...


@dataclass(slots=True)
class _File:
    id: int
    stat: pb.Stat
    data: bytearray = field(default_factory=bytearray)
    is_whole: bool = False


class Entries:
    """What the client has named so far, checked. Pure."""

    def __init__(self) -> None:
        self.stats: list[pb.Stat] = []
        self._directories = {""}
        self._files: set[str] = set()

    def add(self, stat: pb.Stat) -> None:
        """Take the next entry. Raises InvalidParameter."""
        path = stat.path
        parent, _, name = path.rpartition("/")
        if len(self.stats) >= MAX_ENTRIES:
            raise InvalidParameter(f"the client sends more than {MAX_ENTRIES} files")
        if name in ("", ".", "..") or "\0" in path or len(path.encode()) > PATH_MAX_BYTES:
            raise InvalidParameter(f"the client sends an invalid path: {path[:200]!r}")
        if path in self._files or path in self._directories:
            raise InvalidParameter(f"the client sends {path!r} twice")
        if parent not in self._directories:
            raise InvalidParameter(f"the client sends {path!r} before its directory, or below a file")
        if not 0 <= stat.size <= FILE_MAX_BYTES:
            raise InvalidParameter(
                f"the client sends a file of an impossible size: {path!r}, {stat.size} bytes"
            )
        if sum(len(key) + len(value) for key, value in stat.xattrs.items()) > XATTRS_MAX_BYTES:
            raise InvalidParameter(f"the extended attributes of {path!r} are too long")
        kind = stat.mode & gomode.TYPES
        if kind & (kind - 1):
            raise InvalidParameter(f"the client sends {path!r} with more than one type")
        if not kind and stat.linkname and stat.linkname not in self._files:
            raise InvalidParameter(f"the client sends {path!r} as a link to what it has not sent")
        if len(stat.linkname.encode()) > PATH_MAX_BYTES or "\0" in stat.linkname:
            raise InvalidParameter(f"the link {path!r} is invalid")
        (self._directories if kind == gomode.DIR else self._files).add(path)
        self.stats.append(stat)


class Directory:
    """A client's directory: what is in it is known, the contents can be taken, once, or left."""

    def __init__(self, stream: PacketStream, stats: list[pb.Stat]) -> None:
        self._stream = stream
        self._stats = stats

    def digest(self) -> str:
        """Return what is the same for the same names, sizes, modes and times."""
        digest = hashlib.sha256()
        for stat in self._stats:
            data = stat.SerializeToString(deterministic=True)
            digest.update(len(data).to_bytes(8, "big") + data)
        return digest.hexdigest()

    def tar(self) -> AsyncGenerator[bytes, None]:
        """Yield the directory as a tar, owned by 0:0.

        :raises InvalidParameter: the client breaks the rules, cannot read a file, or leaves.
        """
        return _tar(self._stream, self._stats)

    async def finish(self) -> None:
        """Tell the client that nothing more is wanted. Raises InvalidParameter."""
        # Our direction ends first: Go resets a stream whose client might yet send when the answer is done.
        await self._stream.send_message(pb.Packet(type=pb.Packet.FIN), end=True)
        if (await next_packet(self._stream)).type != pb.Packet.FIN:
            raise InvalidParameter("the client sends what it was not asked for")


async def read_directory(stream: PacketStream) -> Directory:
    """Take the names of all entries. Raises InvalidParameter when one cannot be."""
    entries = Entries()
    while True:
        packet = await next_packet(stream)
        if packet.type != pb.Packet.STAT:
            raise InvalidParameter("the client sends contents before it was asked")
        if not packet.HasField("stat"):
            return Directory(stream, entries.stats)
        entries.add(packet.stat)


async def _tar(stream: PacketStream, stats: list[pb.Stat]) -> AsyncGenerator[bytes, None]:
    taking = _Taking(stream, stats)
    for number, stat in enumerate(stats):
        if stat.mode & gomode.SOCKET:
            continue
        if not _has_contents(stat):
            yield _header(stat, 0)
        elif stat.size <= SMALL_BYTES:
            data = await taking.small(number)
            yield _header(stat, len(data)) + data + bytes(-len(data) % BLOCK)
        else:
            yield _header(stat, stat.size)
            async for piece in taking.large(number):
                yield piece
            yield bytes(-stat.size % BLOCK)
    yield bytes(2 * BLOCK)


class _Taking:
    """Asks for contents, some ahead. Whoever waits for one file takes what comes for others, too."""

    def __init__(self, stream: PacketStream, stats: list[pb.Stat]) -> None:
        self._stream = stream
        self._todo: Iterator[tuple[int, pb.Stat]] = (
            (number, stat) for number, stat in enumerate(stats) if _has_contents(stat)
        )
        self._next = next(self._todo, None)
        self._asked: OrderedDict[int, _File] = OrderedDict()

    async def small(self, number: int) -> bytes:
        await self._ask()
        wanted = self._asked[number]
        while not wanted.is_whole:
            await self._take()
        del self._asked[number]
        return bytes(wanted.data)

    async def large(self, number: int) -> AsyncGenerator[bytes, None]:
        await self._ask()
        wanted = self._asked[number]
        left = wanted.stat.size
        while left or not wanted.is_whole:
            if not wanted.data:
                if wanted.is_whole:
                    raise InvalidParameter(f"{wanted.stat.path!r} became shorter while it was sent")
                await self._take()
            piece = bytes(wanted.data)
            wanted.data.clear()
            left -= len(piece)
            if left < 0:
                raise InvalidParameter(f"{wanted.stat.path!r} became longer while it was sent")
            if piece:
                yield piece
        del self._asked[number]

    async def _ask(self) -> None:
        """Ask for the files that are next: small ones together, a large one alone."""
        while self._next is not None:
            number, stat = self._next
            ahead = sum(file.stat.size for file in self._asked.values())
            if self._asked and (ahead + stat.size > AHEAD_BYTES or len(self._asked) >= AHEAD_FILES):
                return
            self._asked[number] = _File(number, stat)
            await self._stream.send_message(pb.Packet(type=pb.Packet.REQ, id=number))
            self._next = next(self._todo, None)
            if stat.size > SMALL_BYTES:
                return

    async def _take(self) -> None:
        packet = await next_packet(self._stream)
        file = self._asked.get(packet.id)
        if packet.type != pb.Packet.DATA or file is None or file.is_whole:
            raise InvalidParameter("the client sends what it was not asked for")
        if not packet.data:
            file.is_whole = True
            return
        file.data += packet.data
        # One that grew since it was named is taken as it is, within reason.
        if len(file.data) > max(2 * file.stat.size, SMALL_BYTES) + len(packet.data):
            raise InvalidParameter(f"{file.stat.path!r} became longer while it was sent")


async def next_packet(stream: PacketStream) -> pb.Packet:
    """Return the client's next packet. Raises InvalidParameter for its error, or its end."""
    packet = await stream.recv_message()
    if packet is None:
        raise InvalidParameter("the client ended before all files were sent")
    if packet.type == pb.Packet.ERR:
        raise InvalidParameter(f"error from sender: {packet.data.decode(errors='replace')[:4096]}")
    return packet


def _has_contents(stat: pb.Stat) -> bool:
    return not stat.mode & gomode.TYPES and not stat.linkname and stat.size > 0


def _header(stat: pb.Stat, size: int) -> bytes:
    info = tarfile.TarInfo(stat.path)
    mode = stat.mode
    info.mode = mode & 0o777
    for flag, bit in gomode.SPECIAL_BITS:
        info.mode |= bit if mode & flag else 0
    info.mtime = max(0, min(stat.mod_time // 1_000_000_000, 1 << 33))
    if mode & gomode.DIR:
        info.type = tarfile.DIRTYPE
    elif mode & gomode.SYMLINK:
        info.type, info.linkname = tarfile.SYMTYPE, stat.linkname
    elif mode & gomode.DEVICE:
        info.type = tarfile.CHRTYPE if mode & gomode.CHAR else tarfile.BLKTYPE
        info.devmajor, info.devminor = stat.devmajor & 0xFFF, stat.devminor & 0xFFFFF
    elif mode & gomode.PIPE:
        info.type = tarfile.FIFOTYPE
    elif stat.linkname:
        info.type, info.linkname = tarfile.LNKTYPE, stat.linkname
    else:
        info.size = size
    info.pax_headers = {
        f"SCHILY.xattr.{name}": value.decode(errors="surrogateescape")
        for name, value in stat.xattrs.items()
        if name == "security.capability" or name.startswith("user.")
    }
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")

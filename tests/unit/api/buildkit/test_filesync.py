# SPDX-License-Identifier: Apache-2.0
"""A client's directory as a tar, from honest clients and from others."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence

import pytest

from proa.api.buildkit.filesync import AHEAD_FILES, MAX_ENTRIES, SMALL_BYTES, Entries, read_directory
from proa.api.buildkit.proto import buildkit_pb2 as pb
from proa.model.errors import InvalidParameter

DIR, SYMLINK, SOCKET, SETUID = 1 << 31, 1 << 27, 1 << 24, 1 << 23
P = pb.Packet

pytestmark = pytest.mark.anyio


class Sender:
    """An honest client, but for the packets that ``instead`` gives for the first file that is asked for."""

    def __init__(self, files: Sequence[tuple[pb.Stat, bytes]], instead: Sequence[P] = ()) -> None:
        self._files = files
        self._packets = [P(type=P.STAT, stat=stat) for stat, _ in files]
        self._packets.append(P(type=P.STAT))
        self._instead = list(instead)
        self.asked: list[int] = []
        self.most = 0

    async def send_message(self, message: P, *, end: bool = False) -> None:
        if message.type == P.FIN:
            assert end
            self._packets.append(P(type=P.FIN))
            return
        assert message.type == P.REQ
        self.asked.append(message.id)
        if self._instead:
            self._packets += self._instead
            self._instead = []
            return
        data = self._files[message.id][1]
        # The latest first: several files are on their way at once.
        pieces = [
            P(type=P.DATA, id=message.id, data=data[at : at + 32768]) for at in range(0, len(data), 32768)
        ]
        self._packets = [*pieces, P(type=P.DATA, id=message.id), *self._packets]
        self.most = max(self.most, len(self._packets))

    async def recv_message(self) -> P | None:
        return self._packets.pop(0) if self._packets else None


def file(path: str, data: bytes = b"", mode: int = 0o644, **more: object) -> tuple[pb.Stat, bytes]:
    stat = pb.Stat(
        path=path, mode=mode, size=len(data), uid=1000, gid=1000, mod_time=1_700_000_000_000_000_001
    )
    for name, value in more.items():
        setattr(stat, name, value)
    return stat, data


async def take(sender: Sender) -> tarfile.TarFile:
    directory = await read_directory(sender)
    data = b"".join([piece async for piece in directory.tar()])
    await directory.finish()
    return tarfile.open(fileobj=io.BytesIO(data))


async def test_a_directory() -> None:
    big = bytes(range(256)) * (SMALL_BYTES // 256) + b"and more"
    sender = Sender(
        [
            file("a", b"A"),
            file("big", big),
            file("d", mode=DIR | 0o755),
            file("d/empty"),
            file("d/hard", linkname="a", size=1),
            file("d/link", mode=SYMLINK | 0o777, linkname="../a"),
            file("d/socket", mode=SOCKET | 0o600),
            file("d/su", b"x" * 600, mode=SETUID | 0o755),
            file("e" * 200, b"long name"),
        ]
    )
    with await take(sender) as tar:
        found = {one.name: one for one in tar}
        assert list(found) == ["a", "big", "d", "d/empty", "d/hard", "d/link", "d/su", "e" * 200]
        assert {(one.uid, one.gid, one.mtime) for one in found.values()} == {(0, 0, 1_700_000_000)}
        contents = {name: member.read() for name in ("a", "big", "d/su") if (member := tar.extractfile(name))}
    assert contents == {"a": b"A", "big": big, "d/su": b"x" * 600}
    assert (found["d"].isdir(), found["d/hard"].islnk(), found["d/link"].issym()) == (True, True, True)
    assert (found["d/su"].mode, found["d/link"].linkname) == (0o4755, "../a")
    assert sender.asked == [0, 1, 7, 8], "what has no contents is not asked for"


async def test_the_digest_of_a_directory() -> None:
    async def digest(*files: tuple[pb.Stat, bytes]) -> str:
        return (await read_directory(Sender(files))).digest()

    found = await digest(file("a", b"1"), file("b"))
    assert found == await digest(file("a", b"2"), file("b")), "contents are not read for it"
    others = [
        await digest(file("a", b"1")),
        await digest(file("a", b"12"), file("b")),
        await digest(file("a", b"1", mode=0o600), file("b")),
        await digest(file("a", b"1", mod_time=1), file("b")),
    ]
    assert found not in others


async def test_a_directory_that_is_not_taken() -> None:
    sender = Sender([file("a", b"A")])
    await (await read_directory(sender)).finish()
    assert sender.asked == []


async def test_files_are_asked_for_ahead() -> None:
    files = [file(f"{number:04}", b"x") for number in range(200)]
    sender = Sender(files)
    with await take(sender) as tar:
        assert len(tar.getnames()) == 200
    assert AHEAD_FILES <= sender.most <= 200 + 2 * AHEAD_FILES


@pytest.mark.parametrize(
    ("stats", "message"),
    [
        ([file("../x")], "before its directory"),
        ([file("..", mode=DIR)], "an invalid path"),
        ([file("/etc/passwd")], "an invalid path|before its directory"),
        ([file("d", mode=DIR), file("d/../x")], "before its directory"),
        ([file("d", mode=DIR), file("d/.")], "an invalid path"),
        ([file("a\0b")], "an invalid path"),
        ([file("")], "an invalid path"),
        ([file("a/b"), file("a", mode=DIR)], "before its directory"),
        ([file("a"), file("a/b")], "below a file"),
        ([file("l", mode=SYMLINK, linkname="/etc"), file("l/passwd")], "below a file"),
        ([file("a"), file("a")], "twice"),
        ([file("a", mode=DIR), file("a", mode=SYMLINK, linkname="/")], "twice"),
        ([file("a", size=1 << 60)], "impossible size"),
        ([file("a", size=-1)], "impossible size"),
        ([file("a", linkname="/etc/shadow")], "as a link to what it has not sent"),
        ([file("a", mode=SYMLINK, linkname="x" * 5000)], "the link"),
        ([file("a", mode=DIR | SYMLINK, linkname="x")], "more than one type"),
        ([file("x" * 5000)], "an invalid path"),
    ],
)
async def test_what_cannot_be(stats: list[tuple[pb.Stat, bytes]], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        await take(Sender(stats))


@pytest.mark.parametrize(
    ("packets", "message"),
    [
        ([P(type=P.DATA, id=7, data=b"x")], "not asked for"),
        ([P(type=P.DATA, id=0), P(type=P.DATA, id=0, data=b"more")], "not asked for|ended before"),
        ([P(type=P.DATA, id=0, data=b"x" * 32768)] * 100, "became longer"),
        ([P(type=P.STAT, stat=pb.Stat(path="late"))], "not asked for"),
        ([P(type=P.ERR, data=b"open a: permission denied")], "error from sender: open a: permission denied"),
        ([P(type=P.FIN)], "not asked for"),
        ([], "ended before"),
    ],
)
async def test_contents_that_are_not_as_asked(packets: list[P], message: str) -> None:
    sender = Sender([file("a", b"A"), file("b", b"B")], packets or [P(type=P.DATA, id=0, data=b"A")])
    with pytest.raises(InvalidParameter, match=message):
        await take(sender)


@pytest.mark.parametrize(("pieces", "message"), [(1, "became shorter"), (30, "became longer")])
async def test_a_large_file_that_changes(pieces: int, message: str) -> None:
    packets = [P(type=P.DATA, id=0, data=b"x" * 32768)] * pieces + [P(type=P.DATA, id=0)]
    with pytest.raises(InvalidParameter, match=message):
        await take(Sender([file("a", b"x" * (SMALL_BYTES + 1))], packets))


async def test_contents_before_the_names_are_complete() -> None:
    sender = Sender([])
    sender._packets = [P(type=P.DATA, id=0, data=b"x")]
    with pytest.raises(InvalidParameter, match="before it was asked"):
        await take(sender)


async def test_too_many_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_ENTRIES == 1_000_000
    monkeypatch.setattr("proa.api.buildkit.filesync.MAX_ENTRIES", 2)
    entries = Entries()
    for name in "ab":
        entries.add(pb.Stat(path=name))
    with pytest.raises(InvalidParameter, match="more than 2 files"):
        entries.add(pb.Stat(path="c"))

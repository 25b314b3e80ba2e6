# SPDX-License-Identifier: Apache-2.0
"""What a client is told of what was built, and what it may ask for."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence

import anyio
import anyio.lowlevel
import pytest

from proa.api.buildkit import gomode
from proa.api.buildkit.filesend import entries_of, send_directory
from proa.api.buildkit.proto import buildkit_pb2 as pb
from proa.model.errors import InvalidParameter

Member = tuple[str, bytes, bytes, str]  # name, type, content, link


def archive(*members: Member) -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, data, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname, info.mode, info.mtime = kind, len(data), link, 0o4755, 7
            info.pax_headers = {"SCHILY.xattr.user.a": "b"} if data else {}
            tar.addfile(info, io.BytesIO(data))
    file.seek(0)
    return file


DIR, FILE, LINK, SOFT = tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE
TREE = (
    ("a-b", FILE, b"first", ""),
    ("b/", DIR, b"", ""),
    ("b/z", FILE, b"twice", ""),
    ("a", DIR, b"", ""),
    ("a/x", LINK, b"", "b/z"),
    ("a/soft", SOFT, b"", "../b"),
)


class Client:
    """Asks for what it is told to, once all names are known."""

    def __init__(self, answers: Sequence[pb.Packet]) -> None:
        self.answers = list(answers)
        self.stats: list[pb.Stat] = []
        self.contents: dict[int, bytes] = {}
        self.ended = False
        self._named = anyio.Event()

    async def recv_message(self) -> pb.Packet | None:
        await self._named.wait()
        return self.answers.pop(0) if self.answers else None

    async def send_message(self, message: pb.Packet, *, end: bool = False) -> None:
        await anyio.lowlevel.checkpoint()
        if message.type == pb.Packet.DATA:
            self.contents[message.id] = self.contents.get(message.id, b"") + message.data
        elif message.type == pb.Packet.STAT and message.HasField("stat"):
            self.stats.append(message.stat)
        elif message.type == pb.Packet.STAT:
            self._named.set()
        self.ended |= end


def asking(*numbers: int) -> list[pb.Packet]:
    return [pb.Packet(type=pb.Packet.REQ, id=number) for number in numbers]


FIN = pb.Packet(type=pb.Packet.FIN)


@pytest.mark.anyio
async def test_contents_in_the_order_they_are_asked_for() -> None:
    client = Client([*asking(3, 2), FIN])
    await send_directory(client, archive(*TREE))
    assert [stat.path for stat in client.stats] == ["a", "a/soft", "a/x", "a-b", "b", "b/z"]
    assert client.contents == {3: b"first", 2: b"twice"}
    assert client.ended


def test_order_and_links() -> None:
    with tarfile.open(fileobj=archive(*TREE)) as tar:
        entries = list(entries_of(tar))
    assert [(one.stat.path, one.stat.linkname, one.content is not None) for one in entries] == [
        ("a", "", False),
        ("a/soft", "../b", False),
        ("a/x", "", True),
        ("a-b", "", True),
        ("b", "", False),
        ("b/z", "a/x", False),
    ]
    file, soft = entries[2].stat, entries[1].stat
    assert (file.size, file.mode, file.mod_time) == (5, 0o755 | gomode.SETUID, 7_000_000_000)
    assert dict(file.xattrs) == {"user.a": b"b"}
    assert soft.mode & gomode.TYPES == gomode.SYMLINK


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (asking(0), "what it was not offered"),
        (asking(99), "what it was not offered"),
        ([pb.Packet(type=pb.Packet.DATA, data=b"x")], "what it was not offered"),
        ([pb.Packet(type=pb.Packet.ERR, data=b"disk full")], "disk full"),
        ([], "the client ended"),
    ],
)
async def test_clients_that_break_the_rules(answers: list[pb.Packet], words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        await send_directory(Client(answers), archive(*TREE))


@pytest.mark.parametrize(
    ("member", "words"),
    [(("a", LINK, b"", "gone"), "a link to what is not there"), (("\udcff", FILE, b"", ""), "not UTF-8")],
)
def test_trees_that_cannot_be_sent(member: Member, words: str) -> None:
    with (
        tarfile.open(fileobj=archive(member), errors="surrogateescape") as tar,
        pytest.raises(InvalidParameter, match=words),
    ):
        list(entries_of(tar))

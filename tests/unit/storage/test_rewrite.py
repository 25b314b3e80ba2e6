# SPDX-License-Identifier: Apache-2.0
"""Archives of strangers, written anew."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable

import pytest

from proa.storage.files.rewrite import rewrite
from proa.storage.files.tar_writer import TarWriter
from proa.storage.tar import BadTar, Stream


def archive(*members: tuple[str, bytes, str], content: bytes = b"") -> bytes:
    """Name, type and link of each; files have the content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mtime, member.uid = kind, link, 7.25, 3
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def rewritten(data: bytes, *, below: bytes | None = None, for_guest: bool = False, most: int = 100) -> bytes:
    out = bytearray()
    sink: Callable[[bytes | bytearray | memoryview], None] = out.extend
    tar = TarWriter(sink)
    rewrite(Stream(iter([data])), tar, below=below, for_guest=for_guest, max_entries=most)
    tar.finish()
    return bytes(out)


def members(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmembers()


def test_what_is_said_stays() -> None:
    data = archive(
        ("d", tarfile.DIRTYPE, ""), ("d/f", tarfile.REGTYPE, ""), ("d/g", tarfile.LNKTYPE, "d/f"),
        ("d/l", tarfile.SYMTYPE, "../../x"), content=b"abc",
    )  # fmt: skip
    out = rewritten(data, below=b"d")
    found = [(one.name, one.type, one.linkname, one.size, one.mtime, one.uid) for one in members(out)]
    assert found == [
        ("d", tarfile.DIRTYPE, "", 0, 7.25, 3),
        ("d/f", tarfile.REGTYPE, "", 3, 7.25, 3),
        ("d/g", tarfile.LNKTYPE, "d/f", 0, 7.25, 3),
        ("d/l", tarfile.SYMTYPE, "../../x", 0, 7.25, 3),
    ]
    with tarfile.open(fileobj=io.BytesIO(out)) as tar:
        assert tar.extractfile("d/f").read() == b"abc"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["x", "dd", "d/../../etc/passwd", "/d/f", "d/.."])
def test_a_name_that_was_not_asked_for(name: str) -> None:
    with pytest.raises(BadTar):
        rewritten(archive((name, tarfile.REGTYPE, "")), below=b"d")


def test_a_hard_link_that_leads_out() -> None:
    with pytest.raises(BadTar):
        rewritten(archive(("d/f", tarfile.LNKTYPE, "../x")), below=b"d")


def test_the_root_and_a_whole_tree() -> None:
    assert [one.name for one in members(rewritten(archive(("/x", tarfile.REGTYPE, "")), below=b"/"))] == [
        "/x"
    ]
    assert [one.name for one in members(rewritten(archive(("x", tarfile.REGTYPE, ""))))] == ["x"]
    with pytest.raises(BadTar):
        rewritten(archive(("/x", tarfile.REGTYPE, "")))


def test_names_for_the_guest_are_relative() -> None:
    data = archive(("./", tarfile.DIRTYPE, ""), ("/a/./b/../c", tarfile.REGTYPE, ""))
    assert [one.name for one in members(rewritten(data, for_guest=True))] == ["a/c"]
    with pytest.raises(BadTar):
        rewritten(archive(("a/../../b", tarfile.REGTYPE, "")), for_guest=True)


def test_sparse_files_keep_their_holes() -> None:
    out = bytearray()
    tar = TarWriter(out.extend)
    status = type("Status", (), {"st_mtime_ns": 0, "st_mode": 0o100644, "st_uid": 0, "st_gid": 0})()
    status.st_size, status.st_rdev = 10_000_000, 0

    def copy(count: int, sink: Callable[[memoryview], object]) -> None:
        sink(memoryview(b"abc")[:count])

    tar.add_sparse_content(b"f", status, [(5_000_000, 3)], copy)
    tar.finish()
    again = rewritten(bytes(out))
    assert again == bytes(out)
    for_guest = members(rewritten(bytes(out), for_guest=True))
    assert for_guest[0].pax_headers["PROA.sparse"] == "10000000 5000000 3"
    assert for_guest[0].size == 3


def test_too_many() -> None:
    with pytest.raises(BadTar, match="more than 1 files"):
        rewritten(archive(("a", tarfile.REGTYPE, ""), ("b", tarfile.REGTYPE, "")), most=1)

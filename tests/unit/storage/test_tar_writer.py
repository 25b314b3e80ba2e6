# SPDX-License-Identifier: Apache-2.0
"""What is written is what tarfile, and our own reader, read."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from proa.storage.files.tar_writer import HOLES_MIN, TarWriter
from proa.storage.tar import Entry, Kind, Stream, iter_entries

NS = 1_000_000_000


class Status:
    """As much of a file's status as a header needs."""

    def __init__(self, mode: int, **fields: int) -> None:
        self.st_mode = mode
        self.st_uid = fields.get("uid", 0)
        self.st_gid = fields.get("gid", 0)
        self.st_size = fields.get("size", 0)
        self.st_rdev = fields.get("rdev", 0)
        self.st_mtime_ns = fields.get("mtime_ns", 0)


def written(*members: tuple[bytes, Status, bytes, dict[bytes, bytes]]) -> bytes:
    out = io.BytesIO()
    tar = TarWriter(out.write)  # type: ignore[arg-type]  # its count is not asked for
    for name, status, link, xattrs in members:
        tar.add(name, status, link=link, xattrs=xattrs)  # type: ignore[arg-type]  # the fields that count
    tar.finish()
    return out.getvalue()


def read(data: bytes) -> list[Entry]:
    stream = Stream(iter([data]))
    entries = []
    for entry in iter_entries(stream):
        entries.append(entry)
        stream.skip(entry.stored)
    return entries


@pytest.mark.parametrize("mtime_ns", [0, 1, -1, -3 * NS // 2, 1_700_000_000 * NS + 120, 9 * 10**9 * NS])
def test_times_keep_their_nanoseconds(mtime_ns: int) -> None:
    (entry,) = read(written((b"d", Status(stat.S_IFDIR | 0o755, mtime_ns=mtime_ns), b"", {})))
    assert entry.mtime * NS + entry.mtime_nsec == mtime_ns


@pytest.mark.parametrize("length", [1, 99, 100, 101, 155, 256, 257, 1000, 4000])
@pytest.mark.parametrize("part", [1, 40, 200])
def test_names_of_every_length(length: int, part: int) -> None:
    name = b"/".join([b"n" * part] * length)[:length].rstrip(b"/").ljust(length, b"x")
    link = Status(stat.S_IFLNK | 0o777)
    data = written((name, link, b"t" * length, {}))
    (entry,) = read(data)
    assert (entry.name, entry.link, entry.kind) == (name, b"t" * length, Kind.SYMLINK)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [(one.name, one.linkname) for one in tar] == [(name.decode(), "t" * length)]


def test_owners_modes_devices_and_attributes() -> None:
    xattrs = {b"user.a": b"\0\xff=\n", b"security.capability": bytes(range(20))}
    status = Status(stat.S_IFCHR | 0o6777, uid=4294967294, gid=65534, rdev=os.makedev(4, 300))
    data = written((b"\xff name", status, b"", xattrs))
    (entry,) = read(data)
    assert (entry.kind, entry.mode, entry.uid, entry.gid) == (Kind.CHARACTER, 0o6777, 4294967294, 65534)
    assert (entry.name, entry.device, entry.xattrs) == (b"\xff name", (4, 300), xattrs)
    assert data == written((b"\xff name", status, b"", dict(reversed(xattrs.items())))), "always the same"


def packed(path: Path, size: int | None = None) -> bytes:
    out = io.BytesIO()
    tar = TarWriter(out.write)  # type: ignore[arg-type]
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if size is not None:
            status = Status(stat.S_IFREG | 0o644, size=size)  # type: ignore[assignment]
            status.st_blocks = size // 512  # type: ignore[misc]
        tar.add_file(b"dir/file", status, file.fileno())
    tar.finish()
    return out.getvalue()


def test_a_file_that_changes_while_it_is_read_has_the_promised_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    for size, content in ((3, b"123"), (7, b"12345\0\0"), (2_000_000, b"12345".ljust(2_000_000, b"\0"))):
        with tarfile.open(fileobj=io.BytesIO(packed(path, size))) as tar:
            member = tar.extractfile("dir/file")
            assert member is not None and member.read() == content
            assert tar.next() is None


def test_large_holes_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(4 * HOLES_MIN)
        file.seek(2 * HOLES_MIN)
        file.write(b"x" * 5000)
    if path.stat().st_blocks * 512 > HOLES_MIN:
        pytest.skip("this file system has no holes")
    data = packed(path)
    assert len(data) < 30_000
    (entry,) = read(data)
    assert (entry.name, entry.size) == (b"dir/file", 4 * HOLES_MIN)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        member = tar.extractfile("dir/file")
        assert member is not None and member.read() == path.read_bytes()


def test_a_hole_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, 3 * HOLES_MIN)
    (entry,) = read(packed(path))
    assert (entry.size, entry.pieces or []) == (3 * HOLES_MIN, [])

# SPDX-License-Identifier: Apache-2.0
"""Tar streams, sound and hostile, cut at any place into chunks."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.storage.tar import BadTar, Entry, Kind, Stream, iter_entries
from tests.support.tars import archive, header, member, pax


def read(data: bytes, chunk: int = 1000) -> list[tuple[Entry, bytes]]:
    def chunks() -> Iterator[bytes]:
        for at in range(0, len(data), chunk):
            yield data[at : at + chunk]

    stream = Stream(chunks())
    found = []
    for entry in iter_entries(stream):
        content = io.BytesIO()
        stream.pass_on(entry.stored, content.write)
        found.append((entry, content.getvalue()))
    return found


def one(data: bytes) -> Entry:
    ((entry, _),) = read(data)
    return entry


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("chunk", [1, 511, 512, 4096])
def test_what_the_standard_library_writes_is_read(form: int, chunk: int) -> None:
    long = "d/" * 60 + "file"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, size in (("a", 0), ("b", 700), (long, 5)):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid, info.mtime = size, 0o4755, 1234, 1_600_000_000
            tar.addfile(info, io.BytesIO(b"x" * size))
    found = read(out.getvalue(), chunk)
    assert [(e.name, e.size, e.mode, e.uid, e.mtime) for e, _ in found] == [
        (name, size, 0o4755, 1234, 1_600_000_000)
        for name, size in ((b"a", 0), (b"b", 700), (long.encode(), 5))
    ]
    assert [content for _, content in found] == [b"", b"x" * 700, b"xxxxx"]


def test_v7_without_magic_is_read_and_a_trailing_slash_means_a_directory() -> None:
    entry = one(archive(header(b"dir/", flag=b"\0", magic=b"", prefix=b"ignored")))
    assert (entry.kind, entry.name) == (Kind.DIRECTORY, b"dir/")


def test_pax_records_override_the_header() -> None:
    extended = pax(
        *((b"path", b"n\xc3\xa4me"), (b"uid", b"4000000000"), (b"mtime", b"-1.25"), (b"size", b"3")),
        *((b"SCHILY.xattr.user.a=b", b"x"), (b"SCHILY.xattr.user.v", b"\0\n1"), (b"comment", b"no")),
    )
    data = archive(extended, header(b"short", size=b"0"), b"abc".ljust(512, b"\0"))
    ((entry, content),) = read(data)
    assert (entry.name, entry.uid, entry.size, content) == (b"n\xc3\xa4me", 4_000_000_000, 3, b"abc")
    assert (entry.mtime, entry.mtime_nsec) == (-2, 750_000_000)
    assert entry.xattrs[b"user.v"] == b"\0\n1"


def test_a_pax_header_concerns_the_next_member_only_and_a_global_one_none() -> None:
    global_ = member(b"pax", b"15 path=global\n", flag=b"g")
    found = read(archive(global_, pax((b"path", b"renamed")), member(b"a"), member(b"b")))
    assert [entry.name for entry, _ in found] == [b"renamed", b"b"]


def test_base_256_numbers() -> None:
    entry = one(archive(header(uid=b"\x80\0\0\0\x80\0\0\0", mtime=b"\xff" * 11 + b"\xfe")))
    assert (entry.uid, entry.mtime) == (1 << 31, -2)


def test_entries_that_are_only_a_header_have_no_content() -> None:
    found = read(archive(header(b"link", flag=b"2", link=b"to", size=b"1000"), member(b"next")))
    assert [(entry.name, entry.stored) for entry, _ in found] == [(b"link", 0), (b"next", 0)]


def test_an_archive_may_end_without_a_marker() -> None:
    assert one(member(b"a")).name == b"a"


SPARSE_MAP = b"2\n512\n3\n2048\n4\n".ljust(512, b"\0")


@pytest.mark.parametrize(
    "data",
    [
        archive(
            pax(
                *((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"s")),
                (b"GNU.sparse.realsize", b"4096"),
            ),
            member(b"GNUSparseFile.0/s", SPARSE_MAP + b"abcdefg"),
        ),
        archive(
            pax(
                (b"GNU.sparse.map", b"512,3,2048,4"),
                (b"GNU.sparse.size", b"4096"),
                (b"GNU.sparse.name", b"s"),
            ),
            member(b"x", b"abcdefg"),
        ),
        archive(
            pax(
                *((b"GNU.sparse.size", b"4096"), (b"GNU.sparse.numblocks", b"2")),
                *((b"GNU.sparse.offset", b"512"), (b"GNU.sparse.numbytes", b"3")),
                *((b"GNU.sparse.offset", b"2048"), (b"GNU.sparse.numbytes", b"4")),
            ),
            member(b"s", b"abcdefg"),
        ),
        archive(
            header(
                b"s",
                flag=b"S",
                size=b"7",
                magic=b"ustar  ",
                tail=bytes(41)
                + b"00000001000\x0000000000003\x0000000004000\x0000000000004\0".ljust(96, b"\0")
                + b"\x0000000010000\0",
            ),
            b"abcdefg".ljust(512, b"\0"),
        ),
    ],
    ids=["1.0", "0.1", "0.0", "old"],
)
def test_sparse_files(data: bytes) -> None:
    ((entry, content),) = read(data)
    assert (entry.name, entry.size, entry.pieces) == (b"s", 4096, [(512, 3), (2048, 4)])
    assert content == b"abcdefg"


HOSTILE = {
    "nothing": b"",
    "half a header": header()[:300],
    "cut in a file": member(b"a", b"x" * 2000)[:1500],
    "wrong checksum": archive(header().replace(b"file", b"fire")),
    "text": b"This is no archive. " * 100,
    "negative size": archive(header(size=b"\xff" * 12)),
    "enormous size": archive(header(size=b"\x80" + b"\x7f" * 11)),
    "signed octal size": archive(header(size=b"-1")),
    "size with underscore": archive(header(size=b"1_0")),
    "size not octal": archive(header(size=b"99")),
    "negative owner": archive(header(uid=b"\xff" * 8)),
    "owner -1": archive(pax((b"uid", b"4294967295")), header()),
    "unknown type": archive(header(flag=b"M")),
    "pax without length": archive(member(b"p", b"path=x\n", flag=b"x"), header()),
    "pax length too long": archive(member(b"p", b"99 path=x\n", flag=b"x"), header()),
    "pax length zero": archive(member(b"p", b"0 path=x\n", flag=b"x"), header()),
    "pax without newline": archive(member(b"p", b"9 path=xy", flag=b"x"), header()),
    "pax without equals": archive(member(b"p", b"7 path\n", flag=b"x"), header()),
    "pax NUL in path": archive(pax((b"path", b"a\0b")), header()),
    "pax negative size": archive(pax((b"size", b"-5")), header()),
    "pax size beyond 64 bits": archive(pax((b"size", b"9" * 30)), header()),
    "pax bad mtime": archive(pax((b"mtime", b"1e9")), header()),
    "long name of 2 MB": archive(header(flag=b"L", size=b"10000000"), bytes(1 << 21), header()),
    "sparse without size": archive(pax((b"GNU.sparse.map", b"0,1")), member(b"a", b"x")),
    "sparse beyond its size": archive(
        pax((b"GNU.sparse.map", b"9,1"), (b"GNU.sparse.size", b"5")), member(b"a", b"x")
    ),
    "sparse overlapping": archive(
        pax((b"GNU.sparse.map", b"0,2,1,2"), (b"GNU.sparse.size", b"5")), member(b"a", b"xxxx")
    ),
    "sparse map odd": archive(pax((b"GNU.sparse.map", b"0"), (b"GNU.sparse.size", b"5")), member(b"a")),
    "sparse map never ends": archive(
        pax(*((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9"))),
        member(b"a", b"9" * 4096),
    ),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_archives_are_refused(data: bytes) -> None:
    with pytest.raises(BadTar):
        read(data)


@pytest.mark.parametrize("length", [513, 600, 1024])
def test_the_last_padding_may_be_missing(length: int) -> None:
    ((entry, content),) = read(member(b"a", b"x")[:length])
    assert (entry.name, content) == (b"a", b"x")


@given(st.binary(max_size=600), st.integers(0, 2000))
def test_noise_never_breaks_the_reader(noise: bytes, at: int) -> None:
    sound = archive(pax((b"path", b"p"), (b"mtime", b"1.5")), member(b"a", b"x" * 600), member(b"b"))
    data = sound[:at] + noise + sound[at + len(noise) :]
    with contextlib.suppress(BadTar):
        read(data, 700)


@given(st.binary(max_size=40), st.binary(max_size=40), st.integers(0, 30))
def test_noise_in_pax_records_never_breaks_the_reader(before: bytes, after: bytes, number: int) -> None:
    text = before + b"%d GNU.sparse.map=" % number + after
    with contextlib.suppress(BadTar):
        read(archive(member(b"p", text, flag=b"x"), header()))

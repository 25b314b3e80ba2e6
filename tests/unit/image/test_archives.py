# SPDX-License-Identifier: Apache-2.0
"""Compression, tar and archives read from strangers."""

from __future__ import annotations

import contextlib
import gzip
import io
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proa.image import archive_reader
from proa.image.archive_images import read_images
from proa.image.archive_reader import ArchiveSpooler, SpooledArchive
from proa.image.compression import PIECE_BYTES, Inflater
from proa.image.content import ContentStore
from proa.image.tarstream import Member, MemberEnd, MemberKind, TarReader
from proa.model.errors import InvalidParameter
from tests.support.images import COMPRESSORS, docker_files, make_layer, make_tar, oci_files, sha256


def read(data: bytes, size: int = 1 << 20) -> dict[str, bytes]:
    """All members of a tar that is fed in pieces of a size."""
    reader = TarReader()
    members: dict[str, bytes] = {}
    name = ""
    for start in range(0, len(data), size):
        for event in reader.feed(data[start : start + size]):
            if isinstance(event, Member):
                name = event.name
                members[name] = b""
            elif not isinstance(event, MemberEnd):
                members[name] += event
    reader.finish()
    return members


def spool(root: Path, data: bytes, size: int = 1 << 20) -> SpooledArchive:
    store = ContentStore(root / "blobs")
    store.open()
    spooler = ArchiveSpooler(store.create_spool())
    try:
        for start in range(0, len(data), size):
            spooler.feed(data[start : start + size])
        return spooler.finish()
    finally:
        spooler.close()


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
def test_compressed_streams_in_any_pieces(name: str, size: int) -> None:
    plain = random.Random(1).randbytes(500) + bytes(3_000_000 if size > 1000 else 3000)
    packed = COMPRESSORS[name](plain)
    if size == 1:
        packed = packed[:20_000]  # a byte at a time is slow; the sample is small enough anyway
        plain = plain[: len(plain) if name != "plain" else 20_000]
    inflater = Inflater()
    pieces = [piece for at in range(0, len(packed), size) for piece in inflater.feed(packed[at : at + size])]
    pieces += inflater.finish()
    assert b"".join(pieces) == plain
    assert name == "plain" or max(map(len, pieces)) <= PIECE_BYTES


def test_members_in_a_row_are_one_stream_and_padding_is_ignored() -> None:
    for size in (1, 5, 1000):
        packed = gzip.compress(b"one") + gzip.compress(b"two") + bytes(50)
        inflater = Inflater()
        out = [piece for at in range(0, len(packed), size) for piece in inflater.feed(packed[at : at + size])]
        assert b"".join([*out, *inflater.finish()]) == b"onetwo"


@pytest.mark.parametrize("name", [name for name in COMPRESSORS if name != "plain"])
def test_broken_compression(name: str) -> None:
    packed = COMPRESSORS[name](random.Random(2).randbytes(5000))
    with pytest.raises(InvalidParameter, match="unexpected EOF"):
        inflater = Inflater()
        list(inflater.feed(packed[:-20]))
        list(inflater.finish())
    damaged = packed[:300] + bytes(100) + packed[400:]
    with pytest.raises(InvalidParameter, match="damaged"):
        inflater = Inflater()
        list(inflater.feed(damaged))
        list(inflater.finish())


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("size", [1, 511, 512, 513, 1 << 20])
def test_all_tar_formats_in_any_pieces(form: int, size: int) -> None:
    long_name = "d" * 90 + "/" + ("é" if form == tarfile.PAX_FORMAT else "e") * 60
    if form != tarfile.USTAR_FORMAT:
        long_name = "directory/" * 30 + long_name
    wanted = {"empty": b"", "a": b"x" * 511, long_name: b"y" * 513, "b": b"z" * 1024}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in wanted.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(data))
    assert read(buffer.getvalue(), size) == wanted
    assert read(buffer.getvalue() + b"what follows the end is ignored", size) == wanted


def test_links_and_directories_have_no_content() -> None:
    data = make_tar({}, {"link": "target"})
    events = [event for event in TarReader().feed(data) if isinstance(event, Member)]
    assert events == [Member(name="link", kind=MemberKind.SYMLINK, size=0, target="target")]


@pytest.mark.parametrize("cut", [1, 100, 511, 600, 1023])
def test_a_tar_that_stops_in_the_middle(cut: int) -> None:
    with pytest.raises(InvalidParameter, match="unexpected EOF"):
        read(make_tar({"a": b"x" * 700})[:cut])


def test_a_tar_without_its_end_blocks_is_accepted() -> None:
    assert read(make_tar({"a": b"x" * 512})[:1024]) == {"a": b"x" * 512}


def test_what_is_no_tar() -> None:
    with pytest.raises(InvalidParameter, match="invalid tar header"):
        read(b"hello, world " * 100)


def test_pax_records_are_checked() -> None:
    for body in (
        b"9999 path=x\n",
        b"0 path=x\n",
        b"x path=y\n",
        b"11 path=xy!",
        b"6 path\n",
        b"12 size=-100\n",
    ):
        info = tarfile.TarInfo("pax")
        info.type, info.size = tarfile.XHDTYPE, len(body)
        data = info.tobuf() + body.ljust(512, b"\0") + make_tar({"a": b""})
        with pytest.raises(InvalidParameter):
            read(data)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_tar_is_read_or_refused(data: st.DataObject) -> None:
    tar = bytearray(make_tar({"a": b"x" * 600, "b" * 150: b"y"}, {"l": "a"}))
    for _ in range(data.draw(st.integers(1, 6))):
        tar[data.draw(st.integers(0, len(tar) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):  # most damage is caught by the check sum, so mend that too
        tar[148:156] = b"%06o\0 " % (sum(tar[:148]) + 8 * 32 + sum(tar[156:512]))
    with contextlib.suppress(InvalidParameter):
        read(bytes(tar), data.draw(st.sampled_from([100, 512, 5000])))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_archive_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    layers = [make_layer("one"), make_layer("two")]
    files = data.draw(st.sampled_from([docker_files(layers), oci_files(layers)]))
    name = data.draw(st.sampled_from(sorted(name for name in files if not name.endswith("layer.tar"))))
    content = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 5))] = data.draw(
            st.sampled_from([b"", b"null", b"[]", b"{}", b"0", b'"', b",", b"sha256:", b"\xff"])
        )
    with contextlib.suppress(InvalidParameter):
        read_images(spool(tmp_path, make_tar({**files, name: bytes(content)})))


def test_links_of_old_archives_are_followed(tmp_path: Path) -> None:
    archive = spool(
        tmp_path,
        make_tar({"one/layer.tar": b"data"}, {"two/layer.tar": "../one/layer.tar", "three": "two/layer.tar"}),
    )
    assert archive.get("two/layer.tar").digest == archive.get("./three").digest == sha256(b"data")


def test_links_cannot_leave_the_archive(tmp_path: Path) -> None:
    links = {
        "up": "../../../etc/passwd",
        "root": "/etc/passwd",
        "loop": "pool",
        "pool": "loop",
        "self": "self",
    }
    archive = spool(tmp_path, make_tar({"../../evil": b"x"}, links))
    assert archive.find("up") is None
    assert archive.find("root") is None
    assert archive.get("evil").size == 1
    for name in ("loop", "self"):
        with pytest.raises(InvalidParameter, match="too many links"):
            archive.find(name)
    assert not (tmp_path.parent / "evil").exists()


def test_the_last_member_of_a_name_counts(tmp_path: Path) -> None:
    archive = spool(tmp_path, make_tar([("a", b"old"), ("a", b"new")]))
    assert archive.get("a").digest == sha256(b"new")


def test_the_number_of_members_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_reader, "MAX_MEMBERS", 3)
    with pytest.raises(InvalidParameter, match="more than 3 members"):
        spool(tmp_path, make_tar({str(number): b"" for number in range(4)}))

# SPDX-License-Identifier: Apache-2.0
"""The store of snapshots: whole or not there, and no archive is believed."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from proa.host import sparse
from proa.model.errors import DataLoss, InvalidParameter, NameInUse, NotFound
from proa.model.ids import Digest
from proa.storage.snapshots import FORMAT, Manifest, Snapshots

pytestmark = pytest.mark.anyio

PARTS = ("state", "mem")
HOLE = 3 << 20


@pytest.fixture
def store(tmp_path: Path) -> Snapshots:
    return Snapshots(tmp_path / "snapshots")


async def make(store: Snapshots, name: str = "one") -> Manifest:
    async with store.making() as directory:
        (directory / "state").write_bytes(b"state" * 30000)
        with (directory / "mem").open("wb") as file:
            os.truncate(file.fileno(), HOLE)
            os.pwrite(file.fileno(), b"some", 70_000)
            os.pwrite(file.fileno(), bytes(65536), 1 << 20)  # written, but nothing
            os.pwrite(file.fileno(), b"end", HOLE - 3)
        manifest = Manifest(
            format=FORMAT,
            created_at_ns=1,
            container={"name": "web", "image_id": "sha256:i"},
            machine={},
            layers={"sha256:a": "b"},
            parts=await store.digest(directory, PARTS),
        )
        await store.complete(directory, name, manifest)
    return manifest


async def archive(store: Snapshots, name: str = "one") -> bytes:
    return b"".join([piece async for piece in store.export(name)])


async def take_in(store: Snapshots, content: bytes, name: str) -> None:
    async with store.making() as directory, store.making() as aside:
        (aside / "archive").write_bytes(content)
        manifest = await store.take_in(aside / "archive", directory, PARTS)
        await store.complete(directory, name, manifest)


async def test_one_is_stored_checked_and_removed(store: Snapshots, tmp_path: Path) -> None:
    manifest = await make(store)
    assert store.names() == store.whole() == ["one"]
    assert store.get("one") == manifest
    assert store.of_image(Digest("sha256:i")) == ["one"]
    assert store.of_image(Digest("sha256:j")) == []
    assert 200_000 < store.size_of("one") < HOLE
    assert await store.checked("one", PARTS) == tmp_path / "snapshots" / "one"
    with pytest.raises(NameInUse):
        await make(store)
    await store.remove("one")
    for missing in ("one", "../snapshots", ".making-x"):
        with pytest.raises(NotFound):
            await store.remove(missing)
    assert list((tmp_path / "snapshots").iterdir()) == []


@pytest.mark.parametrize("name", ["", "a/b", "..", ".x", "-x", "a" * 129])
def test_names(store: Snapshots, name: str) -> None:
    with pytest.raises(InvalidParameter):
        store.check_new(name)


async def test_what_was_changed_is_not_used(store: Snapshots, tmp_path: Path) -> None:
    await make(store)
    with (tmp_path / "snapshots/one/mem").open("r+b") as file:
        os.pwrite(file.fileno(), b"X", 2 << 20)
    with pytest.raises(DataLoss, match="mem is not what was saved"):
        await store.checked("one", PARTS)
    (tmp_path / "snapshots/one/snapshot.json").write_text("{")
    assert store.whole() == []
    with pytest.raises(DataLoss, match="makes no sense"):
        store.get("one")


async def test_what_was_cut_short_is_removed_by_the_next_daemon(store: Snapshots, tmp_path: Path) -> None:
    (tmp_path / "snapshots/.making-1").mkdir()
    (tmp_path / "snapshots/.making-1/mem").touch()
    await make(store)
    assert Snapshots(tmp_path / "snapshots").names() == ["one"]
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["one"]


async def test_archives(store: Snapshots, tmp_path: Path) -> None:
    await make(store)
    content = await archive(store)
    assert len(content) < 500_000, "holes are left out"
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert tar.getnames() == ["snapshot.json", *PARTS]
    await take_in(store, content, "two")
    assert (tmp_path / "snapshots/two/mem").read_bytes() == (tmp_path / "snapshots/one/mem").read_bytes()
    assert await archive(store, "two") == content
    for cut in (0, 100, 700, 2000, len(content) // 2, len(content) - 2000):
        with pytest.raises(InvalidParameter):
            await take_in(store, content[:cut], "three")


def changed(content: bytes, change: Callable[[str, bytes], bytes | None]) -> bytes:
    """Return the archive with members changed, or left out."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(content)) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in old:
            reader = old.extractfile(member)
            assert reader is not None
            data = change(member.name, reader.read())
            if data is not None:
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
    return out.getvalue()


def set_format(name: str, data: bytes) -> bytes:
    if name != "snapshot.json":
        return data
    return msgspec.json.encode({**msgspec.json.decode(data), "format": 7})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda name, data: data.replace(b"some", b"same"), "mem is not what was saved"),
        (lambda name, data: None if name == "mem" else data, "not a whole archive"),
        (lambda name, data: None if name == "snapshot.json" else data, "not a whole archive"),
        (lambda name, data: data[:-40] if name == "mem" else data, "damaged|cut short"),
        (lambda name, data: b"\xff" * 16 + data[16:] if name == "mem" else data, "damaged"),
        (lambda name, data: data.replace(b'"mem"', b'"men"') if name == "snapshot.json" else data, "parts"),
        (lambda name, data: b"[]" if name == "snapshot.json" else data, "makes no sense"),
        (set_format, "has format 7"),
    ],
)
async def test_a_changed_archive_is_refused(
    store: Snapshots, tmp_path: Path, change: Callable[[str, bytes], bytes | None], why: str
) -> None:
    await make(store)
    content = changed(await archive(store), change)
    with pytest.raises(InvalidParameter, match=why):
        await take_in(store, content, "two")
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["one"]


def test_a_packed_file_does_not_depend_on_its_holes(tmp_path: Path) -> None:
    holey, full = tmp_path / "holey", tmp_path / "full"
    with holey.open("wb") as file:
        os.truncate(file.fileno(), 1 << 20)
        os.pwrite(file.fileno(), b"x", 500_000)
    full.write_bytes(holey.read_bytes())
    packed = []
    for path in (holey, full):
        with path.open("rb") as file:
            packed.append(b"".join(sparse.pack(file.fileno())))
    assert packed[0] == packed[1]
    assert len(packed[0]) == 65536 + 32

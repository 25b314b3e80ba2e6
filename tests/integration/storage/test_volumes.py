# SPDX-License-Identifier: Apache-2.0
"""Volumes: Docker's rules and texts, content from the image, crashes."""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path

import anyio
import pytest

from proa.host.database import Database
from proa.model.errors import Conflict, InvalidParameter, NoSuchVolume, NotFound
from proa.model.volume import Volume
from proa.storage.volumes import Volumes
from tests.integration.storage.conftest import Store
from tests.support.tars import archive, header, member, pax

pytestmark = pytest.mark.anyio


def create(store: Store, name: str | None = None, **options: str) -> Volume:
    return store.volumes.create(name, labels={"a": "b"}, options=options)


async def test_create_get_list_remove(store: Store) -> None:
    named, anonymous = create(store, "data"), create(store)
    assert create(store, "data") is named and not named.anonymous and named.labels == {"a": "b"}
    assert anonymous.anonymous and len(anonymous.name) == 64
    assert anonymous.labels["com.docker.volume.anonymous"] == ""
    assert store.volumes.list() == [named, anonymous]
    assert named.mountpoint == store.base / "volumes" / "data" / "_data"
    assert named.mountpoint.stat().st_mode & 0o7777 == 0o755
    (named.mountpoint / "file").write_bytes(b"x" * 5000)
    assert await store.volumes.usage_bytes("data") == 8192
    await store.volumes.remove("data")
    with pytest.raises(NoSuchVolume, match="get data: no such volume"):
        store.volumes.get("data")
    with pytest.raises(NoSuchVolume):
        await store.volumes.remove("data")
    assert [path.name for path in (store.base / "volumes").iterdir()] == [anonymous.name]


async def test_names_drivers_and_options_that_docker_refuses(store: Store) -> None:
    text = (
        'create ../x: "../x" includes invalid characters for a local volume name, only '
        '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
    )
    with pytest.raises(InvalidParameter, match=f"^{re.escape(text)}$"):
        create(store, "../x")
    for name in (".x", "a b", "a\n", "ä" * 2, "a" * 256):
        with pytest.raises(InvalidParameter):
            create(store, name)
    with pytest.raises(InvalidParameter, match="volume name is too short"):
        create(store, "x")
    with pytest.raises(NotFound, match='error looking up volume plugin nfs: plugin "nfs" not found'):
        store.volumes.create("data", driver="nfs", labels={}, options={})
    with pytest.raises(InvalidParameter, match='invalid option: "foo"'):
        create(store, "data", foo="bar")
    with pytest.raises(InvalidParameter, match='missing required option: "device"'):
        create(store, "data", type="tmpfs")
    create(store, "data")
    with pytest.raises(Conflict):
        create(store, "data", o="bind")
    assert [path.name for path in (store.base / "volumes").iterdir()] == ["data"]


async def test_a_start_makes_rows_and_directories_agree(store: Store, base: Path) -> None:
    lost, removed, again = create(store, "lost"), create(store, "removed"), create(store, "again")
    shutil.rmtree(lost.mountpoint.parent)
    removed.mountpoint.parent.rename(base / "volumes" / ".removed-removed~1")  # killed before the row went
    (base / "volumes" / ".removed-again~2" / "_data").mkdir(parents=True)  # made anew since
    (base / "volumes" / "found" / "_data" / "content").mkdir(parents=True)  # the database is older
    with Database(base / "engine.db") as db:
        volumes = Volumes(db, base / "volumes", layers=store.layers)
        assert {volume.name for volume in volumes.list()} == {"lost", "again", "found"}
        assert volumes.get("again") == again and lost.mountpoint.is_dir()
        assert [path.name for path in volumes.get("found").mountpoint.iterdir()] == ["content"]
    assert {path.name for path in (base / "volumes").iterdir()} == {"lost", "again", "found"}


IMAGE = archive(
    header(b"srv", flag=b"5", mode=b"1750", uid=b"144", mtime=b"7654321"),
    pax((b"SCHILY.xattr.user.note", b"n"), (b"mtime", b"123456.5")),
    member(b"srv/file", b"content", mode=b"4755", uid=b"1750"),
    header(b"srv/hard", flag=b"1", link=b"srv/file"),
    header(b"srv/link", flag=b"2", link=b"/etc/shadow"),
    header(b"srv/fifo", flag=b"6", mode=b"600"),
    header(b"srv/null", flag=b"3", mode=b"666", device=(b"1", b"3")),
    member(b"srv/holes", b"x" + bytes(1 << 20) + b"x"),
    header(b"srv/empty", flag=b"5", mode=b"700", uid=b"1"),
    member(b"srv/a/b/c", b"deep"),
    header(b"to-srv", flag=b"2", link=b"/srv/../srv"),
    header(b"out", flag=b"2", link=b"../../../../../../etc"),
    header(b"loop", flag=b"2", link=b"loop"),
    member(b"plain", b"file"),
)
HIDES = archive(member(b"srv/a/b/.wh.c"), member(b"srv/new", b"new"))


async def test_an_empty_volume_takes_the_images_content(store: Store) -> None:
    volume = create(store, "data")
    await store.volumes.copy_up(volume, [await store.add(IMAGE), await store.add(HIDES)], "/to-srv/")
    data = volume.mountpoint
    names = {str(path.relative_to(data)) for path in data.rglob("*")}
    assert names == {"file", "hard", "link", "fifo", "null", "holes", "empty", "a", "a/b", "new"}
    file = (data / "file").stat()
    assert (stat.S_IMODE(file.st_mode), file.st_uid, file.st_gid) == (0o4755, 1000, 1000)
    assert file.st_mtime_ns == 123_456_500_000_000 and file.st_nlink == 2
    assert (data / "hard").samefile(data / "file") and (data / "file").read_text() == "content"
    assert os.getxattr(data / "file", "user.note") == b"n"
    assert (data / "link").readlink() == Path("/etc/shadow")
    assert stat.S_ISFIFO((data / "fifo").stat().st_mode) and (data / "null").stat().st_rdev == os.makedev(
        1, 3
    )
    holes = (data / "holes").stat()
    assert holes.st_size == (1 << 20) + 2 and holes.st_blocks * 512 < 1 << 18
    assert (data / "holes").read_bytes() == b"x" + bytes(1 << 20) + b"x"
    assert stat.S_IMODE((data / "empty").stat().st_mode) == 0o700
    assert not any(name.startswith("trusted.") for name in os.listxattr(data / "a/b"))


async def test_the_directorys_own_attributes_are_copied(store: Store) -> None:
    volume = create(store, "data")
    await store.volumes.copy_up(volume, [await store.add(IMAGE)], "srv")
    top = volume.mountpoint.stat()
    assert (stat.S_IMODE(top.st_mode), top.st_uid, int(top.st_mtime)) == (0o1750, 100, 0o7654321)
    assert (volume.mountpoint / "a/b/c").read_text() == "deep"


@pytest.mark.parametrize("path", ["/nothing", "/plain/below", "/loop", "/out", "/out/../../etc"])
async def test_what_is_not_in_the_image_is_not_copied(store: Store, path: str) -> None:
    volume = create(store, "data")
    await store.volumes.copy_up(volume, [await store.add(IMAGE)], path)
    await store.volumes.copy_up(volume, [], path)
    assert list(volume.mountpoint.iterdir()) == [] and volume.mountpoint.stat().st_uid == 0


async def test_a_file_in_the_images_place_is_refused(store: Store) -> None:
    with pytest.raises(InvalidParameter, match="cannot mount volume over existing file, file exists /plain"):
        await store.volumes.copy_up(create(store, "data"), [await store.add(IMAGE)], "/plain")


async def test_a_volume_with_content_is_left_alone(store: Store) -> None:
    volume = create(store, "data")
    (volume.mountpoint / "mine").touch()
    await store.volumes.copy_up(volume, [await store.add(IMAGE)], "/srv")
    assert [path.name for path in volume.mountpoint.iterdir()] == ["mine"]


async def test_a_copy_that_was_cut_short_is_made_anew(store: Store) -> None:
    volume = create(store, "data")
    (volume.mountpoint / "file").write_text("half of the con")
    (volume.mountpoint / "dir" / "sub").mkdir(parents=True)
    (volume.mountpoint.parent / "copying").touch()
    await store.volumes.copy_up(volume, [await store.add(IMAGE)], "/srv")
    assert (volume.mountpoint / "file").read_text() == "content" and not (volume.mountpoint / "dir").exists()
    assert not (volume.mountpoint.parent / "copying").exists()


async def test_two_containers_fill_a_volume_once(store: Store) -> None:
    volume = create(store, "data")
    layers = [await store.add(IMAGE)]
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(store.volumes.copy_up, volume, layers, "/srv")
    assert (volume.mountpoint / "a/b/c").read_text() == "deep"


async def test_an_image_is_held_read_only(store: Store) -> None:
    layers = [await store.add(IMAGE)]
    with store.volumes.pinned_image(layers, "") as image, store.volumes.pinned_image(layers, "srv/a") as part:
        assert (image / "srv/file").read_text() == "content"
        assert (part / "b/c").read_text() == "deep"
        with pytest.raises(OSError, match="Read-only"):
            (image / "new").touch()
    assert not image.exists() and not part.exists()
    with pytest.raises(InvalidParameter), store.volumes.pinned_image(layers, "srv/nothing"):
        raise AssertionError("there is nothing")
    root = create(store, "v1").mountpoint.parent.parent
    assert [path.name for path in root.iterdir()] == ["v1"]


async def test_what_lies_at_a_subpath_is_held(store: Store) -> None:
    volume = create(store, "v1")
    inside = volume.mountpoint / "sub"
    inside.mkdir()
    (inside / "f").write_text("inside")
    (volume.mountpoint / "file").write_text("alone")
    with store.volumes.pinned("v1", "sub") as place, store.volumes.pinned("v1", "file") as single:
        inside.rename(volume.mountpoint / "away")
        inside.symlink_to("/etc")  # what another container might do now
        assert (place / "f").read_text() == "inside"
        assert single.read_text() == "alone"
    assert not place.exists() and not single.exists()
    with pytest.raises(InvalidParameter, match="cannot access path"), store.volumes.pinned("v1", "sub"):
        raise AssertionError("the link was followed")
    assert [path.name for path in volume.mountpoint.parent.parent.iterdir()] == ["v1"]

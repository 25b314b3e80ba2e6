# SPDX-License-Identifier: Apache-2.0
"""Trees of files read and written by the confined child, on the real kernel."""

from __future__ import annotations

import gzip
import io
import os
import stat
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from proa.host import mount
from proa.model.errors import InvalidParameter
from proa.storage.files import trees
from proa.storage.files.trees import PathMissing, Tree, TreeMount, WriteRules
from tests.integration.storage.conftest import Store
from tests.support import hostile
from tests.support.hostile import CASES, Case
from tests.support.tars import archive, header, member

pytestmark = pytest.mark.anyio

OUTSIDE = Path("/tmp") / hostile.OUT.decode()


async def read(tree: Tree, path: str) -> bytes:
    async with trees.open_archive(tree, path) as (_, pieces):
        return b"".join([piece async for piece in pieces])


async def put(
    tree: Tree, path: str, data: bytes, *, strict: bool = False, user: str = "", **rules: object
) -> None:
    async def stream() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 50_000):
            yield data[start : start + 50_000]

    await trees.put_archive(tree, path, stream(), WriteRules(strict=strict, user=user, **rules))  # type: ignore[arg-type]


async def list_changes(upper: Path, below: int, ignored: Sequence[str] = ()) -> list[tuple[int, str]]:
    async with trees.open_changes(upper, below, ignored=ignored) as changes:
        return [change async for change in changes]


def names(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getnames()


@pytest.fixture
def root(base: Path) -> Path:
    """A tree as a container may have it."""
    root = base / "root"
    for name in ("etc", "tmp", "proc", "dest"):
        (root / name).mkdir(parents=True)
    (root / "etc" / "passwd").write_text("root:x:0:0::/:\njo:x:1001:1002::/:\n")
    (root / "etc" / "group").write_text("wheel:x:10:jo\n")
    (root / "etc" / "shadow").write_text("secret")
    return root


class TestReading:
    async def test_what_is_at_a_path(self, root: Path) -> None:
        (root / "l").symlink_to("etc/../tmp")
        (root / "away").symlink_to("/etc/nothing/../there")
        tree = Tree(root=root)
        assert (await trees.stat_path(tree, "/l")).target == "/tmp"
        assert (await trees.stat_path(tree, "/away")).target == "/etc/there"
        assert (await trees.stat_path(tree, "l/")).mode >> 31 == 1
        assert (await trees.stat_path(tree, "/")).name == "/"
        assert (await trees.stat_path(tree, "/../../etc/passwd")).size > 0
        for missing in ("/nope", "/nope/", "/away/"):
            with pytest.raises(PathMissing):
                await trees.stat_path(tree, missing)
        for wrong in ("/etc/passwd/", "/etc/passwd/x", "/" + "n" * 300, "/" + "n/" * 3000):
            with pytest.raises(InvalidParameter):
                await trees.stat_path(tree, wrong)

    async def test_there_and_back(self, root: Path) -> None:
        source = root / "source"
        (source / "empty").mkdir(parents=True)
        (source / "su").write_bytes(b"x" * 3_000_000)
        os.chown(source / "su", 4_000_000_000, 7)
        (source / "su").chmod(0o6711)
        os.setxattr(source / "su", "security.capability", b"\1\0\0\2" + bytes(16))
        os.link(source / "su", source / "z-link")
        (source / ("n" * 255)).symlink_to("t" * 4000)
        os.mkfifo(source / "fifo", 0o640)
        os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(source / "socket", stat.S_IFSOCK | 0o666)
        (source / "sparse").touch()
        os.truncate(source / "sparse", 1 << 30)
        with (source / "sparse").open("r+b") as file:
            file.seek(1 << 29)
            file.write(b"middle")
        for path, time_ns in ((source / "su", 123_456_789_012_345_678), (source, -1_500_000_000)):
            os.utime(path, ns=(0, time_ns))
        tree = Tree(root=root)
        data = await read(tree, "/source")
        assert len(data) < 3_200_000
        assert data == await read(tree, "/source"), "the same tree gives the same bytes"
        await put(tree, "/dest", data)
        made = root / "dest" / "source"
        assert sorted(path.name for path in made.iterdir()) == sorted(
            path.name for path in source.iterdir() if path.name != "socket"
        )
        for name in ("", "su", "n" * 255, "fifo", "null", "sparse", "empty"):
            was, now = (source / name).lstat(), (made / name).lstat()
            for field in ("st_mode", "st_uid", "st_gid", "st_size", "st_rdev", "st_mtime_ns"):
                if name or field != "st_size":
                    assert getattr(now, field) == getattr(was, field), (name, field)
        assert (made / "su").stat().st_ino == (made / "z-link").stat().st_ino
        assert os.getxattr(made / "su", "security.capability") == b"\1\0\0\2" + bytes(16)
        assert (made / "sparse").stat().st_blocks < 1000
        assert (made / "n".ljust(255, "n")).readlink() == Path("t" * 4000)

    async def test_names_are_dockers(self, root: Path) -> None:
        (root / "l").symlink_to("/etc")
        tree = Tree(root=root)
        assert names(await read(tree, "/etc")) == ["etc", "etc/group", "etc/passwd", "etc/shadow"]
        assert names(await read(tree, "/etc/.")) == [".", "./group", "./passwd", "./shadow"]
        assert names(await read(tree, "/l")) == ["l"]
        assert names(await read(tree, "/l/"))[:2] == ["l", "l/group"]
        assert "/etc/passwd" in names(await read(tree, "/"))
        async with trees.open_export(tree) as pieces:
            exported = names(b"".join([piece async for piece in pieces]))
        assert exported[:3] == ["dest", "etc", "etc/group"]

    async def test_a_reader_who_leaves_ends_the_child(self, root: Path) -> None:
        (root / "big").write_bytes(bytes(8_000_000))
        with anyio.fail_after(10):
            async with trees.open_archive(Tree(root=root), "/big") as (stat_, pieces):
                assert stat_.size == 8_000_000
                await anext(pieces)

    async def test_devices_are_not_opened(self, root: Path) -> None:
        """Reading one would never end, and could do anything."""
        os.mknod(root / "dest" / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        with anyio.fail_after(10):
            assert names(await read(Tree(root=root), "/dest")) == ["dest", "dest/zero"]


class TestMounts:
    async def test_a_copy_sees_what_is_mounted(self, root: Path, base: Path) -> None:
        volume = base / "volume"
        volume.mkdir()
        (volume / "f").write_text("in the volume")
        (root / "data").symlink_to("/etc")  # the container's link is not the host's
        tree = Tree(
            root=root,
            mounts=[
                TreeMount(source=volume, target="/new/place"),
                TreeMount(source=volume, target="/data/sub", read_only=True),
                TreeMount(source=volume / "f", target="/etc/one"),
            ],
        )
        assert names(await read(tree, "/new/place")) == ["place", "place/f"]
        assert names(await read(tree, "/etc/sub")) == ["sub", "sub/f"]
        await put(tree, "/new/place", archive(member(b"g", b"1")))
        assert (volume / "g").read_text() == "1"
        await put(tree, "/etc", archive(member(b"one", b"in place")))
        assert (volume / "f").read_text() == "in place"
        with pytest.raises(InvalidParameter, match="read-only file system"):
            await put(tree, "/data/sub", archive(member(b"g", b"2")))
        assert not Path("/etc/sub").exists()
        (volume / "way").symlink_to(base)  # of another container that has the same volume
        sub = TreeMount(source=volume, subpath="way", target="/mnt")
        with pytest.raises(InvalidParameter, match="mount source path does not exist"):
            await read(Tree(root=root, mounts=[sub]), "/mnt")
        with pytest.raises(InvalidParameter, match="mount source path does not exist: /no/where"):
            await read(Tree(root=root, mounts=[TreeMount(source=Path("/no/where"), target="/x")]), "/")

    async def test_read_only_targets_in_dockers_words(self, root: Path) -> None:
        tree = Tree(root=root)
        data = archive(member(b"f", b"1"))
        rules: dict[str, Any] = {  # Any: fields of WriteRules
            "read_only_root": True,
            "volumes": [("/tmp", True), ("/tmp/ro", False)],
        }
        (root / "tmp" / "ro").mkdir()
        (root / "way").symlink_to("tmp/ro")
        with pytest.raises(InvalidParameter, match="container rootfs is marked read-only"):
            await put(tree, "/dest", data, **rules)
        for path in ("/tmp/ro", "/way"):
            with pytest.raises(InvalidParameter, match="mounted volume is marked read-only"):
                await put(tree, path, data, **rules)
        await put(tree, "/tmp", data, **rules)

    async def test_the_namespace_of_another(self, root: Path) -> None:
        fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            tree = Tree(namespace=fd)
            assert (await trees.stat_path(tree, str(root / "etc" / "shadow"))).size == 6
            await put(tree, str(root / "dest"), archive(member(b"f", b"1")))
            for path in ("/proc/self/status", "/proc", "/sys/kernel"):
                with pytest.raises(InvalidParameter, match="which cannot be copied"):
                    await read(tree, path)
            with pytest.raises((InvalidParameter, PathMissing)):
                await read(tree, "/proc/1/root/etc/passwd")
        finally:
            os.close(fd)
        assert (root / "dest" / "f").read_text() == "1"


class TestWriting:
    async def test_owners(self, root: Path) -> None:
        tree = Tree(root=root)
        data = archive(header(b"d/", flag=b"5", uid=b"5"), member(b"d/f", b"1", uid=b"5", mode=b"4755"))
        for user, owner in (("", (5, 5)), ("jo", (1001, 1002)), ("7", (7, 0)), ("jo:wheel", (1001, 10))):
            await put(tree, "/dest", data, user=user)
            status = (root / "dest" / "d" / "f").stat()
            assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (*owner, 0o4755)
        with pytest.raises(InvalidParameter, match="unable to find user who"):
            await put(tree, "/dest", data, user="who")

    async def test_strictness(self, root: Path) -> None:
        tree = Tree(root=root)
        (root / "dest" / "d" / "deep").mkdir(parents=True)
        (root / "dest" / "f").write_text("0")
        directory, file = archive(header(b"f", flag=b"5")), archive(member(b"d", b"1"))
        with pytest.raises(InvalidParameter, match='cannot overwrite directory "/dest/d" with non-directory'):
            await put(tree, "/dest", file, strict=True)
        with pytest.raises(InvalidParameter, match='cannot overwrite non-directory "/dest/f" with directory'):
            await put(tree, "/dest", directory, strict=True)
        await put(tree, "/dest", file + directory)
        await put(tree, "/dest", file)
        assert (root / "dest" / "d").read_text() == "1"

    @pytest.mark.parametrize(
        ("path", "error", "message"),
        [
            ("/etc/passwd", InvalidParameter, "extraction point is not a directory"),
            ("/nope", PathMissing, "nope"),
            ("/l", PathMissing, "nowhere"),
        ],
    )
    async def test_where_nothing_can_go(
        self, root: Path, path: str, error: type[Exception], message: str
    ) -> None:
        (root / "l").symlink_to("/nowhere")
        with pytest.raises(error, match=message):
            await put(Tree(root=root), path, archive(member(b"f", b"1")))

    async def test_compressed_and_empty(self, root: Path) -> None:
        await put(Tree(root=root), "/dest", gzip.compress(archive(member(b"f", b"1"))))
        assert (root / "dest" / "f").read_text() == "1"
        await put(Tree(root=root), "/dest", b"")

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    async def test_hostile_archives(self, root: Path, base: Path, case: Case) -> None:
        before = {path: path.lstat() for path in base.iterdir()}
        data = hostile.archive(case)
        if case.put:
            await put(Tree(root=root), "/dest", data)
        else:
            with pytest.raises(InvalidParameter) as caught:
                await put(Tree(root=root), "/dest", data)
            assert 10 < len(caught.value.message) < 500
            assert "Traceback" not in caught.value.message
        assert not OUTSIDE.exists()
        assert {path: path.lstat().st_ino for path in base.iterdir()} == {
            path: status.st_ino for path, status in before.items()
        }
        assert (root / "etc" / "shadow").read_text() == "secret"
        assert (root / "etc" / "shadow").stat().st_nlink == 1

    @pytest.mark.parametrize("bomb", ["bytes", "gzip", "inodes"])
    async def test_bombs_end_with_the_space_there_is(self, root: Path, bomb: str) -> None:
        """The file system is small here; of a large one some is left free."""
        small = root / "small"
        small.mkdir()
        mount.mount("tmpfs", small, "tmpfs", data="size=24m,nr_inodes=2000")

        async def stream() -> AsyncIterator[bytes]:
            if bomb == "inodes":
                number = 0
                while True:
                    number += 50
                    yield b"".join(member(b"f%d" % name) for name in range(number, number + 50))
            head = header(b"f", size=b"%o" % (1 << 35))
            piece = b"x" * 1_000_000
            if bomb == "gzip":
                yield gzip.compress(head + b"y" * (256 << 20), 1)
                return
            yield head
            while True:
                yield piece

        try:
            with anyio.fail_after(30), pytest.raises(Exception, match="no space left on device"):
                await trees.put_archive(Tree(root=small), "/", stream(), WriteRules())
        finally:
            mount.unmount(small)


class TestRaces:
    """Somebody inside swaps directories for links to a place of the host while files are copied."""

    @pytest.fixture
    def victim(self, root: Path, base: Path) -> Iterator[Path]:
        victim = base / "victim"
        victim.mkdir()
        (victim / "secret").write_text("of the host")
        (root / "w" / "d" / "d").mkdir(parents=True)
        (root / "w" / "d" / "d" / "f").write_text("1")
        script = (
            f"cd {root}/w; while :; do mv d e; ln -s {victim} d; rm d; mv e d;"
            f"mv d/d d/e; ln -s {victim} d/d; rm d/d; mv d/e d/d; done"
        )
        swapper = subprocess.Popen(["/bin/sh", "-c", script], stderr=subprocess.DEVNULL)
        try:
            yield victim
        finally:
            swapper.kill()
            swapper.wait()
        assert [path.name for path in victim.iterdir()] == ["secret"]
        assert (victim / "secret").read_text() == "of the host"

    async def test_copies(self, root: Path, victim: Path) -> None:
        tree = Tree(root=root)
        new = archive(*(member(b"d/d/new%d" % number, b"x") for number in range(50)))
        refused = 0
        for _ in range(8):
            for path in ("/w", "/w/d", "/w/d/d/f", "/w/d/d"):
                try:
                    assert b"secret" not in await read(tree, path)
                except (PathMissing, InvalidParameter):
                    refused += 1
            try:
                await put(tree, "/w", new)
            except (PathMissing, InvalidParameter):
                refused += 1
        assert refused < 40, "nothing was copied at all"


class TestLayers:
    async def test_an_upper_becomes_a_layer(self, store: Store) -> None:
        base = await store.add(
            archive(
                header(b"d/", flag=b"5", mode=b"755"),
                member(b"d/gone", b"1"),
                member(b"d/stays", b"2"),
                header(b"new/", flag=b"5", mode=b"755"),
                member(b"new/hidden", b"3"),
                member(b"file", b"4"),
                header(b"etc/", flag=b"5", mode=b"755"),
            )
        )
        container = "c" * 64
        async with store.roots.hold(container, [base]) as root:  # type: ignore[arg-type]
            (root / "d" / "gone").unlink()
            (root / "new" / "hidden").unlink()
            (root / "new").rmdir()
            (root / "new").mkdir()
            (root / "new" / "seen").write_text("5")
            (root / "file").write_text("44")
            (root / "file").chmod(0o4711)
            (root / "added" / "deep").mkdir(parents=True)
            (root / "etc" / "hosts").touch()  # a mount point of the runtime
            merged = await snapshot(Tree(root=root))
            upper = store.roots.upper_of(container)  # type: ignore[arg-type]
            with store.roots.open_below([base]) as below:
                changes = await list_changes(upper, below, ignored=["etc/hosts"])
                blob = store.base / "layer.tar"
                with blob.open("wb") as file:
                    packed = await trees.pack_upper(upper, below, file.fileno(), ignored=["etc/hosts"])
        assert changes == [
            (1, "/added"),
            (1, "/added/deep"),
            (0, "/d"),
            (2, "/d/gone"),
            (0, "/file"),
            (0, "/new"),
            (1, "/new/seen"),
            (2, "/new/hidden"),
        ]
        assert names(blob.read_bytes()) == [
            "added",
            "added/deep",
            "d",
            "d/.wh.gone",
            "file",
            "new",
            "new/.wh..wh..opq",
            "new/seen",
        ]
        stored = await store.layers.add(blob, expected=packed.diff_id)
        assert (stored.size_bytes, packed.is_empty) == (blob.stat().st_size, False)
        async with store.roots.hold("d" * 64, [base, stored.diff_id]) as root:  # type: ignore[arg-type]
            again = await snapshot(Tree(root=root))
        merged.pop("etc/hosts")
        assert again == merged

    async def test_no_change_is_an_empty_layer(self, store: Store) -> None:
        base = await store.add(archive(header(b"d/", flag=b"5", mode=b"755"), member(b"d/f", b"1")))
        container = "c" * 64
        async with store.roots.hold(container, [base]) as root:  # type: ignore[arg-type]
            (root / "d" / "x").touch()
            (root / "d" / "x").unlink()
            upper = store.roots.upper_of(container)  # type: ignore[arg-type]
            with store.roots.open_below([base]) as below, (store.base / "t").open("wb") as file:
                assert await list_changes(upper, below) == []
                assert (await trees.pack_upper(upper, below, file.fileno())).is_empty

    async def test_names_that_are_no_text(self, store: Store) -> None:
        container = "c" * 64
        async with store.roots.hold(container, []) as root:  # type: ignore[arg-type]
            Path(os.fsdecode(os.fsencode(root) + b"/\xff")).symlink_to(
                b"\xfe".decode(errors="surrogateescape")
            )
            (root / "way").symlink_to(b"\xff".decode(errors="surrogateescape"))
            upper = store.roots.upper_of(container)  # type: ignore[arg-type]
            assert await list_changes(upper, -1) == [(1, "/way"), (1, "/\ufffd")]
            assert (await trees.stat_path(Tree(root=root), "/way")).target == "/\ufffd"
            with pytest.raises(InvalidParameter, match="\ufffd"):
                await put(Tree(root=root), "/", archive(member(b"\xfe/\xfd"), member(b"\xfe/\xfd/x")))

    async def test_a_name_that_means_a_deletion(self, store: Store) -> None:
        container = "c" * 64
        async with store.roots.hold(container, []) as root:  # type: ignore[arg-type]
            (root / ".wh.x").touch()
            upper = store.roots.upper_of(container)  # type: ignore[arg-type]
            with (store.base / "t").open("wb") as file, pytest.raises(InvalidParameter, match="a deletion"):
                await trees.pack_upper(upper, -1, file.fileno())


async def snapshot(tree: Tree) -> dict[str, tuple[int, int, int, str, bytes]]:
    """All files of a tree: mode, owner, link and content by name."""
    async with trees.open_export(tree) as pieces:
        data = b"".join([piece async for piece in pieces])
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for one in tar:
            content = tar.extractfile(one) if one.isreg() else None
            text = content.read() if content is not None else b""
            found[one.name] = (one.mode, one.uid, one.gid, one.linkname, text)
    return found

# SPDX-License-Identifier: Apache-2.0
"""Layers: what is stored is what the archive says, and nothing is stored by halves."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from backports import zstd

from proa.host import process
from proa.model.errors import DataLoss, InvalidParameter, NotFound
from proa.model.ids import Digest
from proa.storage.layers import LayerLimits, Layers
from tests.integration.storage.conftest import Store
from tests.support.tars import archive, header, member, pax, simple

pytestmark = pytest.mark.anyio

FSCK = shutil.which("fsck.erofs")  # Debian's erofs-utils; the kernel is the judge elsewhere


def digest(data: bytes) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


def rich_tree(root: Path) -> None:
    """Every kind of file, at sizes around every border of the format."""
    root.mkdir()
    sizes = [0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 6143, 6144, 6145, 8192, 300_000]
    for size in sizes:
        (root / f"size-{size}").write_bytes(os.urandom(size))
    for count in (1, 30, 31, 60, 200, 700):
        directory = root / f"dir-{count}"
        directory.mkdir()
        for number in range(count):
            (directory / f"{'n' * (number % 200)}{number}").write_text(str(number))
    (root / "long-link").symlink_to("x/" * 2040)
    (root / "short-link").symlink_to("size-1")
    (root / "hard").hardlink_to(root / "size-4097")
    os.mkfifo(root / "fifo", 0o620)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    (root / "name with \n and \udcff").write_text("odd")
    os.setxattr(root / "size-1", "user.long", b"v" * 3000)
    os.setxattr(root / "size-1", "user.empty", b"")
    os.setxattr(root / "dir-1", "trusted.own", b"t")
    os.setxattr(root / "size-2048", "security.capability", b"\1\0\0\2\0\4\0\0" + bytes(12))
    (root / "dir-30").chmod(0o3755)
    (root / "size-1").chmod(0o4711)
    os.chown(root / "size-0", 3_000_000_000, 65_534)
    os.utime(root / "size-0", ns=(0, 1_234_567_890_123_456_789))
    os.utime(root / "size-1", ns=(0, -1_500_000_000))


def facts(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = path.readlink()
        elif path.is_file():
            content = path.read_bytes()
        xattrs = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        }
        links = status.st_nlink
        found[str(path.relative_to(root))] = (
            *(status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_rdev),
            *(links, content, xattrs),
        )
    return found


def tar_of(directory: Path) -> bytes:
    options = ["--xattrs", "--xattrs-include=*", "--format=pax", "--numeric-owner"]
    return subprocess.run(
        ["tar", *options, "-cf", "-", "."], cwd=directory, check=True, capture_output=True
    ).stdout


def slow_layer() -> bytes:
    """A layer whose image is soon written, and whose digest then takes some ten seconds."""
    return gzip.compress(archive(member(b"a", b"x" * 3_000_000))) + 100 * gzip.compress(bytes(50 << 20))


async def test_the_mounted_layer_is_the_tree_that_was_packed(store: Store) -> None:
    tree = store.base / "tree"
    rich_tree(tree)
    data = tar_of(tree)
    blob = store.base / "blob"
    blob.write_bytes(data)
    layer = await store.layers.add(blob, expected=digest(data))
    assert (layer.diff_id, layer.size_bytes) == (digest(data), len(data))
    assert store.layers.get(layer.diff_id) == layer
    assert facts(store.layers.mount(layer.diff_id)) == facts(tree)


async def test_loop_devices_serve_kernels_that_cannot_mount_files(store: Store) -> None:
    diff_id = await store.add(simple(a="text"))
    store.layers.mounts._from_files = False
    target = store.layers.mount(diff_id)
    assert (target / "a").read_text() == "text"
    await store.layers.unmount_unused()


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstd.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
}


@pytest.mark.parametrize("name", COMPRESSORS)
async def test_compressed_layers(store: Store, name: str) -> None:
    data = simple(a="x" * 3_000_000, b="y")
    half = len(data) // 2
    # Several members, as pigz and zstd -T write them.
    packed = COMPRESSORS[name](data[:half]) + COMPRESSORS[name](data[half:])
    assert await store.add(packed) == digest(data)
    for damaged in (packed[:-20], packed[: len(packed) // 2] + b"damage" + packed[len(packed) // 2 :]):
        with pytest.raises(InvalidParameter, match=r"unexpected EOF|damaged"):
            await store.add(damaged)


async def test_the_same_tar_makes_the_same_image(store: Store) -> None:
    data = archive(member(b"b", b"1"), member(b"a", b"2"), header(b"d", flag=b"5"))
    diff_id = await store.add(data)
    first = store.layers.path(diff_id).read_bytes()
    await store.layers.remove([diff_id])
    await store.add(gzip.compress(data))
    assert store.layers.path(diff_id).read_bytes() == first


async def test_sparse_files_keep_their_holes(store: Store) -> None:
    size = 32 << 20
    extended = pax((b"GNU.sparse.map", b"1048576,3"), (b"GNU.sparse.size", b"%d" % size))
    diff_id = await store.add(archive(extended, member(b"s", b"abc"), member(b"after", b"x")))
    target = store.layers.mount(diff_id)
    content = (target / "s").read_bytes()
    assert len(content) == size and content[1 << 20 :][:3] == b"abc" and content.count(0) == size - 3
    assert (target / "after").read_bytes() == b"x"
    assert store.layers.disk_bytes(diff_id) < 1 << 20


BAD = {
    "empty": b"",
    "text": b"no archive at all" * 100,
    "outside": archive(member(b"../../etc/passwd", b"root::0:0")),
    "cut": member(b"a", b"x" * 9000)[:5000],
    "negative": archive(header(size=b"\xff" * 12)),
    "bad link": archive(header(b"x", flag=b"1", link=b"/etc/shadow")),
    "too many files": archive(*(header(b"%d" % number) for number in range(6000))),
    "too many parents": archive(*(header(b"a/" * 40 + b"%d" % n, prefix=b"%d/" % n * 30) for n in range(90))),
    "too large": archive(header(b"big", size=b"%o" % (200 << 20))) + bytes(300 << 20),
    "bomb": gzip.compress(archive(header(b"big", size=b"%o" % (60 << 20))) + bytes(80 << 20)),
    "sparse bomb": archive(
        pax((b"GNU.sparse.map", b"0,0"), (b"GNU.sparse.size", b"%d" % (1 << 50))), header()
    ),
    "huge name": archive(pax((b"path", b"x/" * 5000)), header()),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
async def test_bad_layers_are_refused_and_leave_nothing(store: Store, data: bytes) -> None:
    with pytest.raises(InvalidParameter, match="Error processing tar file: "):
        await store.add(data)
    assert store.layers.ids() == set()
    assert [path.name for path in (store.base / "layers").rglob("*")] == ["incoming"]


async def test_limits_are_named(store: Store) -> None:
    with pytest.raises(InvalidParameter, match="more than 67108864 bytes, the limit for a layer"):
        await store.add(BAD["bomb"])
    with pytest.raises(InvalidParameter, match="more than 5000 files, the limit for a layer"):
        await store.add(BAD["too many files"])


async def test_memory_and_time_are_limited(base: Path) -> None:
    blob = base / "blob"
    blob.write_bytes(b"".join(member(b"%d" % number, b"x" * 2000) for number in range(20_000)))
    tight = Layers(base / "a", exec_root=base / "run", limits=LayerLimits(memory_bytes=64 << 20))
    with pytest.raises(InvalidParameter, match="67108864 bytes of memory"):
        await tight.add(blob)
    blob.write_bytes(slow_layer())
    hasty = Layers(base / "b", exec_root=base / "run", limits=LayerLimits(time_s=1))
    with pytest.raises(InvalidParameter, match="more than 1 s of processor time"):
        await hasty.add(blob)
    assert tight.ids() == hasty.ids() == set()


async def test_another_digest_is_refused(store: Store) -> None:
    blob = store.base / "blob"
    blob.write_bytes(simple(a="1"))
    with pytest.raises(InvalidParameter, match="expected sha256:0000"):
        await store.layers.add(blob, expected=Digest("sha256:" + "0" * 64))
    assert store.layers.ids() == set()
    with pytest.raises(DataLoss):
        await store.layers.add(store.base / "missing")


async def test_adding_twice_and_at_once(store: Store) -> None:
    data = simple(a="x" * 1_000_000)
    blob = store.base / "blob"
    blob.write_bytes(data)
    found = []

    async def add() -> None:
        found.append(await store.layers.add(blob, expected=digest(data)))

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(add)
    blob.unlink()  # not needed any more: the layer is there
    await add()
    assert len({layer.diff_id for layer in found}) == 1 and len(found) == 5
    await store.layers.remove([found[0].diff_id])
    await store.layers.remove([found[0].diff_id])
    assert store.layers.ids() == set()
    with pytest.raises(NotFound):
        store.layers.mount(found[0].diff_id)


async def test_a_cancelled_add_leaves_nothing(store: Store) -> None:
    blob = store.base / "blob"
    blob.write_bytes(slow_layer())
    store.layers._limits = LayerLimits()
    with anyio.move_on_after(0.3) as scope:
        await store.layers.add(blob)
    assert scope.cancelled_caught
    assert list((store.base / "layers" / "incoming").iterdir()) == []


ADD = """
import anyio, sys
from pathlib import Path
from proa.storage.layers import Layers
base = Path(sys.argv[1])
anyio.run(Layers(base / "layers", exec_root=base / "run").add, base / "blob")
"""


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.3])
def test_a_killed_daemon_leaves_nothing_by_halves(base: Path, after_s: float) -> None:
    (base / "blob").write_bytes(slow_layer())
    daemon = subprocess.Popen([sys.executable, "-c", ADD, base])
    child = wait_for_child(daemon.pid)
    time.sleep(after_s)
    daemon.kill()
    daemon.wait()
    wait_until(lambda: state_of(child) == "Z")  # it dies with its parent
    assert len(list((base / "layers" / "incoming").iterdir())) == 1
    layers = Layers(base / "layers", exec_root=base / "run")
    assert layers.ids() == set() and list((base / "layers" / "incoming").iterdir()) == []


def wait_until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_child(parent: int) -> int:
    """Wait until the child has given up its privileges: from then on it dies with its parent."""
    confined: list[int] = []

    def look() -> bool:
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            status = Path(f"/proc/{child}/status").read_text()
            if "NoNewPrivs:\t1" in status and "Uid:\t65534\t65534\t65534\t65534" in status:
                assert "CapEff:\t0000000000000000" in status and "Groups:\t \n" in status
                confined.append(int(child))
        return bool(confined)

    wait_until(look)
    return confined[0]


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


async def test_a_large_layer_is_stored_quickly(store: Store) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        block = os.urandom(8000)
        for number in range(3000):
            info = tarfile.TarInfo(f"dir{number % 50}/file{number}")
            info.size = len(block)
            tar.addfile(info, io.BytesIO(block))
    started = time.monotonic()
    await store.add(out.getvalue())
    assert time.monotonic() - started < 10  # 0.3 s when the machine is idle


async def test_mounts_are_found_again_and_taken_away(store: Store) -> None:
    diff_id = await store.add(simple(a="1"))
    target = store.layers.mount(diff_id)
    again = Layers(store.base / "layers", exec_root=store.base / "run")
    assert again.mount(diff_id) == target and again.mounts.mounted() == {diff_id}
    assert len(store.mounts()) == 1
    await again.unmount_unused([diff_id])
    assert len(store.mounts()) == 1
    await again.remove([diff_id])
    assert store.mounts() == [] and not target.exists()


@pytest.mark.skipif(FSCK is None, reason="erofs-utils is not installed")
async def test_fsck_finds_no_fault(store: Store) -> None:
    tree = store.base / "tree"
    rich_tree(tree)
    diff_id = await store.add(tar_of(tree))
    await process.run([FSCK or "", store.layers.path(diff_id)])


async def test_progress_is_told_while_a_layer_is_read(store: Store, tmp_path: Path) -> None:
    """How often depends on the machine; what is told is a place in the blob, and the end is the caller's."""
    blob = tmp_path / "blob.tar"
    blob.write_bytes(archive(*(member(b"f%d" % number, bytes(1_000_000)) for number in range(40))))
    told: list[int] = []
    await store.layers.add(blob, on_progress=told.append)
    assert told == sorted(told)
    assert all(0 <= position <= blob.stat().st_size for position in told)
    blob.write_bytes(b"no tar" * 1000)
    with pytest.raises(InvalidParameter, match="Error processing tar file"):
        await store.layers.add(blob, on_progress=told.append)

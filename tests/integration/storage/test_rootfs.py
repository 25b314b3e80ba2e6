# SPDX-License-Identifier: Apache-2.0
"""Root file systems in both kinds: what they show, what they keep, what they leave."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from proa.model.errors import NotFound
from proa.model.ids import ContainerId, Digest
from proa.model.task import BlockRootfs, DirectoryRootfs, RootfsKind
from proa.storage import overlay
from proa.storage.rootfs import Roots
from tests.integration.storage.conftest import Store
from tests.support.tars import archive, header, member, simple

pytestmark = pytest.mark.anyio

ID = ContainerId("c" * 64)
OTHER = ContainerId("d" * 64)
LOWER = archive(
    header(b"./", flag=b"5", mode=b"755"),
    member(b"keep", b"lower"),
    member(b"gone", b"lower"),
    member(b"changed", b"lower"),
    member(b"dir/old", b"lower"),
    member(b"dir2/old", b"lower"),
    member(b"suid", b"#!/bin/sh\n", mode=b"4755"),
)
UPPER = archive(
    member(b".wh.gone"),
    member(b"changed", b"upper"),
    member(b"dir/.wh..wh..opq"),
    member(b"dir/new", b"upper"),
    member(b"dir2/.wh.old"),
    member(b"dir3/.wh.never", b""),
    member(b"dir3/here", b"x"),
)


async def directory(store: Store, layers: list[Digest], container_id: ContainerId = ID) -> Path:
    rootfs = await store.roots.prepare(container_id, layers, RootfsKind.DIRECTORY)
    assert isinstance(rootfs, DirectoryRootfs)
    return rootfs.path


def files(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if not path.is_dir()}


async def settle(store: Store) -> None:
    """Wait until what goes on behind is done."""
    places = (store.base / "run" / "rootfs", ID), (store.base / "containers", ".removed-*")
    with anyio.fail_after(10):
        while any(any(place.glob(pattern)) for place, pattern in places):  # noqa: ASYNC110  # nobody tells us
            await anyio.sleep(0.01)


@pytest.fixture(params=["lowerdir+", "classic"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "classic":
        monkeypatch.setattr(overlay, "_knows_lowerdir_plus", False)


@pytest.mark.usefixtures("way")
async def test_layers_are_stacked_and_whiteouts_hide(store: Store) -> None:
    root = await directory(store, [await store.add(LOWER), await store.add(UPPER)])
    assert files(root) == {
        "keep": "lower",
        "changed": "upper",
        "dir/new": "upper",
        "dir3/here": "x",
        "suid": "#!/bin/sh\n",
    }
    assert sorted(path.name for path in (root / "dir3").iterdir()) == ["here"]
    (root / "dir2" / "old").write_text("written")
    (root / "keep").unlink()
    assert (root / "suid").stat().st_mode & 0o7777 == 0o4755
    await store.roots.release(ID)


async def test_programs_run_from_it_although_layers_are_mounted_noexec(store: Store) -> None:
    root = await directory(
        store, [await store.add(archive(member(b"x", b"#!/bin/sh\nexit 7\n", mode=b"755")))]
    )
    done = await anyio.run_process([str(root / "x")], check=False)
    assert done.returncode == 7
    await store.roots.release(ID)


@pytest.mark.usefixtures("way")
async def test_an_image_without_layers(store: Store) -> None:
    root = await directory(store, [])
    assert list(root.iterdir()) == []
    (root / "file").write_text("x")
    await store.roots.release(ID)


@pytest.mark.usefixtures("way")
async def test_as_many_layers_as_docker_allows(store: Store) -> None:
    image = store.layers.path(await store.add(simple(a="x"))).read_bytes()
    layers = [Digest(f"sha256:{number:064x}") for number in range(127)]
    for diff_id in layers:
        store.layers.path(diff_id).write_bytes(image)
    root = await directory(store, layers)
    assert (root / "a").read_text() == "x" and len(store.mounts()) == 128
    await store.roots.release(ID)


async def test_what_was_written_survives_release_and_a_new_daemon(store: Store) -> None:
    layers = [await store.add(LOWER)]
    root = await directory(store, layers)
    (root / "written").write_text("kept")
    assert await directory(store, layers) == root
    await store.roots.release(ID)
    await store.roots.release(ID)
    root = await directory(store, layers)  # waits for the release under way
    assert (root / "written").read_text() == "kept"
    async with anyio.create_task_group() as tasks:
        again = Roots(
            containers=store.base / "containers",
            exec_root=store.base / "run",
            layers=store.layers,
            tasks=tasks,
        )
        rootfs = await again.prepare(ID, layers, RootfsKind.DIRECTORY)
        assert isinstance(rootfs, DirectoryRootfs) and (rootfs.path / "written").read_text() == "kept"
        assert len([path for path in store.mounts() if path.name == ID]) == 1
        await again.remove(ID)
    assert list((store.base / "containers").iterdir()) == []


async def test_removal_is_quick_and_complete(store: Store) -> None:
    layers = [await store.add(LOWER)]
    root = await directory(store, layers)
    (root / "many").mkdir()
    for number in range(2000):
        (root / "many" / str(number)).touch()
    started = time.monotonic()
    await store.roots.remove(ID)
    assert time.monotonic() - started < 0.1
    await store.roots.remove(ID)
    await settle(store)
    assert not root.exists() and list((store.base / "containers").iterdir()) == []


async def test_a_busy_root_is_unmounted_when_its_last_user_leaves(store: Store) -> None:
    root = await directory(store, [await store.add(LOWER)])
    user = os.open(root, os.O_RDONLY)
    await store.roots.release(ID)
    await settle(store)
    assert not root.exists() and os.stat("keep", dir_fd=user).st_size == 5
    os.close(user)


async def test_leftovers_of_a_killed_removal_go_at_the_next_start(store: Store) -> None:
    left = store.base / "containers" / ".removed-x" / "overlay" / "upper"
    left.mkdir(parents=True)
    async with anyio.create_task_group() as tasks:
        Roots(
            containers=store.base / "containers",
            exec_root=store.base / "run",
            layers=store.layers,
            tasks=tasks,
        )
    assert list((store.base / "containers").iterdir()) == []


async def test_written_bytes_are_counted_as_docker_counts(store: Store) -> None:
    root = await directory(store, [await store.add(LOWER)])
    assert await store.roots.writable_bytes(ID) == 0
    (root / "a").write_bytes(b"x" * 5000)
    (root / "b").hardlink_to(root / "a")
    with (root / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    (root / "keep").unlink()
    assert await store.roots.writable_bytes(ID) == 5000
    assert await store.roots.writable_bytes(OTHER) == 0
    await store.roots.release(ID)


async def test_a_missing_layer_is_named(store: Store) -> None:
    missing = Digest("sha256:" + "a" * 64)
    for kind in RootfsKind:
        with pytest.raises(NotFound, match="No such layer: sha256:aaaa"):
            await store.roots.prepare(ID, [missing], kind)
    assert store.mounts() == []


async def test_a_layer_removed_while_it_is_used_stays_for_its_users(store: Store) -> None:
    diff_id = await store.add(LOWER)
    root = await directory(store, [diff_id])
    await store.layers.remove([diff_id])
    assert (root / "keep").read_text() == "lower"
    await store.roots.release(ID)


async def test_a_disk_for_a_virtual_machine(store: Store) -> None:
    layers = [await store.add(LOWER), await store.add(UPPER)]
    rootfs = await store.roots.prepare(ID, layers, RootfsKind.BLOCK)
    assert isinstance(rootfs, BlockRootfs)
    assert rootfs.layers == tuple(store.layers.path(diff_id) for diff_id in layers)
    assert rootfs.writable.stat().st_size == 10 << 30 and rootfs.writable.stat().st_blocks * 512 < 1 << 20
    assert await store.roots.writable_bytes(ID) == 0
    check(rootfs.writable)
    mounted = store.base / "disk"
    mounted.mkdir()
    await anyio.run_process(["mount", "-o", "loop", str(rootfs.writable), str(mounted)])
    try:
        assert {path.name for path in mounted.iterdir()} == {"upper", "work", "lost+found"}
        (mounted / "upper" / "written").write_bytes(os.urandom(1 << 20))
    finally:
        await anyio.run_process(["umount", str(mounted)])
    written = await store.roots.writable_bytes(ID)
    assert 900_000 <= written < 20 << 20  # the journal is written, some blocks were the template's
    again = await store.roots.prepare(ID, layers, RootfsKind.BLOCK)
    assert (
        rootfs.is_new
        and again == replace(rootfs, is_new=False)
        and await store.roots.writable_bytes(ID) == written
    )
    await store.roots.release(ID)
    await store.roots.remove(ID)
    await settle(store)
    assert not rootfs.writable.exists()


def check(disk: Path) -> None:
    subprocess.run(["e2fsck", "-fn", disk], check=True, capture_output=True)


async def test_a_disk_that_a_power_cut_left_empty_is_made_anew(store: Store) -> None:
    rootfs = await store.roots.prepare(ID, [], RootfsKind.BLOCK)
    assert isinstance(rootfs, BlockRootfs)
    rootfs.writable.write_bytes(bytes(4096))
    await store.roots.prepare(ID, [], RootfsKind.BLOCK)
    check(rootfs.writable)


class TestHolding:
    """One mount for what runs and for who reads, gone with the last of them."""

    async def test_what_does_not_run(self, store: Store) -> None:
        base = await store.add(simple(f="1"))
        async with store.roots.hold(ID, [base]) as root:
            assert (root / "f").read_text() == "1"
            async with store.roots.hold(ID, [base]) as again:
                assert again == root
            assert root in store.mounts()
            (root / "g").write_text("2")
        await gone(store, root)
        async with store.roots.hold(ID, [base]) as root:
            assert (root / "g").read_text() == "2"

    async def test_it_starts_and_ends_meanwhile(self, store: Store) -> None:
        base = await store.add(simple(f="1"))
        async with store.roots.hold(ID, [base]) as root:
            await store.roots.prepare(ID, [base], RootfsKind.DIRECTORY)
            (root / "g").write_text("2")
            await store.roots.release(ID)
            await anyio.lowlevel.checkpoint()
            assert store.mounts().count(root) == 1
            assert (root / "g").read_text() == "2"
        await gone(store, root)

    async def test_it_still_runs_when_the_reader_leaves(self, store: Store) -> None:
        base = await store.add(simple(f="1"))
        async with store.roots.hold(ID, [base]) as root:
            await store.roots.prepare(ID, [base], RootfsKind.DIRECTORY)
        assert root in store.mounts()
        await store.roots.release(ID)
        await gone(store, root)

    async def test_it_is_removed_meanwhile(self, store: Store) -> None:
        base = await store.add(simple(f="1"))
        containers = store.base / "containers"
        async with store.roots.hold(ID, [base]) as root:
            await store.roots.remove(ID)
            assert not (containers / ID).exists()
            assert (root / "f").read_text() == "1"
        await gone(store, root)
        with anyio.fail_after(10):
            while list(containers.iterdir()):  # noqa: ASYNC110  # nobody tells us
                await anyio.sleep(0.01)

    async def test_what_a_dead_daemon_left_mounted(self, store: Store) -> None:
        base = await store.add(simple(f="1"))
        runs = await directory(store, [base], ID)
        left = await directory(store, [base], OTHER)
        await store.roots.release_all_but([ID])
        await gone(store, left)
        async with store.roots.hold(ID, [base]):
            pass
        assert runs in store.mounts()
        await store.roots.release_all_but([])
        await gone(store, runs)


async def gone(store: Store, path: Path) -> None:
    """Unmounting goes on behind."""
    with anyio.fail_after(10):
        while path in store.mounts():  # noqa: ASYNC110  # nobody tells us
            await anyio.sleep(0.01)

# SPDX-License-Identifier: Apache-2.0
"""Root file systems whose ids are mapped: the ids inside, outside and on disk, and what is left of them."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from proa.host.mount import mount_table
from proa.model.errors import Unavailable
from proa.model.ids import ContainerId
from proa.model.task import DirectoryRootfs, IdMap, RootfsKind
from proa.storage.files import trees
from proa.storage.files.trees import Tree, TreeMount, WriteRules
from proa.storage.idmapped import IdMappedHomes
from tests.integration.storage.conftest import Store

pytestmark = pytest.mark.anyio

ID = ContainerId("e" * 64)
IDS = IdMap(uid=300_000, gid=400_000, size=1000)


def tar(**owners: tuple[int, int]) -> bytes:
    """An archive of empty files with these owners."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, (uid, gid) in owners.items():
            member = tarfile.TarInfo(name)
            member.uid, member.gid = uid, gid
            file.addfile(member)
    return buffer.getvalue()


LAYER = tar(file=(5, 6), gone=(0, 0))


@pytest.fixture
async def open_store(store: Store) -> AsyncIterator[Store]:
    """A store to whose files everybody finds the way, as to /run's."""
    for path in (store.base, *store.base.parents):
        if not path.stat().st_mode & 1:
            path.chmod(path.stat().st_mode | 0o011)
    yield store
    await store.roots.release(ID)
    await store.roots.remove(ID)
    with anyio.fail_after(10):
        while (store.base / "run" / "userns" / ID).exists():  # noqa: ASYNC110  # the kernel tells nobody
            await anyio.sleep(0.01)


async def prepare(store: Store) -> Path:
    layer = await store.add(LAYER)
    rootfs = await store.roots.prepare(ID, [layer], RootfsKind.DIRECTORY, ids=IDS)
    assert isinstance(rootfs, DirectoryRootfs)
    return rootfs.path


def owner(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


@pytest.mark.parametrize("takes_detached", [True, False])
async def test_ids_inside_and_on_disk(open_store: Store, takes_detached: bool) -> None:
    open_store.roots.idmapped = IdMappedHomes(
        open_store.base / "run" / "userns", takes_detached=takes_detached
    )
    root = await prepare(open_store)
    upper = open_store.roots.upper_of(ID)
    assert owner(root) == (300_000, 400_000)
    assert owner(root / "file") == (300_005, 400_006)
    with (root / "file").open("a") as file:
        file.write("more")
    assert owner(upper / "file") == (5, 6)
    (root / "gone").unlink()  # a whiteout is overlayfs's own
    os.chown(root / "file", 300_000, 400_999)
    assert owner(upper / "file") == (0, 999)
    with pytest.raises(OSError, match="Value too large"):
        os.chown(root / "file", 7, 7)
    assert not any(entry.mount_point.name == "staging" for entry in mount_table())


async def test_only_its_root_gets_there(open_store: Store) -> None:
    home = (await prepare(open_store)).parent
    assert home.stat().st_mode & 0o777 == 0o710
    assert owner(home) == (0, 400_000)


async def test_a_way_that_is_closed_is_named(open_store: Store) -> None:
    run = open_store.base / "run"
    run.chmod(0o700)
    with pytest.raises(Unavailable, match=f"others may not search {run} "):
        await prepare(open_store)
    run.chmod(0o711)


async def test_sources_are_mapped_while_it_starts(open_store: Store, tmp_path: Path) -> None:
    await prepare(open_store)
    source = tmp_path / "source"
    source.mkdir()
    os.chown(source, 7, 8)
    idmapped = open_store.roots.idmapped
    mapped = idmapped.map_source(ID, source, 0)
    assert owner(mapped) == (300_007, 400_008)
    file = tmp_path / "one"
    file.touch()
    assert owner(idmapped.map_source(ID, file, 1)) == (300_000, 400_000)
    with pytest.raises(Unavailable, match="cannot map the ids of /proc: proc cannot be idmapped"):
        idmapped.map_source(ID, Path("/proc"), 2)
    idmapped.unmap_sources(ID)
    assert not mapped.exists()


async def test_archives_have_the_ids_inside(open_store: Store, tmp_path: Path) -> None:
    layer = await open_store.add(LAYER)
    volume = tmp_path / "volume"
    volume.mkdir()
    async with open_store.roots.hold(ID, [layer], IDS) as root:
        tree = Tree(
            root=root,
            mounts=[TreeMount(source=volume, target="/v", mapped=True)],
            users=open_store.roots.idmapped.namespace_of(ID),
        )

        async def content() -> AsyncIterator[bytes]:
            yield tar(new=(11, 12))

        for path in ("/", "/v"):
            await trees.put_archive(tree, path, content(), WriteRules())
        async with trees.open_export(Tree(root=root, users=tree.users)) as pieces:
            exported = b"".join([piece async for piece in pieces])
    assert owner(volume / "new") == (11, 12)
    assert owner(open_store.roots.upper_of(ID) / "new") == (11, 12)
    with tarfile.open(fileobj=io.BytesIO(exported)) as file:
        owners = {member.name: (member.uid, member.gid) for member in file if member.isfile()}
    assert owners == {"new": (11, 12), "file": (5, 6), "gone": (0, 0)}


async def test_another_daemon_finds_it(open_store: Store) -> None:
    root = await prepare(open_store)
    (root / "mine").touch()
    found = IdMappedHomes(open_store.base / "run" / "userns")
    assert found.known() == {ID}
    assert found.root_of(ID) == root

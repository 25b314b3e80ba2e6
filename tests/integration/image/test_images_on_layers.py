# SPDX-License-Identifier: Apache-2.0
"""Images on the real layer store: the built-in image, archives of real tools, a daemon killed in a load."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from proa.host import process
from proa.host.database import Database
from proa.image.images import Images
from proa.model.errors import InvalidParameter
from proa.storage.layers import Layers
from tests.support.images import collect, docker_files, make_config, make_layer, make_tar, sha256, stream

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.geteuid() != 0, reason="the layer store needs root")]

REPOSITORY = Path(__file__).parents[3]


def quiet(line: object) -> None:
    """Progress that nobody sees."""


@pytest.fixture
async def images(tmp_path: Path) -> AsyncIterator[Images]:
    with closing(Database(tmp_path / "engine.db")) as db:
        layers = Layers(tmp_path / "layers", exec_root=tmp_path / "run")
        opened = Images(db=db, root=tmp_path, layers=layers)
        await opened.open()
        yield opened


@pytest.fixture(scope="module")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The built-in image, as ``make setup`` makes it."""
    archive = tmp_path_factory.mktemp("image") / "busybox.tar"
    script = REPOSITORY / "setup" / "make_busybox_image.py"
    subprocess.run(["/usr/bin/python3", script, "/bin/busybox", archive], check=True)
    return archive.read_bytes()


def stored_layers(root: Path) -> set[str]:
    return {path.name for path in (root / "layers").glob("*.erofs")}


async def test_the_built_in_image(images: Images, busybox: bytes, tmp_path: Path) -> None:
    assert await images.load(stream(busybox), on_progress=quiet) == ["Loaded image: busybox:latest"]
    image = images.get("busybox")
    assert image.config.cmd == ["sh"]
    assert image.config.env is not None
    assert image.config.env[0].startswith("PATH=")
    assert stored_layers(tmp_path) == {f"{image.layers[0][7:]}.erofs"}
    saved = await collect(images.save(["busybox"]))
    await images.remove("busybox", used_by=lambda image_id: [])
    assert stored_layers(tmp_path) == set()
    await images.load(stream(saved), on_progress=quiet)
    assert images.get("busybox") == image or images.get("busybox").id == image.id


def test_the_built_in_image_is_the_same_each_time(busybox: bytes, tmp_path: Path) -> None:
    again = tmp_path / "again.tar"
    script = REPOSITORY / "setup" / "make_busybox_image.py"
    subprocess.run(["/usr/bin/python3", script, "/bin/busybox", again], check=True, env={"TZ": "Asia/Tokyo"})
    assert again.read_bytes() == busybox


async def test_a_layer_that_is_not_its_diff_id_leaves_nothing(images: Images, tmp_path: Path) -> None:
    one, two = make_layer("one"), make_layer("two")
    config = make_config([one, make_layer("another")])
    with pytest.raises(InvalidParameter, match="expected sha256:"):
        await images.load(stream(make_tar(docker_files([one, two], config=config))), on_progress=quiet)
    with pytest.raises(InvalidParameter, match="Error processing tar file"):
        await images.import_(stream(b"this is no tar" * 100))
    assert stored_layers(tmp_path) == set()
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
async def test_archives_of_skopeo_come_in_and_ours_go_to_skopeo(
    images: Images, busybox: bytes, tmp_path: Path
) -> None:
    await images.load(stream(busybox), on_progress=quiet)
    image_id = images.get("busybox").id
    ours = tmp_path / "ours.tar"
    ours.write_bytes(await collect(images.save(["busybox"])))
    for form in ("docker-archive", "oci-archive"):
        theirs = tmp_path / f"{form}.tar"
        command = ["skopeo", "--insecure-policy", "copy", "--quiet", f"docker-archive:{ours}"]
        await process.run([*command, f"{form}:{theirs}:docker.io/library/theirs:1"])
        await images.load(stream(theirs.read_bytes()), on_progress=quiet)
        assert images.get("theirs:1").layers == images.get("busybox").layers
        await images.remove("theirs:1", used_by=lambda image_id: [])
    inspected = await process.run(["skopeo", "inspect", "--raw", f"oci-archive:{ours}"])
    assert image_id.encode() in inspected.stdout


LOADER = """
import sys, anyio
from pathlib import Path
from proa.host.database import Database
from proa.image.images import Images
from proa.storage.layers import Layers

async def pieces():
    with open(sys.argv[2], "rb") as file:
        while piece := file.read(65536):
            yield piece

async def main():
    root = Path(sys.argv[1])
    layers = Layers(root / "layers", exec_root=root / "run")
    images = Images(db=Database(root / "engine.db"), root=root, layers=layers)
    await images.open()
    print("open", flush=True)
    while True:
        await images.load(pieces(), on_progress=lambda line: None)
        await images.remove("busybox", used_by=lambda image_id: [])

anyio.run(main)
"""


async def test_killed_at_any_moment_the_store_is_whole(tmp_path: Path) -> None:
    layers = [make_tar({"file": bytes([number]) * 500_000}) for number in range(4)]
    archive = tmp_path / "archive.tar"
    archive.write_bytes(make_tar(docker_files(layers)))
    for round_ in range(6):
        command = [sys.executable, "-c", LOADER, str(tmp_path), str(archive)]
        async with await anyio.open_process(command, stderr=None) as daemon:
            assert daemon.stdout is not None
            assert (await daemon.stdout.receive()).startswith(b"open")
            await anyio.sleep(0.03 + 0.05 * round_)
            daemon.kill()
        with closing(Database(tmp_path / "engine.db")) as db:
            images = Images(
                db=db, root=tmp_path, layers=Layers(tmp_path / "layers", exec_root=tmp_path / "run")
            )
            await images.open()
            found = images.list(all=True)
            assert all(image.layers == tuple(sha256(layer) for layer in layers) for image in found)
            wanted = {f"{sha256(layer)[7:]}.erofs" for layer in layers} if found else set()
            assert stored_layers(tmp_path) == wanted
            blobs = [path.name for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
            assert len(blobs) == (5 if found else 0)
            if found:
                assert await collect(images.save([found[0].id]))


def test_the_built_in_root_is_complete(busybox: bytes, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(busybox)) as archive:
        layer = max((info for info in archive if info.isfile()), key=lambda info: info.size)
        file = archive.extractfile(layer)
        assert file is not None
        with tarfile.open(fileobj=file) as root:
            members = {info.name: info for info in root}
    assert members["tmp"].mode == 0o1777
    assert members["bin/busybox"].mode == 0o755
    for name in ("bin/sh", "bin/echo", "bin/sleep", "usr/bin/wget", "usr/bin/nc", "bin/ip"):
        assert name in members or f"s{name}" in members
    for name in ("etc/passwd", "etc/group", "root", "home", "var", "proc", "sys", "dev"):
        assert name in members

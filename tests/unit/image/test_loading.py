# SPDX-License-Identifier: Apache-2.0
"""Archives and root file systems coming in and going out; what a failure or a crash leaves behind."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proa.image.platform import host_platform
from proa.model.config import Empty
from proa.model.errors import InvalidParameter, NoSuchImage
from tests.support.images import (
    COMPRESSORS,
    blob,
    collect,
    descriptor,
    docker_files,
    make_config,
    make_layer,
    make_tar,
    oci_files,
    oci_index,
    oci_manifest,
    sha256,
    stream,
)
from tests.unit.image.conftest import MakeRig

pytestmark = pytest.mark.anyio

ONE, TWO = make_layer("one"), make_layer("two")


@pytest.mark.parametrize("compression", COMPRESSORS)
async def test_a_docker_archive_in_every_compression(make_rig: MakeRig, compression: str) -> None:
    rig = await make_rig()
    archive = COMPRESSORS[compression](make_tar(docker_files([ONE, TWO], ["busybox:latest", "me/box:1"])))
    assert await rig.load(archive) == ["Loaded image: busybox:latest", "Loaded image: me/box:1"]
    image = rig.images.get("busybox")
    assert image.layers == (sha256(ONE), sha256(TWO))
    assert image.size == len(ONE) + len(TWO)
    assert image.config.cmd == ["sh"]
    assert image.references == ("busybox:latest", "me/box:1")
    assert [event[0] for event in rig.events] == ["load"]
    assert {line["id"] for line in rig.progress} == {sha256(ONE)[7:19], sha256(TWO)[7:19]}


@pytest.mark.parametrize("compression", ["plain", "gzip"])
async def test_an_oci_layout_keeps_its_blobs_and_manifest(make_rig: MakeRig, compression: str) -> None:
    rig = await make_rig()
    name = {"io.containerd.image.name": "ghcr.io/me/box:1", "org.opencontainers.image.ref.name": "1"}
    files = oci_files([ONE, TWO], name, COMPRESSORS[compression])
    assert await rig.load(make_tar(files)) == ["Loaded image: ghcr.io/me/box:1"]
    assert rig.images.get("ghcr.io/me/box:1").layers == (sha256(ONE), sha256(TWO))
    assert rig.files() == {name[6:] for name in files if name.startswith("blobs/")}


async def test_an_image_without_a_name(make_rig: MakeRig) -> None:
    rig = await make_rig()
    assert await rig.load(make_tar(docker_files([ONE], []))) == [
        f"Loaded image ID: {sha256(make_config([ONE]))}"
    ]
    await rig.load(make_tar(oci_files([ONE], {"org.opencontainers.image.ref.name": "latest"})))
    assert rig.images.list()[0].references == ()


async def test_members_in_reverse_and_layers_that_are_links(make_rig: MakeRig) -> None:
    rig = await make_rig()
    config = make_config([ONE, ONE])
    files = docker_files([ONE], config=config)
    item = {
        "Config": f"{sha256(config)[7:]}.json",
        "RepoTags": ["a:b"],
        "Layers": ["x/layer.tar", "y/layer.tar"],
    }
    files = {"manifest.json": json.dumps([item]).encode(), "x/layer.tar": ONE, item["Config"]: config}  # type: ignore[dict-item]
    assert await rig.load(make_tar(files, {"y/layer.tar": "../x/layer.tar"})) == ["Loaded image: a:b"]
    assert rig.images.get("a:b").size == 2 * len(ONE)
    assert rig.layers.added == [sha256(ONE)]


def index_of_platforms(*architectures: str, attest: bool = False) -> dict[str, bytes]:
    """A layout whose index holds one index with an image for each architecture."""
    files: dict[str, bytes] = {}
    entries = []
    for architecture in architectures:
        layer = make_layer(architecture)
        config = make_config([layer], architecture=architecture)
        manifest = oci_manifest([layer], config)
        files |= blob(layer) | blob(config) | blob(manifest)
        entries.append(descriptor(manifest, platform={"os": "linux", "architecture": architecture}))
    if attest:
        files |= blob(b"{}")
        entries.insert(0, descriptor(b"{}", platform={"os": "unknown", "architecture": "unknown"}))
    inner = oci_index(entries)
    files |= blob(inner)
    names = {"io.containerd.image.name": "docker.io/library/multi:1"}
    files["index.json"] = oci_index([descriptor(inner, "index.v1+json", annotations=names)])
    return files


async def test_the_hosts_platform_is_taken_from_an_index(make_rig: MakeRig) -> None:
    rig = await make_rig()
    host = host_platform().architecture
    await rig.load(make_tar(index_of_platforms("s390x", host, "mips", attest=True)))
    assert rig.images.get("multi:1").architecture == host
    assert rig.layers.added == [sha256(make_layer(host))]


async def test_the_only_platform_of_an_index_is_taken(make_rig: MakeRig) -> None:
    rig = await make_rig()
    await rig.load(make_tar(index_of_platforms("mips", attest=True)))
    assert rig.images.get("multi:1").architecture == "mips"


async def test_no_platform_fits(make_rig: MakeRig) -> None:
    rig = await make_rig()
    with pytest.raises(InvalidParameter, match="no matching manifest for linux/"):
        await rig.load(make_tar(index_of_platforms("mips", "s390x")))


def broken_archives() -> dict[str, tuple[bytes, str]]:
    good = docker_files([ONE, TWO])
    config_name = next(name for name in good if name.endswith(".json") and name != "manifest.json")
    layout = oci_files([ONE])
    damaged = {name: data[:-1] + b"!" if data == ONE else data for name, data in layout.items()}

    def manifest(**keys: object) -> bytes:
        item = {**json.loads(good["manifest.json"])[0], **keys}
        return make_tar({**good, "manifest.json": json.dumps([item]).encode()})

    def config(data: bytes) -> bytes:
        return make_tar({**good, config_name: data})

    truncated = make_tar(good)
    return {
        "empty": (b"", "does not contain a manifest.json"),
        "no tar": (b"hello, world" * 100, "invalid tar header"),
        "truncated": (truncated[: len(truncated) // 2], "unexpected EOF"),
        "truncated gzip": (gzip.compress(truncated)[:-30], "unexpected EOF"),
        "no manifest": (make_tar({"a": b"b"}), "does not contain a manifest.json"),
        "manifest no json": (make_tar({"manifest.json": b"{"}), "invalid manifest.json"),
        "manifest null": (make_tar({"manifest.json": b"null"}), "manifest cannot be null"),
        "manifest number": (make_tar({"manifest.json": b"[1]"}), "invalid manifest.json"),
        "deep json": (make_tar({"manifest.json": b"[" * 100_000}), "invalid manifest.json"),
        "layer missing": (manifest(Layers=["a", "b"]), "'a' is missing"),
        "layer too few": (manifest(Layers=[]), "layers length mismatch: expected 0, got 2"),
        "bad name": (manifest(RepoTags=["Foo:1"]), "must be lowercase"),
        "name without tag": (manifest(RepoTags=["foo"]), 'invalid tag "foo"'),
        "config missing": (manifest(Config="../../etc/passwd"), "is missing"),
        "config no json": (config(b"\xff"), "invalid image configuration"),
        "config without rootfs": (config(b"{}"), "no RootFS key"),
        "config for windows": (config(make_config([ONE, TWO], os="windows")), "cannot load windows image"),
        "config bad diff id": (
            config(b'{"rootfs": {"diff_ids": ["sha256:../../x", "y"]}}'),
            "invalid digest 'sha256:../../x'",
        ),
        "config bad type": (config(make_config([ONE, TWO], {"Env": "x"})), "Env"),
        "another layer": (config(make_config([ONE, make_layer("other")])), "expected sha256:"),
        "layer no tar": (make_tar(docker_files([ONE, b"x" * 2000])), "Error processing tar file"),
        "blob damaged": (make_tar(damaged), "is damaged"),
        "index without manifest": (make_tar({"index.json": oci_index([descriptor(b"x")])}), "is missing"),
        "manifests no list": (make_tar(layout | {"index.json": b'{"manifests": 5}'}), "invalid index.json"),
    }


@pytest.mark.parametrize("case", broken_archives())
async def test_a_broken_archive_leaves_nothing(make_rig: MakeRig, case: str) -> None:
    rig = await make_rig()
    archive, message = broken_archives()[case]
    with pytest.raises(InvalidParameter) as caught:
        await rig.load(archive)
    assert message in caught.value.message
    assert rig.files() == set()
    assert list((rig.root / "blobs" / "ingest").iterdir()) == []
    assert rig.layers.stored == {}
    assert rig.images.list(all=True) == []
    assert rig.db.query("SELECT * FROM image_diff") == []
    assert rig.events == []


async def test_an_empty_manifest_is_an_empty_archive(make_rig: MakeRig) -> None:
    rig = await make_rig()
    assert await rig.load(make_tar({"manifest.json": b"[]"})) == []


async def test_a_client_that_goes_away_leaves_nothing(make_rig: MakeRig) -> None:
    rig = await make_rig()

    async def broken() -> AsyncIterator[bytes]:
        yield make_tar(docker_files([ONE, TWO]))[:1500]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await rig.images.load(broken(), on_progress=lambda line: None)
    assert rig.files() == set()
    assert list((rig.root / "blobs" / "ingest").iterdir()) == []


async def test_a_failed_load_keeps_what_others_share(make_rig: MakeRig) -> None:
    rig = await make_rig()
    await rig.load(make_tar(docker_files([ONE])))
    before = rig.files()
    with pytest.raises(InvalidParameter):
        await rig.load(make_tar(docker_files([ONE, TWO], config=make_config([ONE, make_layer("x")]))))
    assert rig.files() == before
    assert set(rig.layers.stored) == {sha256(ONE)}


async def test_loading_moves_a_name_and_says_so(make_rig: MakeRig) -> None:
    rig = await make_rig()
    await rig.load(make_tar(docker_files([ONE])))
    old = rig.images.get("busybox").id
    await rig.load(make_tar(docker_files([TWO])))
    assert rig.images.get("busybox").layers == (sha256(TWO),)
    assert rig.images.get(old).references == ()
    text = f"The image busybox:latest already exists, renaming the old one with ID {old} to empty string\n"
    assert {"stream": text} in rig.progress


async def test_save_and_load_again_gives_the_same(make_rig: MakeRig) -> None:
    rig = await make_rig()
    packed = COMPRESSORS["gzip"]
    await rig.load(make_tar(docker_files([ONE, TWO], ["a:1", "b:2"], compress=packed)))
    await rig.load(make_tar(oci_files([ONE], {"io.containerd.image.name": "docker.io/library/a:2"})))
    ids = {name: rig.images.get(name).id for name in ("a:1", "a:2", "b:2")}
    saved = await collect(rig.images.save(["a:1", "a:2", "b:2"]))
    assert saved == await collect(rig.images.save(["a:1", "a:2", "b:2"]))

    with tarfile.open(fileobj=io.BytesIO(saved)) as tar:
        names = tar.getnames()
    assert len(names) == len(set(names)), "shared blobs are written once"
    files = rig.files()
    assert {f"blobs/{name}" for name in files} <= set(names)

    for name in ids:
        await rig.images.remove(name, used_by=lambda image_id: [])
    assert rig.files() == set()
    assert await rig.load(saved) == ["Loaded image: a:1", "Loaded image: b:2", "Loaded image: a:2"]
    assert {name: rig.images.get(name).id for name in ids} == ids
    assert rig.files() >= files


async def test_a_saved_archive_is_an_oci_layout_too(make_rig: MakeRig) -> None:
    rig = await make_rig()
    await rig.load(make_tar(docker_files([ONE, TWO])))
    saved = await collect(rig.images.save(["busybox"]))
    with tarfile.open(fileobj=io.BytesIO(saved)) as tar:
        members = {info.name: tar.extractfile(info) for info in tar if info.isfile()}
        files = {name: file.read() for name, file in members.items() if file is not None}
    del files["manifest.json"]
    image_id = rig.images.get("busybox").id
    await rig.images.remove("busybox", used_by=lambda image_id: [])
    assert await rig.load(make_tar(files)) == ["Loaded image: busybox:latest"]
    assert rig.images.get("busybox").id == image_id


async def test_save_chooses_names(make_rig: MakeRig) -> None:
    rig = await make_rig()
    await rig.load(make_tar(docker_files([ONE], ["a:1", "a:2", "b:1"])))
    image_id = rig.images.get("a:1").id

    async def tags(*refs: str) -> list[str] | None:
        saved = await collect(rig.images.save(refs))
        with tarfile.open(fileobj=io.BytesIO(saved)) as tar:
            file = tar.extractfile("manifest.json")
            assert file is not None
            found: list[str] | None = json.load(file)[0]["RepoTags"]
            return found

    assert await tags("a") == ["a:1", "a:2"]
    assert await tags("b:1", "a:2") == ["b:1", "a:2"]
    assert await tags(image_id) is None
    assert await tags(image_id[7:15]) is None
    with pytest.raises(NoSuchImage, match="No such image: c:latest"):
        rig.images.save(["a", "c"])


async def test_saving_holds_blobs_until_the_end(make_rig: MakeRig) -> None:
    rig = await make_rig()
    await rig.load(make_tar(docker_files([ONE, TWO])))
    pieces = rig.images.save(["busybox"])
    first = await anext(pieces)
    await rig.images.remove("busybox", used_by=lambda image_id: [])
    rest = await collect(pieces)
    assert rig.files() == set()
    assert await rig.load(first + rest) == ["Loaded image: busybox:latest"]


@pytest.mark.parametrize("compression", COMPRESSORS)
async def test_import(make_rig: MakeRig, compression: str) -> None:
    rig = await make_rig()
    image_id = await rig.images.import_(
        stream(COMPRESSORS[compression](ONE)),
        repository="mine",
        tag="v1",
        message="by hand",
        changes=["CMD echo hi", "ENV A=1", "EXPOSE 80"],
        platform="linux/arm64",
    )
    image = rig.images.get("mine:v1")
    assert image.id == image_id
    assert image.layers == (sha256(ONE),)
    assert image.config.cmd == ["/bin/sh", "-c", "echo hi"]
    assert image.config.exposed_ports == {"80/tcp": Empty()}
    assert (image.architecture, image.comment) == ("arm64", "by hand")
    assert rig.images.history("mine:v1")[0]["Comment"] == "by hand"
    await rig.reopen()
    assert rig.images.get("mine:v1") == image


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"repository": "Mine"}, "must be lowercase"),
        ({"changes": ["FROM x"]}, "FROM is not a valid change command"),
        ({"platform": "windows/amd64"}, "operating system is not supported: windows"),
        ({}, "Error processing tar file"),
    ],
)
async def test_a_bad_import_leaves_nothing(make_rig: MakeRig, keys: dict[str, str], message: str) -> None:
    rig = await make_rig()
    with pytest.raises(InvalidParameter, match=message):
        await rig.images.import_(stream(b"no tar" * 1000), **keys)
    assert rig.files() == set()
    assert rig.images.list(all=True) == []


async def test_a_new_daemon_finds_all_and_clears_what_a_crash_left(make_rig: MakeRig) -> None:
    rig = await make_rig()
    await rig.load(make_tar(docker_files([ONE])))
    image, files = rig.images.get("busybox"), rig.files()
    # A load was killed: a file being written, a blob and a layer that no image has.
    left = rig.root / "blobs" / "ingest" / "dead"
    left.mkdir()
    (left / "1").write_bytes(b"half")
    (rig.root / "blobs" / "sha256" / sha256(b"x")[7:]).write_bytes(b"x")
    rig.images.store.catalog.note_layer(sha256(TWO))
    await rig.layers.add(_file(rig.root, TWO))
    await rig.reopen()
    assert rig.images.get("busybox") == image
    assert rig.files() == files
    assert set(rig.layers.stored) == {sha256(ONE)}
    assert not left.exists()


async def test_a_lost_layer_is_made_again_from_its_blob(make_rig: MakeRig) -> None:
    rig = await make_rig()
    await rig.load(make_tar(docker_files([ONE])))
    rig.layers.stored.clear()
    await rig.reopen()
    assert rig.layers.exists(sha256(ONE))


async def test_an_image_with_a_damaged_configuration_is_left_out_and_can_come_back(make_rig: MakeRig) -> None:
    rig = await make_rig()
    await rig.load(make_tar(docker_files([ONE])))
    path = rig.images.store.content.path(rig.images.get("busybox").id)
    path.unlink()
    await rig.reopen()
    with pytest.raises(NoSuchImage):
        rig.images.get("busybox")
    await rig.load(make_tar(docker_files([ONE])))
    await rig.reopen()
    assert rig.images.get("busybox").layers == (sha256(ONE),)


def _file(root: Path, data: bytes) -> Path:
    path = root / "layer"
    path.write_bytes(data)
    return path

# SPDX-License-Identifier: Apache-2.0
"""An image made of another one and a layer on top."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import pytest

from proa.image.committing import CommitRequest, LayerTar
from proa.model.config import ContainerConfig
from proa.model.errors import DataLoss, Internal, InvalidParameter
from proa.model.ids import Digest
from tests.support.images import collect, docker_files, make_config, make_layer, make_tar, sha256
from tests.unit.image.conftest import MakeRig, Rig

pytestmark = pytest.mark.anyio

BASE, TOP = make_layer("base"), make_layer("top")
CONFIG = make_config([BASE])
BASE_ID = sha256(CONFIG)


def writer(data: bytes, *, is_empty: bool = False) -> Callable[[int], Awaitable[LayerTar]]:
    async def write(out: int) -> LayerTar:
        os.write(out, data)
        return LayerTar(diff_id=sha256(data), size_bytes=len(data), is_empty=is_empty)

    return write


async def rig_with_base(make_rig: MakeRig) -> Rig:
    rig = await make_rig()
    await rig.load(make_tar(docker_files([BASE], ("base:latest",), CONFIG)))
    rig.events.clear()
    return rig


def request(**fields: str) -> CommitRequest:
    return CommitRequest(base=BASE_ID, config=ContainerConfig(cmd=["run"]), **fields)


async def test_a_commit_is_a_child(make_rig: MakeRig) -> None:
    rig = await rig_with_base(make_rig)
    asked = request(repository="made", tag="1", author="me", comment="why", created_by="sh")
    image_id, name = await rig.images.commit(asked, writer(TOP))
    image = rig.images.get("made:1")
    assert (image.id, name, image.parent) == (image_id, "made:1", BASE_ID)
    assert image.layers == (sha256(BASE), sha256(TOP))
    assert (image.config.cmd, image.author, image.comment) == (["run"], "me", "why")
    step = image.history[-1]
    assert (step.created_by, step.author, step.comment, step.empty_layer) == ("sh", "me", "why", False)
    assert (len(image.history), step.created, image.size) == (2, image.created, len(BASE) + len(TOP))
    assert [action for action, _, _ in rig.events] == ["tag"]
    history = rig.images.history("made:1")
    assert [one["Id"] for one in history] == [image_id, BASE_ID]
    usage = await rig.images.disk_usage()
    assert usage.layers_bytes == len(BASE) + len(TOP)
    assert (await rig.reopen()).get("made:1") == image
    saved = await collect(rig.images.save(["made:1", "base"]))
    assert saved.count(b"manifest.json") == 1


async def test_no_change_is_no_layer(make_rig: MakeRig) -> None:
    rig = await rig_with_base(make_rig)
    image_id, name = await rig.images.commit(request(), writer(b"", is_empty=True))
    image = rig.images.get(image_id)
    assert (name, image.layers, image.history[-1].empty_layer) == ("", (sha256(BASE),), True)


@pytest.mark.parametrize("failure", [Internal("the disk is full"), InvalidParameter("no")])
async def test_a_failed_commit_leaves_nothing(make_rig: MakeRig, failure: Exception) -> None:
    rig = await rig_with_base(make_rig)
    files, layers = rig.files(), dict(rig.layers.stored)

    async def fail(out: int) -> LayerTar:
        os.write(out, TOP[:700])
        raise failure

    async def lie(out: int) -> LayerTar:
        os.write(out, TOP)
        return LayerTar(diff_id=sha256(b"else"), size_bytes=len(TOP), is_empty=False)

    for write in (fail, lie):
        with pytest.raises((type(failure), InvalidParameter)):
            await rig.images.commit(request(repository="made"), write)
        assert (rig.files(), rig.layers.stored, len(rig.images.list())) == (files, layers, 1)


async def test_bad_requests_do_nothing(make_rig: MakeRig) -> None:
    rig = await rig_with_base(make_rig)

    async def never(out: int) -> LayerTar:
        raise AssertionError

    with pytest.raises(InvalidParameter, match="must be lowercase"):
        await rig.images.commit(request(repository="Made"), never)
    gone = CommitRequest(base=Digest("sha256:" + "0" * 64), config=ContainerConfig())
    with pytest.raises(DataLoss):
        await rig.images.commit(gone, never)

# SPDX-License-Identifier: Apache-2.0
"""Snapshots as use cases: made, listed, restored, moved; what is refused, and what a failure leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from proa.engine.container import State
from proa.model.config import HostConfig, PortBinding
from proa.model.errors import (
    DataLoss,
    FeatureMissing,
    Internal,
    InvalidParameter,
    NameInUse,
    NotFound,
    WrongState,
)
from tests.support.engine import Daemon, Ground

pytestmark = pytest.mark.anyio

VM = HostConfig(isolation="vm", memory=64 << 20)


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(content), 1000):
        yield content[at : at + 1000]


async def archive(daemon: Daemon, name: str) -> bytes:
    return b"".join([piece async for piece in daemon.engine.snapshots.export(name)])


async def test_one_is_made_and_gone_on_with(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        snapshots = daemon.engine.snapshots
        source = await daemon.run(host=VM, labels={"a": "b"})
        made = [
            await snapshots.create("web"),
            await snapshots.create("web"),
            await snapshots.create("web", "x"),
        ]
        assert [one.name for one in made] == ["web-1", "web-2", "x"]
        assert {one.container_id for one in made} == {source.id}
        assert {one.name for one in snapshots.list()} == {one.name for one in snapshots.list("web")}
        assert snapshots.list("other") == []
        assert daemon.get("web") == source
        with pytest.raises(NameInUse):
            await snapshots.restore("x")
        restored = daemon.get((await snapshots.restore("x", "back")).id)
        assert (restored.name, restored.state, restored.forking) == ("back", State.RUNNING, False)
        assert restored.host_config == source.host_config
        await daemon.engine.containers.remove("web", force=True, volumes=True)
        assert daemon.get((await snapshots.restore("web-2")).id).name == "web"
    async with ground.daemon() as daemon:
        await daemon.engine.snapshots.remove("web-1")
        assert [one.name for one in daemon.engine.snapshots.list()] == ["web-2", "x"]
        image = daemon.get("web").image_id
        await daemon.engine.containers.remove("web", force=True, volumes=True)
        await daemon.engine.containers.remove("back", force=True, volumes=True)
        users = daemon.engine.images.users_of(image)
        assert users == [("snapshot web-2", False), ("snapshot x", False)]


async def test_what_only_one_can_have_is_kept_when_the_other_is_gone(ground: Ground) -> None:
    ports: dict[str, list[PortBinding] | None] = {"80/tcp": [PortBinding(host_port="8080")]}
    async with ground.daemon() as daemon:
        snapshots = daemon.engine.snapshots
        await daemon.run(host=HostConfig(isolation="vm", port_bindings=ports), hostname="chosen")
        await snapshots.create("web", "x")
        beside = await snapshots.restore("x", "beside")
        assert len(beside.warnings) == 2
        assert daemon.get("beside").host_config.port_bindings is None
        await daemon.engine.containers.remove("web", force=True, volumes=True)
        alone = await snapshots.restore("x")
        assert alone.warnings == ()
        assert daemon.get("web").host_config.port_bindings == ports


async def test_it_moves_to_another_host(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        snapshots = daemon.engine.snapshots
        await daemon.run(host=VM)
        await snapshots.create("web", "x")
        content = await archive(daemon, "x")
        await daemon.engine.containers.remove("web", force=True, volumes=True)
        assert (await snapshots.import_(pieces(content))).name == "web-1"
        assert (await snapshots.import_(pieces(content), "y")).name == "y"
        assert daemon.get((await snapshots.restore("y")).id).state is State.RUNNING
        for name, error in (("x", NameInUse), ("../z", InvalidParameter)):
            with pytest.raises(error):
                await snapshots.import_(pieces(content), name)
        with pytest.raises(InvalidParameter, match="whole archive"):
            await snapshots.import_(pieces(content[:-3000]), "z")


async def test_refusals(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        snapshots = daemon.engine.snapshots
        await daemon.create(host=VM)
        with pytest.raises(WrongState):
            await snapshots.create("web")
        await daemon.run("plain")
        with pytest.raises(FeatureMissing):
            await snapshots.create("plain")
        await daemon.engine.containers.start("web")
        with pytest.raises(InvalidParameter):
            await snapshots.create("web", "a/b")
        for missing in ("nothing", "../engine.db"):
            with pytest.raises(NotFound):
                await snapshots.restore(missing)
            with pytest.raises(NotFound):
                await snapshots.remove(missing)
            with pytest.raises(NotFound):
                snapshots.export(missing)
        daemon.stage.fail("save", Internal("QEMU is gone"))
        with pytest.raises(Internal):
            await snapshots.create("web")
        assert list((ground.root / "snapshots").iterdir()) == []


async def test_what_cannot_be_restored_leaves_nothing(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        snapshots = daemon.engine.snapshots
        source = await daemon.run(host=VM)
        await snapshots.create("web", "x")
        daemon.stage.fail("load", InvalidParameter("made with QEMU 1.0"))
        with pytest.raises(InvalidParameter, match=r"QEMU 1\.0"):
            await snapshots.restore("x", "back")
        description = ground.root / "snapshots" / "x" / "snapshot.json"
        manifest = msgspec.json.decode(description.read_bytes())
        odd = {"RestartPolicy": {"Name": "sometimes"}}
        for change, error, why in (
            ({"layers": {"sha256:" + "0" * 64: "1"}}, InvalidParameter, "other layers here"),
            ({"container": {"id": 1}}, DataLoss, "makes no sense"),
            (
                {"container": {**manifest["container"], "host_config": odd}},
                InvalidParameter,
                "restart policy",
            ),
        ):
            description.write_bytes(msgspec.json.encode({**manifest, **change}))
            with pytest.raises(error, match=why):
                await snapshots.restore("x", "back")
        description.write_bytes(msgspec.json.encode(manifest))
        (ground.root / "snapshots" / "x" / "mem").write_bytes(b"other")
        with pytest.raises(DataLoss, match="mem is not what was saved"):
            await snapshots.restore("x", "back")
        assert list(daemon.engine.containers.registry) == [source]
        assert ground.homes == {source.id}

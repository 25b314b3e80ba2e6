# SPDX-License-Identifier: Apache-2.0
"""Making containers: one winner of a name, refusals before anything is made, nothing left of a failure."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from proa.engine.container import State
from proa.model.config import (
    ContainerConfig,
    Empty,
    EndpointSettings,
    HostConfig,
    MountSpec,
    NetworkingConfig,
)
from proa.model.errors import (
    FeatureMissing,
    InvalidParameter,
    NameInUse,
    NoSuchContainer,
    NoSuchImage,
    NotFound,
)
from proa.model.network import NetworkRequest
from tests.support.engine import IMAGE, Daemon, Ground
from tests.support.fake_runtime import FakeRuntime, features

pytestmark = pytest.mark.anyio


def volumes(daemon: Daemon) -> list[str]:
    return [volume.name for volume in daemon.engine.volumes._store.list()]


async def test_the_record(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        container = await daemon.create(env=["A=1"], labels={"own": "1"})
        assert container.state is State.CREATED
        assert container.image_id == IMAGE.id
        assert container.layers == IMAGE.layers
        assert container.path == "sh"
        assert container.config.env == ["PATH=/bin", "A=1"]
        assert container.config.labels == {"from": "image", "own": "1"}
        assert container.config.hostname == container.id[:12]
        assert (container.runtime, container.host_config.network_mode) == ("crun", "bridge")
        assert daemon.actions == ["container create"]
        assert daemon.events[0].attributes == {
            "from": "image",
            "own": "1",
            "image": "busybox",
            "name": "web",
        }


@pytest.mark.parametrize(("count", "config"), [(1000, {}), (20, {"volumes": {"/data": Empty()}})])
async def test_of_many_with_one_name_one_wins(
    ground: Ground,
    count: int,
    config: dict[str, Any],  # Any: fields of ContainerConfig
) -> None:
    async with ground.daemon() as daemon:
        won, lost = [], []

        async def create() -> None:
            try:
                won.append(await daemon.create("web", **config))
            except NameInUse as error:
                lost.append(str(error))

        async with anyio.create_task_group() as group:
            for _ in range(count):
                group.start_soon(create)
        assert (len(won), len(lost)) == (1, count - 1)
        assert set(lost) == {
            f'Conflict. The container name "/web" is already in use by container "{won[0].id}". '
            "You have to remove (or rename) that container to be able to reuse that name."
        }
        assert volumes(daemon) == [point.name for point in won[0].mounts]


async def test_the_winner_keeps_the_volume_that_a_loser_made(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        host = HostConfig(binds=["data:/data"])
        gate = daemon.stage.hold("volumes.copy_up")

        async def lose() -> None:
            with pytest.raises(NameInUse):
                await daemon.create("web", host=host)

        async with anyio.create_task_group() as group:
            group.start_soon(lose)
            await gate.reached.wait()
            await daemon.create("web", host=host)
            gate.open()
        assert volumes(daemon) == ["data"]


async def test_names_are_found_by_prefix_too(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        container = await daemon.create("/web")
        for ref in ("web", "/web", container.id, container.id[:12], container.id[:1]):
            assert daemon.get(ref) == container
        with pytest.raises(NoSuchContainer, match="No such container: we"):
            daemon.get("we")


async def test_an_ambiguous_prefix(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        ids = {(await daemon.create(f"web{number}")).id[0] for number in range(17)}
        assert len(ids) < 17
        ambiguous = next(
            first for first in ids if sum(one.id[0] == first for one in daemon.engine.containers.registry) > 1
        )
        with pytest.raises(InvalidParameter, match="Multiple IDs found with provided prefix"):
            daemon.get(ambiguous)


async def test_names_are_chosen(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        chosen = {(await daemon.create(None)).name for _ in range(20)}
        assert len(chosen) == 20
        assert all("_" in name for name in chosen)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"name": "a b"}, InvalidParameter, r"Invalid container name \(a b\), only \[a-zA-Z0-9\]"),
        ({"name": "x"}, InvalidParameter, "Invalid container name"),
        ({"image": "nope"}, NoSuchImage, "No such image: nope"),
        ({"image": ""}, InvalidParameter, "no image specified"),
        ({"entrypoint": [""], "cmd": []}, InvalidParameter, "no command specified"),
        ({"working_dir": "x"}, InvalidParameter, "it needs to be an absolute path"),
        ({"stop_signal": "NOPE"}, InvalidParameter, "invalid signal: NOPE"),
        ({"env": ["=x"]}, InvalidParameter, "invalid environment variable: =x"),
        ({"host": HostConfig(memory=1024)}, InvalidParameter, "Minimum memory limit allowed is 6MB"),
        ({"host": HostConfig(binds=["a:b"])}, InvalidParameter, "mount path must be absolute"),
        ({"host": HostConfig(isolation="hyperv")}, InvalidParameter, 'invalid isolation: "hyperv"'),
        ({"host": HostConfig(runtime="nope")}, InvalidParameter, "unknown or invalid runtime name: nope"),
        ({"host": HostConfig(runtime="runc")}, InvalidParameter, "runtime runc is not available.*: gone"),
        ({"host": HostConfig(runtime="crun", isolation="vm")}, InvalidParameter, "conflicting options"),
        ({"host": HostConfig(network_mode="nope")}, InvalidParameter, "network nope not found"),
    ],
)
async def test_refusals_leave_nothing(
    ground: Ground, options: dict[str, object], error: type[Exception], sentence: str
) -> None:
    async with ground.daemon() as daemon:
        with pytest.raises(error, match=sentence):
            await daemon.create(**{"name": "web", "volumes": {"/data": Empty()}, **options})  # type: ignore[arg-type]
        assert list(daemon.engine.containers.registry) == []
        assert volumes(daemon) == []
        assert daemon.events == []


async def test_a_missing_bind_source(ground: Ground, tmp_path: Path) -> None:
    async with ground.daemon() as daemon:
        missing = tmp_path / "missing"
        strict = HostConfig(mounts=[MountSpec(type="bind", source=str(missing), target="/x")])
        with pytest.raises(InvalidParameter, match="bind source path does not exist"):
            await daemon.create(host=strict)
        assert not missing.exists()
        await daemon.create(host=HostConfig(binds=[f"{missing}:/x"]))
        assert missing.is_dir()


async def test_anonymous_volumes_are_undone(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        daemon.stage.fail("volumes.copy_up", OSError(28, "No space left on device"))
        with pytest.raises(OSError, match="No space left"):
            await daemon.create(volumes={"/a": Empty()}, host=HostConfig(binds=["named:/b"]))
        assert volumes(daemon) == []
        assert list(daemon.engine.containers.registry) == []


class TestHulls:
    @pytest.mark.parametrize(
        ("host", "runtime"),
        [
            (HostConfig(), "crun"),
            (HostConfig(isolation="default"), "crun"),
            (HostConfig(isolation="container"), "crun"),
            (HostConfig(isolation="vm"), "vm"),
            (HostConfig(isolation="VM"), "vm"),
            (HostConfig(runtime="vm"), "vm"),
            (HostConfig(runtime="vm", isolation="vm"), "vm"),
        ],
    )
    async def test_choice(self, ground: Ground, host: HostConfig, runtime: str) -> None:
        async with ground.daemon() as daemon:
            assert (await daemon.create(host=host)).runtime == runtime

    async def test_what_a_hull_refuses(self, ground: Ground) -> None:
        limited = FakeRuntime(
            ground.world,
            features=features(
                refused={
                    "HostConfig.Privileged": "it has its own kernel",
                    "HostConfig.PidMode": "it has its own processes",
                    "HostConfig.IpcMode": "it has its own memory",
                },
                network_modes=("bridge", "none"),
            ),
        )
        async with ground.daemon(runtimes={"crun": limited}) as daemon:
            for host, sentence in (
                (HostConfig(privileged=True), "HostConfig.Privileged is not supported.*its own kernel"),
                (HostConfig(pid_mode="host"), "HostConfig.PidMode is not supported"),
                (HostConfig(network_mode="host"), "NetworkMode host is not supported"),
                (HostConfig(network_mode="container:x"), "NetworkMode container:x is not supported"),
            ):
                with pytest.raises(FeatureMissing, match=sentence):
                    await daemon.create(host=host)
            await daemon.create(host=HostConfig(ipc_mode="private", network_mode="none"))


class TestNetworking:
    async def test_several_networks(self, ground: Ground) -> None:
        async with ground.daemon() as daemon:
            for name in ("back", "front"):
                await daemon.engine.networks._store.create(NetworkRequest(name=name))
            container = await daemon.create(
                host=HostConfig(network_mode="front"),
                networking=NetworkingConfig(
                    endpoints_config={
                        "back": EndpointSettings(aliases=["db"]),
                        "front": EndpointSettings(mac_address="02-42-AC-11-00-09"),
                    }
                ),
            )
            assert list(container.networking) == ["front", "back"]
            await daemon.engine.containers.start("web")
            assert daemon.get("web").endpoints[0].mac == "02:42:ac:11:00:09"

    @pytest.mark.parametrize(
        ("host", "config", "sentence"),
        [
            (HostConfig(network_mode="container:x"), {"hostname": "h"}, "hostname and the network mode"),
            (HostConfig(), {"mac_address": "zz"}, "invalid MAC address: zz"),
        ],
    )
    async def test_refusals(
        self, ground: Ground, host: HostConfig, config: dict[str, Any], sentence: str
    ) -> None:
        async with ground.daemon() as daemon:
            with pytest.raises(InvalidParameter, match=sentence):
                await daemon.create(host=host, **config)


async def test_an_image_of_another_platform(ground: Ground) -> None:
    """Not found: a client pulls the one for this platform then."""
    async with ground.daemon() as daemon:
        create = partial(
            daemon.engine.containers.create,
            None,
            ContainerConfig(image="busybox"),
            HostConfig(),
            NetworkingConfig(),
        )
        theirs, other = f"linux/{IMAGE.architecture}", "linux/s390x"
        with pytest.raises(NotFound, match=rf"platform \({theirs}\) does not match .* \({other}\)"):
            await create(platform=other)
        await create(platform=theirs)


async def test_a_platform_of_another_system(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        with pytest.raises(InvalidParameter, match="unknown operating system or architecture"):
            await daemon.engine.containers.create(
                "web", ContainerConfig(image="busybox"), HostConfig(), NetworkingConfig(), "windows/amd64"
            )


async def test_an_image_is_mounted(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        mount = MountSpec(type="image", source="busybox", target="/a")
        container = await daemon.create(host=HostConfig(mounts=[mount]))
        (point,) = container.mounts
        assert (point.source, point.name, point.layers, point.rw) == (
            IMAGE.id,
            "busybox",
            IMAGE.layers,
            False,
        )
        assert daemon.engine.images.users_of(IMAGE.id) == [(container.id, False)]
        missing = MountSpec(type="image", source="nothing", target="/a")
        with pytest.raises(InvalidParameter, match="No such image: nothing"):
            await daemon.create("two", host=HostConfig(mounts=[missing]))

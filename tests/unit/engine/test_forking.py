# SPDX-License-Identifier: Apache-2.0
"""Running copies: what they share with their source, what they do not, refusals, and the daemon's death."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from proa.engine.container import State
from proa.model.config import (
    EndpointIpamConfig,
    EndpointSettings,
    HostConfig,
    NetworkingConfig,
    PortBinding,
    RestartPolicy,
)
from proa.model.errors import (
    FeatureMissing,
    Internal,
    InvalidParameter,
    NameInUse,
    NoSuchContainer,
    WrongState,
)
from proa.model.network import NetworkRequest
from tests.support.engine import Daemon, Ground, settle

pytestmark = pytest.mark.anyio

VM = HostConfig(isolation="vm")


async def fork(daemon: Daemon, name: str = "copy") -> tuple[str, ...]:
    return (await daemon.engine.forking.fork("web", name)).warnings


async def test_a_copy_is_the_source_under_another_name(ground: Ground) -> None:
    host = HostConfig(isolation="vm", restart_policy=RestartPolicy(name="always"), memory=64 << 20)
    async with ground.daemon() as daemon:
        source = await daemon.run(host=host, labels={"a": "b"}, env=["X=1"])
        assert await fork(daemon) == ()
        copy = daemon.get("copy")
        assert copy.id != source.id
        assert (copy.state, copy.forking, copy.launching) == (State.RUNNING, False, False)
        assert copy.host_config == source.host_config
        assert (copy.config.labels, copy.config.env) == (source.config.labels, source.config.env)
        assert (source.config.hostname, copy.config.hostname) == (source.id[:12], copy.id[:12])
        assert copy.log_path != source.log_path
        assert copy.endpoints[0].address != source.endpoints[0].address
        assert daemon.get("web") == source
        assert daemon.actions[-3:] == ["container create", "network connect", "container start"]
        await daemon.engine.containers.stop("copy")
        assert daemon.get("web").state is State.RUNNING


async def test_what_only_one_can_have_stays_with_the_source(ground: Ground) -> None:
    ports: dict[str, list[PortBinding] | None] = {
        "80/tcp": [PortBinding(host_port="8080"), PortBinding()],
        "81/tcp": [PortBinding(host_port="8081")],
        "82/tcp": [PortBinding(host_port="9000-9010")],
    }
    wanted = EndpointSettings(
        ipam_config=EndpointIpamConfig(i_pv4_address="10.9.0.7"), mac_address="02:00:00:00:00:07"
    )
    async with ground.daemon() as daemon:
        await daemon.engine.networks.create(NetworkRequest(name="own"))
        await daemon.run(
            host=HostConfig(isolation="vm", network_mode="own", port_bindings=ports),
            networking=NetworkingConfig(endpoints_config={"own": wanted}),
            hostname="chosen",
        )
        assert await fork(daemon) == (
            "Published port 8080->80/tcp stays with the source: the copy has none",
            "Published port 8081->81/tcp stays with the source: the copy has none",
            "The address that was asked for on network own stays with the source",
            "The copy has the hostname that was chosen for the source: chosen",
        )
        copy = daemon.get("copy")
        assert copy.host_config.port_bindings == {
            "80/tcp": [PortBinding()],
            "82/tcp": [PortBinding(host_port="9000-9010")],
        }
        settings = copy.networking["own"]
        assert (settings.ipam_config, settings.mac_address) == (EndpointIpamConfig(), "")
        assert copy.config.hostname == "chosen"


async def test_refusals_make_nothing(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        with pytest.raises(NoSuchContainer):
            await fork(daemon)
        await daemon.create(host=VM)
        with pytest.raises(WrongState, match="is created, it must be running"):
            await fork(daemon)
        await daemon.engine.containers.start("web")
        with pytest.raises(NameInUse):
            await fork(daemon, "web")
        with pytest.raises(InvalidParameter, match="Invalid container name"):
            await fork(daemon, "../x")
        await daemon.engine.containers.pause("web")
        with pytest.raises(WrongState, match="is paused"):
            await fork(daemon)
        await daemon.engine.containers.remove("web", force=True, volumes=True)
        await daemon.run(host=HostConfig(isolation="vm", binds=["data:/data"]))
        with pytest.raises(FeatureMissing, match=r"volume or bind mount \(/data\)"):
            await fork(daemon)
        await daemon.engine.containers.remove("web", force=True, volumes=True)
        await daemon.run(host=HostConfig(isolation="vm", privileged=True))
        with pytest.raises(FeatureMissing, match="a running privileged container"):
            await fork(daemon)
        await daemon.run("other")
        with pytest.raises(FeatureMissing, match="only what has a virtual machine of its own"):
            await daemon.engine.forking.fork("other", "copy")
        assert {container.name for container in daemon.engine.containers.registry} == {"web", "other"}


async def test_a_copy_that_fails_leaves_nothing(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        source = await daemon.run(host=VM)
        daemon.stage.fail("fork", Internal("QEMU is gone"))
        with pytest.raises(Internal, match="QEMU is gone"):
            await fork(daemon)
        assert list(daemon.engine.containers.registry) == [source]
        assert ground.homes == {source.id}
        assert ground.attached.keys() == {source.id}
        assert await fork(daemon) == ()


async def test_the_daemon_may_die_before_any_step(make_ground: Callable[[], Ground]) -> None:
    number, found, lived = 0, set(), False
    while not lived:
        ground = make_ground()
        async with ground.daemon() as daemon:
            await daemon.run(host=VM)
        with contextlib.suppress(RuntimeError):  # it died while it restored
            async with ground.daemon(kill_at=number) as daemon:
                await fork(daemon)
                lived = True
        async with ground.daemon() as daemon:
            await settle()
            assert daemon.get("web").state is State.RUNNING
            copies = [one for one in daemon.engine.containers.registry if one.name == "copy"]
            assert all(one.state is State.RUNNING and not one.forking for one in copies), daemon.stage.steps
            assert ground.world.traces.keys() == {one.id for one in daemon.engine.containers.registry}
            assert ground.homes == ground.attached.keys() == ground.world.traces.keys()
            found.add(len(copies))
        number += 1
    assert found == {0, 1}

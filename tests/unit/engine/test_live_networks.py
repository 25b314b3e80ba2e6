# SPDX-License-Identifier: Apache-2.0
"""Networks of a running container whose task must be told of them: the steps, and what failed ones leave."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Interface
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from proa.engine.container import Container
from proa.engine.live_networks import LiveNetworks
from proa.engine.unit import Unit
from proa.model.config import EndpointSettings
from proa.model.errors import FeatureMissing, Internal
from proa.model.ids import ContainerId, NetworkId
from proa.model.network import Endpoint, EndpointRequest
from proa.model.task import Interface, NetworkAttachment, NetworkKind
from proa.network.attach import Attached
from tests.support.fake_runtime import FakeTask

pytestmark = pytest.mark.anyio


class Store:
    """Networks of one container, by name; each step is noted."""

    def __init__(self, steps: list[str], *names: str) -> None:
        self.steps = steps
        self.names = list(names)

    def find(self, container_id: str) -> Attached:
        return Attached(
            attachment=NetworkAttachment(interfaces=tuple(map(interface, self.names))),
            endpoints=tuple(map(endpoint, self.names)),
            ports=(),
        )

    async def connect(self, container_id: str, wanted: EndpointRequest, ports: object) -> Attached:
        await anyio.lowlevel.checkpoint()
        self.steps.append(f"plug {wanted.network}")
        self.names.append(wanted.network)
        return self.find(container_id)

    async def disconnect(self, container_id: str, network_id: NetworkId) -> Attached:
        await anyio.lowlevel.checkpoint()
        self.steps.append(f"cut {network_id}")
        self.names.remove(network_id)
        return self.find(container_id)

    async def discard(self, gone: Interface) -> None:
        await anyio.lowlevel.checkpoint()
        self.steps.append(f"delete {gone.device}")


class Machine(FakeTask):
    """A task that is told."""

    id = ContainerId("c")
    pid = 1

    def __init__(self, steps: list[str]) -> None:
        self.steps = steps
        self.is_full = self.is_deaf = False

    def check_change(self, *, joins: bool) -> None:
        if self.is_full and joins:
            raise FeatureMissing("vm", "one more", "it is full")

    async def set_networks(self, interfaces: Sequence[Interface]) -> None:
        await anyio.lowlevel.checkpoint()
        self.steps.append("tell " + " ".join(one.network_id for one in interfaces))
        if self.is_deaf:
            raise Internal("no answer")


def interface(name: str) -> Interface:
    address = IPv4Interface("10.0.0.2/24")
    return Interface(name=name, device=f"pt-{name}", network_id=NetworkId(name), mac="", address=address)


def endpoint(name: str) -> Endpoint:
    values: dict[str, Any] = {
        "container_id": "c",
        "endpoint_id": name,
        "name": "web",
        "mac": "",
    }  # Any: fields
    return Endpoint(network_id=NetworkId(name), address=IPv4Interface("10.0.0.2/24"), gateway=None, **values)


class Stage:
    """A machine on the network a."""

    def __init__(self, kind: NetworkKind = NetworkKind.TAP) -> None:
        self.steps: list[str] = []
        self.store = Store(self.steps, "a")
        self.machine = Machine(self.steps)
        self.unit = cast(Unit, SimpleNamespace(task=self.machine))
        hulls = {"vm": SimpleNamespace(features=SimpleNamespace(network=kind))}
        self.live = LiveNetworks(cast(Any, self.store), cast(Any, hulls))

    def container(self, *names: str) -> Container:
        networking = {name: EndpointSettings(network_id=name) for name in names}
        return Container(
            id=ContainerId("c"),
            name="web",
            created_at_ns=0,
            image_id="",  # type: ignore[arg-type]
            image_ref="",
            layers=(),
            config=None,  # type: ignore[arg-type]  # nobody looks
            host_config=None,  # type: ignore[arg-type]
            networking=networking,
            path="",
            args=(),
            runtime="vm",
        )


async def test_the_task_is_told_between_the_steps_of_the_host() -> None:
    stage = Stage()
    await stage.live.connect(stage.unit, stage.container("a"), EndpointRequest(network="b"), ())
    await stage.live.disconnect(stage.unit, stage.container("a", "b"), NetworkId("a"))
    assert stage.steps == ["plug b", "tell a b", "cut a", "tell b", "delete pt-a"]


async def test_a_container_in_a_namespace_is_told_nothing() -> None:
    stage = Stage(NetworkKind.NAMESPACE)
    await stage.live.connect(stage.unit, stage.container("a"), EndpointRequest(network="b"), ())
    await stage.live.disconnect(stage.unit, stage.container("a", "b"), NetworkId("a"))
    assert stage.steps == ["plug b", "cut a"]


async def test_a_machine_that_is_full_is_refused_before_anything_is_made() -> None:
    stage = Stage()
    stage.machine.is_full = True
    with pytest.raises(FeatureMissing, match="it is full"):
        await stage.live.connect(stage.unit, stage.container("a"), EndpointRequest(network="b"), ())
    stage.unit.task = None
    with pytest.raises(FeatureMissing, match="its network cards are fixed"):
        await stage.live.disconnect(stage.unit, stage.container("a"), NetworkId("a"))
    assert stage.steps == []


async def test_a_guest_that_does_not_answer_joins_nothing_and_keeps_nothing() -> None:
    stage = Stage()
    stage.machine.is_deaf = True
    with pytest.raises(Internal, match="no answer"):
        await stage.live.connect(stage.unit, stage.container("a"), EndpointRequest(network="b"), ())
    assert stage.steps == ["plug b", "tell a b", "cut b", "delete pt-b"]
    await stage.live.disconnect(stage.unit, stage.container("a"), NetworkId("a"))
    assert stage.steps[4:] == ["cut a", "tell ", "delete pt-a"]


async def test_what_a_dead_daemon_left_is_finished_or_undone() -> None:
    stage = Stage()
    stage.store.names.append("b")  # its connection was not recorded
    settled = await stage.live.settle(stage.container("a", "c"), stage.machine)  # nor was c's end
    assert list(settled.networking) == ["a"]
    assert [found.network_id for found in settled.endpoints] == ["a"]
    assert stage.steps == ["cut b", "tell a", "delete pt-b", "tell a"]

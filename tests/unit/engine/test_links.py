# SPDX-License-Identifier: Apache-2.0
"""Links between containers: how they are read, what a program is told, and what becomes of them."""

from __future__ import annotations

from typing import Any

import pytest

from proa.api.shapes_containers import inspect, summary
from proa.engine.links import parse_link
from proa.model.config import Empty, EndpointSettings, HostConfig, NetworkingConfig
from proa.model.errors import Conflict, InvalidParameter, NotFound, WrongState
from proa.model.network import NetworkRequest
from proa.network.files import addresses_of
from tests.support.engine import Daemon, Ground

pytestmark = pytest.mark.anyio


def linking(*links: str, mode: str = "") -> HostConfig:
    return HostConfig(links=list(links), network_mode=mode)


async def peer(daemon: Daemon, name: str = "db", **config: Any) -> str:  # Any: fields of ContainerConfig
    container = await daemon.run(name, **config)
    return str(addresses_of(container.endpoints)[0])


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("db", ("db", "db")), ("db:store", ("db", "store")), ("/db:/web/store", ("db", "store"))],
)
def test_a_link_is_read(text: str, parsed: tuple[str, str]) -> None:
    assert parse_link(text) == parsed


@pytest.mark.parametrize("text", ["", "a:b:c", ":b", "a:"])
def test_a_bad_link_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter):
        parse_link(text)


async def test_a_program_is_told_of_its_peer(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        ports = {"5432/tcp": Empty(), "53/udp": Empty(), "54/udp": Empty()}
        address = await peer(daemon, exposed_ports=ports, env=["USER=pg"], hostname="pg1")
        web = await daemon.run("web", host=linking("db:data-base"), env=["DATA_BASE_ENV_USER=mine"])
        env = daemon.world[web.id].spec.process.env
        told = [entry for entry in env if entry.startswith("DATA_BASE_")]
        assert set(told) == {
            f"DATA_BASE_PORT=udp://{address}:53",
            f"DATA_BASE_PORT_5432_TCP=tcp://{address}:5432",
            f"DATA_BASE_PORT_5432_TCP_ADDR={address}",
            "DATA_BASE_PORT_5432_TCP_PORT=5432",
            "DATA_BASE_PORT_5432_TCP_PROTO=tcp",
            *(f"DATA_BASE_PORT_{port}_UDP=udp://{address}:{port}" for port in (53, 54)),
            *(f"DATA_BASE_PORT_{port}_UDP_ADDR={address}" for port in (53, 54)),
            *(f"DATA_BASE_PORT_{port}_UDP_PORT={port}" for port in (53, 54)),
            *(f"DATA_BASE_PORT_{port}_UDP_PROTO=udp" for port in (53, 54)),
            f"DATA_BASE_PORT_53_UDP_START=udp://{address}:53",
            "DATA_BASE_PORT_53_UDP_PORT_START=53",
            f"DATA_BASE_PORT_53_UDP_END=udp://{address}:54",
            "DATA_BASE_PORT_53_UDP_PORT_END=54",
            "DATA_BASE_NAME=/web/data-base",
            "DATA_BASE_ENV_USER=mine",
        }
        engine = daemon.engine.containers
        assert inspect(web, [], None, engine.links(web)).host_config.links == ["/db:/web/data-base"]
        assert summary(daemon.get("db"), None, 0, engine.aliases(daemon.get("db"))).names == [
            "/db",
            "/web/data-base",
        ]


async def test_the_hosts_file_follows_a_peer(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        old = await peer(daemon)
        web = await daemon.run("web", host=linking("db"))
        await daemon.engine.containers.restart("db", timeout_s=0)
        new = str(addresses_of(daemon.get("db").endpoints)[0])
        assert new != old
        assert f"{new}\tdb " in daemon.world[web.id].files["/etc/hosts"].decode()


async def test_refusals(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await daemon.create("db")
        await daemon.create("on-host", host=HostConfig(network_mode="host"))
        for host, sentence in (
            (linking("nobody:x"), "could not get container for nobody: No such container: nobody"),
            (linking("db:a b"), "invalid alias"),
            (linking("on-host"), "host type networking can't be used with links"),
            (linking("db", mode="host"), "host type networking can't be used with links"),
            (linking("db", mode="container:db"), "container type network can't be used with links"),
        ):
            with pytest.raises(InvalidParameter, match=sentence):
                await daemon.create("web", host=host)
        await daemon.create("web", host=linking("db:store"))
        with pytest.raises(WrongState, match="Cannot link to a non running container: /db AS /web/store"):
            await daemon.engine.containers.start("web")


async def test_a_removed_peer_and_a_removed_link_are_forgotten(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await daemon.create("db")
        await daemon.create("cache")
        await daemon.create("web", host=linking("db", "cache:c"))
        remove = daemon.engine.containers.remove
        await remove("db", force=False, volumes=False)
        await remove("/web/c", force=False, volumes=False, link=True)
        with pytest.raises(NotFound):
            await remove("/web/c", force=False, volumes=False, link=True)
        with pytest.raises(Conflict):
            await remove("/web", force=False, volumes=False, link=True)
        await daemon.engine.containers.start("web")


async def test_off_the_default_bridge_there_are_no_links(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await daemon.create("db")
        web = await daemon.create("web", host=linking("db"))
        await daemon.engine.networks.disconnect("bridge", "web")
        await daemon.engine.containers.start("web")
        env = daemon.world[web.id].spec.process.env
        assert not any(entry.startswith("DB_") for entry in env)


async def test_links_on_a_users_network_are_the_resolvers(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await daemon.engine.networks._store.create(NetworkRequest(name="mine"))
        web = await daemon.create("web", host=linking("nobody:x", mode="mine"))
        assert (web.links, web.networking["mine"].links) == ((), ["nobody:x"])
        with pytest.raises(InvalidParameter, match="only supported for user-defined networks"):
            await daemon.create(
                "two",
                networking=NetworkingConfig(endpoints_config={"bridge": EndpointSettings(links=["web:w"])}),
            )

# SPDX-License-Identifier: Apache-2.0
"""A private host with networks on it: nothing of the machine's network is touched."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import anyio
import pytest

from proa.host.database import Database
from proa.model.ids import new_id
from proa.model.network import EndpointRequest, PublishedPort
from proa.model.task import NetworkKind
from proa.network.attach import Attached
from proa.network.networks import Networks, NetworkSettings
from proa.network.teardown import teardown
from tests.support.netns import private_host


@pytest.fixture
def outside() -> Iterator[int]:
    """The test runs on a host of its own; this is a descriptor of a machine on its wide area network."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with private_host() as peer:
        yield peer


@pytest.fixture
def root(outside: int) -> Iterator[Path]:
    """A data and exec root that a confined resolver can enter (pytest's own is the user's alone)."""
    path = Path(tempfile.mkdtemp(prefix="pn", dir="/tmp"))
    path.chmod(0o755)
    (path / "x").mkdir()
    yield path
    teardown(path / "x")
    shutil.rmtree(path)


Opener = Callable[[], contextlib.AbstractAsyncContextManager[Networks]]


@pytest.fixture
def opened(root: Path) -> Opener:
    """Opens networks as a daemon does; each use is another daemon on the same root."""

    @contextlib.asynccontextmanager
    async def run() -> AsyncIterator[Networks]:
        (root / "resolv.conf").write_text("nameserver 203.0.113.2\n")
        with Database(root / "engine.db") as database:
            async with anyio.create_task_group() as tasks:
                networks = Networks(
                    db=database,
                    exec_root=root / "x",
                    tasks=tasks,
                    settings=NetworkSettings(resolv_conf=root / "resolv.conf"),
                )
                try:
                    await networks.open()
                    yield networks
                finally:
                    await networks.close()

    return run


@dataclass(frozen=True)
class Joined:
    """A container without a process."""

    id: str
    attached: Attached

    @property
    def namespace(self) -> Path:
        assert self.attached.attachment.namespace is not None
        return self.attached.attachment.namespace

    @property
    def address6(self) -> IPv6Address:
        address = self.attached.endpoints[0].address6
        assert address is not None
        return address.ip

    @property
    def address(self) -> IPv4Address:
        address = self.attached.endpoints[0].address
        assert address is not None
        return address.ip


async def join(
    networks: Networks,
    *refs: str,
    name: str = "",
    ports: tuple[PublishedPort, ...] = (),
    kind: NetworkKind = NetworkKind.NAMESPACE,
    aliases: tuple[str, ...] = (),
    address: IPv4Address | None = None,
    address6: IPv6Address | None = None,
) -> Joined:
    """Attach a new container to networks."""
    container_id = new_id()
    attached = await networks.attach(
        container_id,
        kind=kind,
        endpoints=[
            EndpointRequest(network=ref, aliases=aliases, address=address, address6=address6) for ref in refs
        ],
        ports=ports,
        container_name=name or f"c{container_id[:8]}",
        hostname=container_id[:12],
    )
    return Joined(id=container_id, attached=attached)


async def eventually(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    """Wait for something the kernel or another process does in its own time."""
    with anyio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110 - there is no event of it
            await anyio.sleep(0.01)

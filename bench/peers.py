# SPDX-License-Identifier: Apache-2.0
"""The daemons that are compared, as every benchmark sees them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

from proa.client.client import Client
from proa.client.errors import ApiError
from proa.model.config import Empty, HostConfig, PortBinding
from proa.wire import routes
from proa.wire.containers import ContainerCreated, ContainerCreateRequest
from proa.wire.system import Version

LABEL = "proa.bench"


@dataclass(slots=True)
class Peer:
    """A daemon, and the hull to use there.

    :ivar enter_network: words before a command that is to reach its published ports.
    :ivar values: what has been measured, by the name of the operation with its unit.
    """

    name: str
    host: str
    isolation: str
    client: Client
    version: str
    enter_network: Sequence[str] = ()
    values: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def sibling(self) -> Iterator[Peer]:
        """The same peer for another thread."""
        with self.client.sibling() as client:
            yield replace(self, client=client)

    def create(
        self, image: str, command: Sequence[str], *, attach: bool = True, publish: int | None = None
    ) -> str:
        """Create a container on the default bridge; return its id.

        :param publish: port of the host's loopback for the container's port 80.
        """
        binding = PortBinding(host_ip="127.0.0.1", host_port=str(publish))
        request = ContainerCreateRequest(
            image=image,
            cmd=list(command),
            attach_stdout=attach,
            labels={LABEL: "1"},
            exposed_ports={"80/tcp": Empty()} if publish else None,
            host_config=HostConfig(
                isolation=self.isolation,
                network_mode="bridge",
                port_bindings={"80/tcp": [binding]} if publish else None,
            ),
        )
        return self.client.call(routes.CONTAINER_CREATE, body=request, returns=ContainerCreated).id

    @contextmanager
    def timed(self, operation: str) -> Iterator[None]:
        """Note how long the block takes."""
        began = time.monotonic()
        yield
        self.note(operation, began)

    def note(self, operation: str, began: float) -> None:
        """Note the time since ``began``, in milliseconds."""
        self.note_value(operation, (time.monotonic() - began) * 1000)

    def note_value(self, operation: str, value: float) -> None:
        self.values.setdefault(operation, []).append(value)


def open_peer(text: str) -> Peer:
    """Read NAME=URL[,isolation=vm][,netns=PID] and ask the daemon for its version. Raises ClientError."""
    name, _, rest = text.partition("=")
    host, *more = rest.split(",")
    options = dict(word.split("=", 1) for word in more)
    client = Client(host)
    netns = options.get("netns")
    return Peer(
        name=name,
        host=host,
        isolation=options.get("isolation", ""),
        client=client,
        version=client.call(routes.VERSION, returns=Version).version,
        enter_network=("nsenter", "-t", netns, "-n") if netns else (),
    )


@contextmanager
def removed(peer: Peer, container: str) -> Iterator[None]:
    """Remove a container at the end if it is still there."""
    try:
        yield
    finally:
        with suppress(ApiError):
            peer.client.do(routes.CONTAINER_DELETE, id=container, query={"force": True, "v": True})

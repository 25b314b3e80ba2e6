# SPDX-License-Identifier: Apache-2.0
"""How long single requests take: from the first byte sent to the last byte received, in milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable

from peers import Peer, removed

from proa.client.errors import ClientError
from proa.wire import routes
from proa.wire.containers import ContainerCreated, ContainerWaited
from proa.wire.execs import ExecCreateRequest, ExecInspect, ExecStartRequest

# Prints once it can be stopped, and ends at once when told to: as process 1 it must ask for the signal.
WAITER = ("sh", "-c", "trap 'exit 0' TERM; echo ready; sleep 1000 & wait")


def run_to_the_end(peer: Peer, image: str) -> None:
    """create, start, wait, and the sum of the three; then the removal."""
    began = time.monotonic()
    with peer.timed("create"):
        container = peer.create(image, ("/bin/true",))
    with removed(peer, container):
        with peer.timed("start"):
            peer.client.do(routes.CONTAINER_START, id=container)
        with peer.timed("wait after start"):
            waited = peer.client.call(routes.CONTAINER_WAIT, id=container, returns=ContainerWaited)
        peer.note("create + start + wait", began)
        if waited.status_code:
            raise ClientError(f"{peer.name}: /bin/true ended with {waited.status_code}")
        with peer.timed("remove"):
            peer.client.do(routes.CONTAINER_DELETE, id=container)


def keep_running(peer: Peer, image: str) -> None:
    """create to the first byte of output; then exec, stop and the removal of a container that ran."""
    began = time.monotonic()
    container = peer.create(image, WAITER)
    with removed(peer, container):
        query = {"stream": True, "stdout": True}
        stream = peer.client.hijack(routes.CONTAINER_ATTACH, id=container, query=query, tty=False)
        try:
            peer.client.do(routes.CONTAINER_START, id=container)
            if next(stream.iter_output(), None) is None:
                raise ClientError(f"{peer.name}: the container ended without a word")
            peer.note("create to first byte", began)
        finally:
            stream.close()
        with peer.timed("exec /bin/true"):
            execute(peer, container)
        with peer.timed("exec /bin/true again"):
            execute(peer, container)
        with peer.timed("stop"):
            peer.client.do(routes.CONTAINER_STOP, id=container, query={"t": 30})


def execute(peer: Peer, container: str) -> None:
    """Run /bin/true inside and read its output to the end."""
    request = ExecCreateRequest(cmd=["/bin/true"], attach_stdout=True)
    made = peer.client.call(routes.CONTAINER_EXEC, id=container, body=request, returns=ContainerCreated)
    stream = peer.client.hijack(routes.EXEC_START, id=made.id, body=ExecStartRequest(), tty=False)
    try:
        for _ in stream.iter_output():
            pass
    finally:
        stream.close()
    inspect = peer.client.call(routes.EXEC_INSPECT, id=made.id, returns=ExecInspect)
    if inspect.exit_code:
        raise ClientError(f"{peer.name}: exec of /bin/true ended with {inspect.exit_code}")


SCENARIOS: tuple[Callable[[Peer, str], None], ...] = (run_to_the_end, keep_running)
OPERATIONS = (
    "create + start + wait",
    "create",
    "start",
    "wait after start",
    "create to first byte",
    "exec /bin/true",
    "exec /bin/true again",
    "stop",
    "remove",
)

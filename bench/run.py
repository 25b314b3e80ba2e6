#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Time the same operations on several Docker API sockets, and print the ratios.

    bench/run.py --peer docker=unix:///run/docker.sock --peer proa=unix:///run/proa/proa.sock \
                 --peer proa-vm=unix:///run/proa/proa.sock,isolation=vm --rounds 20

Peers take turns within each round and each goes first equally often, so a disturbed machine disturbs all.
A time is that of the API request, from the first byte sent to the last byte received, over a unix socket. The
first peer is the one the others are compared with. Ends with status 1 when a peer fails; containers that it
made are removed.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from proa.client.client import Client
from proa.client.errors import ApiError, ClientError
from proa.compare.statistics import Spread, summarize
from proa.model.config import HostConfig
from proa.wire import routes
from proa.wire.containers import ContainerCreated, ContainerCreateRequest, ContainerWaited
from proa.wire.execs import ExecCreateRequest, ExecInspect, ExecStartRequest
from proa.wire.system import Version

LABEL = "proa.bench"
# Prints once it can be stopped, and ends at once when told to: as process 1 it must ask for the signal.
WAITER = ("sh", "-c", "trap 'exit 0' TERM; echo ready; sleep 1000 & wait")


@dataclass(slots=True)
class Peer:
    """A daemon, and the hull to use there."""

    name: str
    host: str
    isolation: str
    client: Client
    version: str
    times_ms: dict[str, list[float]] = field(default_factory=dict)

    def create(self, image: str, command: Sequence[str]) -> str:
        """Create a container on the default bridge; return its id."""
        request = ContainerCreateRequest(
            image=image,
            cmd=list(command),
            attach_stdout=True,
            labels={LABEL: "1"},
            host_config=HostConfig(isolation=self.isolation, network_mode="bridge"),
        )
        return self.client.call(routes.CONTAINER_CREATE, body=request, returns=ContainerCreated).id

    @contextmanager
    def timed(self, operation: str) -> Iterator[None]:
        """Note how long the block takes."""
        began = time.monotonic()
        yield
        self.note(operation, began)

    def note(self, operation: str, began: float) -> None:
        """Note the time since ``began``."""
        self.times_ms.setdefault(operation, []).append((time.monotonic() - began) * 1000)


def open_peer(text: str) -> Peer:
    """Read NAME=URL[,isolation=vm] and ask the daemon for its version. Raises ClientError."""
    name, _, rest = text.partition("=")
    host, _, isolation = rest.partition(",isolation=")
    client = Client(host)
    version = client.call(routes.VERSION, returns=Version).version
    return Peer(name=name, host=host, isolation=isolation, client=client, version=version)


# --- what is timed ---


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


@contextmanager
def removed(peer: Peer, container: str) -> Iterator[None]:
    """Remove a container at the end if it is still there."""
    try:
        yield
    finally:
        with suppress(ApiError):
            peer.client.do(routes.CONTAINER_DELETE, id=container, query={"force": True, "v": True})


SCENARIOS: tuple[Callable[[Peer, str], None], ...] = (run_to_the_end, keep_running)
OPERATIONS = (
    "create + start + wait",
    "create",
    "start",
    "wait after start",
    "create to first byte",
    "exec /bin/true",
    "stop",
    "remove",
)


def measure(peers: Sequence[Peer], image: str, rounds: int) -> None:
    """Fill in the peers' times. One round before the first is not counted: it finds caches cold."""
    for number in range(-1, rounds):
        shift = number % len(peers)
        for peer in (*peers[shift:], *peers[:shift]):
            for scenario in SCENARIOS:
                scenario(peer, image)
        if number < 0:
            for peer in peers:
                peer.times_ms.clear()
        if sys.stderr.isatty():
            print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)


# --- what is printed ---


def table(peers: Sequence[Peer], rounds: int, command: str) -> str:
    """Return the result in Markdown: median, lowest to highest in milliseconds, ratio to the first peer."""
    first, *others = peers
    spreads = {peer.name: {name: summarize(peer.times_ms[name]) for name in OPERATIONS} for peer in peers}
    head = ["ms, median (lowest to highest)", *(f"{peer.name} {peer.version}" for peer in peers)]
    head += [f"{peer.name} : {first.name}" for peer in others]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name in OPERATIONS:
        base = spreads[first.name][name]
        cells = [name, *(_cell(spreads[peer.name][name]) for peer in peers)]
        cells += [f"{spreads[peer.name][name].median / base.median:.2f}" for peer in others]
        lines.append(f"| {' | '.join(cells)} |")
    moment = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    lines += ["", f"{moment}, {rounds} rounds, {machine()}", "", f"    {command}"]
    return "\n".join(lines)


def _cell(spread: Spread) -> str:
    return f"{spread.median:.1f} ({spread.low:.1f} to {spread.high:.1f})"


def machine() -> str:
    """Describe this host in a line."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} CPUs ({model}), {memory:.0f} GiB, Linux {platform.release()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--peer", "--socket", action="append", required=True, metavar="NAME=URL[,isolation=vm]"
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--image", default="busybox", help="must have sh, sleep and /bin/true, in every daemon"
    )
    parser.add_argument("--output", type=Path, help="write the table to this file as well")
    options = parser.parse_args()
    try:
        peers = [open_peer(text) for text in options.peer]
        measure(peers, options.image, options.rounds)
    except ClientError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    result = table(peers, options.rounds, shlex.join(["bench/run.py", *sys.argv[1:]]))
    print(result)
    if options.output:
        options.output.write_text(result + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

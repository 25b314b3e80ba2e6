# SPDX-License-Identifier: Apache-2.0
"""What engines do in bulk: many containers at once, large images, many log lines, traffic.

Where an operation is the engine's alone (images, lists), it is left out for a peer with an isolation: that
peer is the same engine once more.
"""

from __future__ import annotations

import contextlib
import io
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from peers import Peer, removed

from proa.client.errors import ApiError, ClientError
from proa.wire import routes
from proa.wire.containers import ContainerSummary, ContainerWaited

AT_ONCE, RUNS = 8, 40
LINES = 500_000
LISTED = 200
HELD = 10  # containers whose memory is taken together
SETTLE_S = 2.0
PORT = 18473
TRAFFIC_S = 3
DOCKERFILE = b"""FROM busybox
ENV A=1 B=2
WORKDIR /work
COPY data /data
RUN echo one >one
RUN sha256sum /data/* >sums
RUN i=0; while [ $i -lt 50 ]; do echo $i >file$i; i=$((i+1)); done
COPY --chown=1:1 data /again
CMD ["cat", "/work/sums"]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operations need.

    :ivar image: has sh, sleep, seq and httpd.
    :ivar archive: a ``docker save`` archive of a large image, or None to leave that out.
    :ivar large: the name of the image in it.
    """

    image: str
    archive: Path | None
    large: str


def run_at_once(settings: Settings, peer: Peer) -> None:
    """AT_ONCE clients make, start, await and remove containers."""

    def run(_: int) -> None:
        with peer.sibling() as mine:
            container = mine.create(settings.image, ("/bin/true",))
            with removed(mine, container):
                mine.client.do(routes.CONTAINER_START, id=container)
                mine.client.call(routes.CONTAINER_WAIT, id=container, returns=ContainerWaited)
                mine.client.do(routes.CONTAINER_DELETE, id=container)

    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(run, range(RUNS)))
    peer.note_value("runs per second, 8 at once", RUNS / (time.monotonic() - began))


def load_image(settings: Settings, peer: Peer) -> None:
    """POST /images/load of a large image that is not there."""
    if settings.archive is None or peer.isolation:
        return
    with contextlib.suppress(ApiError):
        peer.client.do(routes.IMAGE_DELETE, name=settings.large, query={"force": True})
    began = time.monotonic()
    with peer.client.stream(routes.IMAGE_LOAD, body=_pieces(settings.archive)) as response:
        answer = response.read()
    peer.note_value("load of the Debian image, s", time.monotonic() - began)
    if b"error" in answer:
        raise ClientError(f"{peer.name}: {answer.decode(errors='replace')}")
    peer.client.do(routes.IMAGE_DELETE, name=settings.large, query={"force": True})


def build_image(settings: Settings, peer: Peer) -> None:
    """POST /build of eight steps, with nothing cached and with everything."""
    if peer.isolation:
        return
    for label, query in (("build, cold, s", {"nocache": True}), ("build, cached, s", {})):
        began = time.monotonic()
        with peer.client.stream(
            routes.IMAGE_BUILD, query={"t": "bench-build", "rm": True, **query}, body=_context()
        ) as response:
            answer = response.read()
        peer.note_value(label, time.monotonic() - began)
        if b"errorDetail" in answer:
            raise ClientError(f"{peer.name}: {answer.decode(errors='replace')[-300:]}")
    peer.client.do(routes.IMAGE_DELETE, name="bench-build", query={"force": True})


def write_and_read_logs(settings: Settings, peer: Peer) -> None:
    """A container prints LINES lines as fast as it is let; then they are read."""
    container = peer.create(settings.image, ("seq", "1000000", str(1_000_000 + LINES - 1)), attach=False)
    with removed(peer, container):
        began = time.monotonic()
        peer.client.do(routes.CONTAINER_START, id=container)
        peer.client.call(routes.CONTAINER_WAIT, id=container, returns=ContainerWaited)
        peer.note_value("500,000 log lines written, s", time.monotonic() - began)
        began, read = time.monotonic(), 0
        with peer.client.stream(routes.CONTAINER_LOGS, id=container, query={"stdout": True}) as response:
            for piece in response.iter_bytes():
                read += len(piece)
        peer.note_value("500,000 log lines read, s", time.monotonic() - began)
        if read < LINES * 8:
            raise ClientError(f"{peer.name}: of {LINES} log lines only {read} bytes came back")


def list_many(settings: Settings, peer: Peer) -> None:
    """GET /containers/json with LISTED containers."""
    if peer.isolation:
        return
    with ExitStack() as made:
        for _ in range(LISTED):
            container = peer.create(settings.image, ("true",), attach=False)
            made.enter_context(removed(peer, container))
        began = time.monotonic()
        found = peer.client.call(routes.CONTAINER_LIST, query={"all": True}, returns=list[ContainerSummary])
        peer.note_value("list of 200 containers, ms", (time.monotonic() - began) * 1000)
        if len(found) < LISTED:
            raise ClientError(f"{peer.name}: of {LISTED} containers {len(found)} are listed")


def serve(settings: Settings, peer: Peer) -> None:
    """Requests through a published port on loopback, by wrk with eight connections."""
    container = peer.create(
        settings.image,
        ("sh", "-c", "echo hello >/tmp/index.html; exec httpd -f -p 80 -h /tmp"),
        attach=False,
        publish=PORT,
    )
    with removed(peer, container):
        peer.client.do(routes.CONTAINER_START, id=container)
        url = f"http://127.0.0.1:{PORT}/index.html"
        _wait_until_served(peer, url)
        done = subprocess.run(
            [*peer.enter_network, "wrk", "-t1", "-c8", f"-d{TRAFFIC_S}s", url],
            capture_output=True,
            text=True,
            check=True,
        )
        rate = next(
            line.partition(":")[2] for line in done.stdout.splitlines() if line.startswith("Requests/sec")
        )
        peer.note_value("requests per second, published port", float(rate))


def hold(settings: Settings, peer: Peer) -> None:
    """Host memory of running containers: the proportional set size of all processes, more than before."""
    with ExitStack() as made:
        before = _all_memory_kb()
        for _ in range(HELD):
            container = peer.create(settings.image, ("sleep", "1000"), attach=False)
            made.enter_context(removed(peer, container))
            peer.client.do(routes.CONTAINER_START, id=container)
        time.sleep(SETTLE_S)
        peer.note_value("memory per container, MB", (_all_memory_kb() - before) / HELD / 1024)


BULK: tuple[Callable[[Settings, Peer], None], ...] = (
    run_at_once,
    write_and_read_logs,
    list_many,
    serve,
    hold,
    build_image,
    load_image,
)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            yield piece


def _context() -> bytes:
    buffer = io.BytesIO()
    files = {"Dockerfile": DOCKERFILE, "data/a": b"a" * 100_000, "data/b": b"b" * 100_000}
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _wait_until_served(peer: Peer, url: str) -> None:
    for _ in range(100):
        command = [*peer.enter_network, "curl", "-sf", "-o", "/dev/null", url]
        if subprocess.run(command, check=False).returncode == 0:
            return
        time.sleep(0.1)
    raise ClientError(f"{peer.name}: nobody answers at {url} on {socket.gethostname()}")


def _all_memory_kb() -> int:
    total = 0
    for rollup in Path("/proc").glob("[0-9]*/smaps_rollup"):
        with contextlib.suppress(OSError):
            for line in rollup.read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total

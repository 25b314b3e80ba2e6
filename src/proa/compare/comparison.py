# SPDX-License-Identifier: Apache-2.0
"""The comparison as a whole: what is done in which order, and the report at its end.

Nothing here raises for one hull or one measure: what could not be measured is a cell that says why. What
makes the comparison pointless (no daemon, no such image) is raised before anything is started.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from proa.client.client import Client
from proa.client.errors import ApiError, ClientError
from proa.compare import footprint, isolation, performance, recommendation, startup, support
from proa.compare.command import OwnCommand
from proa.compare.figures import Report, Row
from proa.compare.footprint import Footprint
from proa.compare.hulls import HULLS, Hull
from proa.compare.instances import RunFailed, interleave
from proa.compare.performance import Performance
from proa.compare.probing import Look, Prober, default_path, parse_look
from proa.compare.startup import COLD_BOOTS, Startup
from proa.wire import routes
from proa.wire.images import ImageInspect
from proa.wire.networks import Network
from proa.wire.system import Info

# In the order in which people argue about them.
TOPICS = (
    startup.TOPIC,
    performance.TOPIC,
    isolation.ISOLATION,
    footprint.DISK,
    footprint.MEMORY,
    support.OS_SUPPORT,
    isolation.SECURITY,
    support.PORTABILITY,
)
BRIDGE = "bridge"
WEIGHINGS = 3  # at most: idle instances that are weighed; their memory hardly varies

Progress = Callable[[int, int, str], None]  # steps done, steps in all, what is being done


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How thorough to be.

    :ivar seconds: how long each measure of the probe runs in each round.
    """

    rounds: int = 10
    seconds: float = 0.05
    probe: Path | None = None


def run(
    client: Client,
    image: str,
    command: tuple[str, ...] = (),
    options: Options | None = None,
    progress: Progress = lambda done, total, what: None,
) -> Report:
    """Compare the two hulls with an image. Raises ClientError when there is nothing to compare."""
    options = options or Options()
    began = time.monotonic()
    with _Comparison(client, image, command, options, progress) as comparison:
        rows = comparison.measure()
    return Report(
        image=image,
        command=command,
        rounds=options.rounds,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - began,
        conditions=comparison.conditions(),
        rows=tuple(rows),
        advice=recommendation.advise(rows, accelerator=support.accelerator(comparison.info)),
    )


class _Comparison:
    """One comparison under way."""

    def __init__(
        self, client: Client, image: str, command: tuple[str, ...], options: Options, progress: Progress
    ) -> None:
        self._options = options
        self._progress = progress
        self._done = 0
        self._boots = min(COLD_BOOTS, options.rounds)
        self._weighings = min(WEIGHINGS, options.rounds)
        self._total = 2 + len(HULLS) * 2 + self._boots + self._weighings * len(HULLS) + options.rounds * 8
        self._stack = ExitStack()
        self.info = client.call(routes.INFO, returns=Info)
        self._image = client.call(routes.IMAGE_INSPECT, name=image, returns=ImageInspect)
        data_root = _local_data_root(client, self.info)
        program = options.probe or default_path()
        self._prober = Prober(client, image, program)
        peer, peer_failure = self._serve(client, is_local=data_root is not None)
        self._startup = Startup(client, image, self._prober)
        self._performance = Performance(
            self._prober,
            peer=peer,
            peer_failure=peer_failure,
            host_directory=str(data_root or "/tmp"),
            seconds=options.seconds,
        )
        config = self._image.config
        has_entrypoint = config is not None and bool(config.entrypoint)
        self._command = OwnCommand(client, image, command, has_entrypoint=has_entrypoint)
        self._footprint = Footprint(client, self._prober, self._image.size, data_root, program.parent)

    def __enter__(self) -> _Comparison:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def conditions(self) -> tuple[tuple[str, str], ...]:
        """Return what the figures depend on."""
        info = self.info
        found = support.accelerator(info)
        reason = support.accelerator_reason(info)
        return (
            ("host", f"{info.n_cpu} CPUs, {info.mem_total / 2**30:.0f} GiB, Linux {info.kernel_version}"),
            ("system", info.operating_system or platform.system()),
            ("engine", f"proa {info.server_version}, {info.default_runtime}, cgroup v{info.cgroup_version}"),
            ("VM acceleration", f"{found or 'none'}{': ' if reason else ''}{reason}"),
        )

    def measure(self) -> list[Row]:
        """Do everything, in an order that gives each hull the same conditions."""
        for hull in HULLS:
            with self._step(f"first start, {hull.value}"):
                self._startup.cold(hull)
        working = [hull for hull in HULLS if not self._startup.failure(hull)]
        looks, host = self._look_around()
        for round_number in range(self._options.rounds):
            self._round(round_number, working)
        for _ in range(self._boots):
            with self._step("cold boot, vm"):
                if Hull.VM in working:
                    self._startup.boot()
        for _ in range(self._weighings):
            for hull in HULLS:
                with self._step(f"memory, {hull.value}"):
                    self._footprint.weigh(hull)
        rows = [
            *self._startup.rows(),
            *self._performance.rows(),
            *self._command.rows(),
            *self._footprint.rows(),
            *isolation.rows(looks, host),
            *support.rows(looks, self.info, self._image.architecture),
        ]
        return sorted(rows, key=lambda row: TOPICS.index(row.topic))

    def _round(self, number: int, working: list[Hull]) -> None:
        title = f"round {number + 1} of {self._options.rounds}"
        for hull in interleave((None, *HULLS), number):
            if hull is None:
                with self._step(f"{title}, speed, host"):
                    self._performance.on_host()
                with self._step(f"{title}, your command, host"):
                    self._command.on_host()
                continue
            # A hull that does not start is asked once, for its reason.
            dead = hull not in working and number > 0
            for what, measure in (
                ("start", self._startup.warm),
                ("speed", self._performance.inside),
                ("your command", self._command.inside),
            ):
                with self._step(f"{title}, {what}, {hull.value}"):
                    if not dead:
                        measure(hull)

    def _look_around(self) -> tuple[dict[Hull, Look | str], Look | None]:
        looks: dict[Hull, Look | str] = {}
        for hull in HULLS:
            with self._step(f"look around, {hull.value}"):
                try:
                    looks[hull] = parse_look(self._prober.inside(hull, "look"))
                except ClientError as error:
                    looks[hull] = error.message
        try:
            return looks, parse_look(self._prober.on_host("look"))
        except RunFailed:
            return looks, None

    def _serve(self, client: Client, *, is_local: bool) -> tuple[str | None, str]:
        """Start the network measures' peer on the bridge's own address; or say why there is none."""
        if not is_local:
            return None, "the daemon is not on this host, so no peer can be started beside it"
        try:
            network = client.call(routes.NETWORK_INSPECT, id=BRIDGE, returns=Network)
        except ApiError as error:
            return None, error.message
        gateways = [entry.gateway for entry in network.ipam.config or () if entry.gateway]
        if not gateways:
            return None, "the default bridge has no gateway address"
        try:
            return self._stack.enter_context(self._prober.peer(gateways[0])), ""
        except (RunFailed, OSError) as error:
            return None, str(error)

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        self._progress(self._done, self._total, what)
        yield
        self._done += 1
        self._progress(self._done, self._total, what)


def _local_data_root(client: Client, info: Info) -> Path | None:
    """Return the daemon's data root when it is a directory of this host."""
    root = Path(info.docker_root_dir)
    if not client.endpoint.is_local or not info.docker_root_dir or not root.is_dir():
        return None
    return root

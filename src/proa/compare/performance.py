# SPDX-License-Identifier: Apache-2.0
"""CPU, memory, kernel, disk and network inside each hull, against the bare host in the same run.

Host, container and VM take turns, so that a change of the machine's mood meets all three.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from proa.client.errors import ClientError
from proa.compare.figures import Better, Cell, Missing, Row, measured
from proa.compare.hulls import HULLS, Hull
from proa.compare.probing import Prober, Result, parse_results

TOPIC = "performance"
CPU = "CPU, one core"

# measure of the probe: (name of the row, which way it improves)
MEASURES: dict[str, tuple[str, Better]] = {
    "cpu": (CPU, Better.HIGHER),
    "memory_copy": ("memory copy", Better.HIGHER),
    "memory_triad": ("memory triad", Better.HIGHER),
    "syscall": ("system call", Better.LOWER),
    "switch": ("process switch", Better.LOWER),
    "disk_write": ("disk write", Better.HIGHER),
    "disk_read": ("disk read", Better.HIGHER),
    "net_send": ("network send", Better.HIGHER),
    "net_receive": ("network receive", Better.HIGHER),
    "net_round_trip": ("network round trip", Better.LOWER),
}


@dataclass(slots=True)
class _Place:
    """What was collected in one place; a failure is kept by measure, or for all ("")."""

    values: dict[str, list[Result]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, results: dict[str, Result]) -> None:
        for name, result in results.items():
            if result.value is None:
                self.failures[name] = result.error
            else:
                self.values.setdefault(name, []).append(result)

    def cell(self, name: str, base: Cell | None) -> Cell:
        found = self.values.get(name, [])
        if not found:
            return Missing(reason=self.failures.get(name) or self.failures.get("") or "no run gave a value")
        values = [result.value for result in found if result.value is not None]
        return measured(values, found[0].unit, found[0].method, base=base)


class Performance:
    """Collects the probe's measures; the caller says when each place has its turn.

    :param peer: HOST:PORT of the probe's server, or None and ``peer_failure`` says why there is none.
    :param host_directory: a directory of the host on the disk that the containers' files are on.
    :param seconds: how long each measure runs.
    """

    def __init__(
        self, prober: Prober, *, peer: str | None, peer_failure: str, host_directory: str, seconds: float
    ) -> None:
        self._prober = prober
        self._arguments: tuple[str, ...] = ("--seconds", f"{seconds:g}")
        if peer is not None:
            self._arguments += ("--peer", peer)
        self._peer_failure = peer_failure
        self._host_directory = host_directory
        self._host = _Place()
        self._inside = {hull: _Place() for hull in HULLS}

    def on_host(self) -> None:
        """Measure the bare host once."""
        arguments = ("all", *self._arguments, "--dir", self._host_directory)
        try:
            self._host.add(parse_results(self._prober.on_host(*arguments)))
        except ClientError as error:
            self._host.failures[""] = error.message

    def inside(self, hull: Hull) -> None:
        """Measure inside one instance of a hull."""
        place = self._inside[hull]
        try:
            place.add(parse_results(self._prober.inside(hull, "all", *self._arguments)))
        except ClientError as error:
            place.failures[""] = error.message

    def rows(self) -> list[Row]:
        """Return what was found."""
        if self._peer_failure:
            for place in (self._host, *self._inside.values()):
                for name in MEASURES:
                    if name.startswith("net_"):
                        place.failures[name] = self._peer_failure
        rows = []
        for name, (title, better) in MEASURES.items():
            host = self._host.cell(name, None)
            rows.append(
                Row(
                    topic=TOPIC,
                    name=title,
                    host=host,
                    container=self._inside[Hull.CONTAINER].cell(name, host),
                    vm=self._inside[Hull.VM].cell(name, host),
                    better=better,
                )
            )
        return rows

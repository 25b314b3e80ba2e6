# SPDX-License-Identifier: Apache-2.0
"""The result as a table in Markdown: median, lowest to highest, and the ratio to the first peer."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from peers import Peer

from proa.compare.statistics import Spread, summarize

NOTHING = "–"


def table(peers: Sequence[Peer], operations: Sequence[str], about: str, command: str) -> str:
    """Return the table of those operations that a peer has values of.

    :param about: the first words of the line below it, "20 rounds".
    """
    first, *others = peers
    head = ["median (lowest to highest)", *(f"{peer.name} {peer.version}" for peer in peers)]
    head += [f"{peer.name} : {first.name}" for peer in others]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name in operations:
        spreads = [summarize(peer.values[name]) if peer.values.get(name) else None for peer in peers]
        if not any(spreads):
            continue
        base = spreads[0]
        cells = [name, *(_cell(spread) for spread in spreads)]
        cells += [_ratio(spread, base) for spread in spreads[1:]]
        lines.append(f"| {' | '.join(cells)} |")
    moment = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    lines += ["", f"{moment}, {about}, {machine()}", "", f"    {command}"]
    return "\n".join(lines)


def _ratio(spread: Spread | None, base: Spread | None) -> str:
    return f"{spread.median / base.median:.2f}" if spread and base else NOTHING


def _cell(spread: Spread | None) -> str:
    if spread is None:
        return NOTHING
    digits = 1 if spread.median >= 10 else 2
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f} to {spread.high:.{digits}f})"


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

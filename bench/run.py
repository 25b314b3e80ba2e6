#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Time the same operations on several Docker API sockets, and print the ratios.

    bench/run.py --peer docker=unix:///run/docker.sock --peer proa=unix:///run/proa/proa.sock \
                 --peer proa-vm=unix:///run/proa/proa.sock,isolation=vm --rounds 20 --bulk 3

Peers take turns within each round and each goes first equally often, so a disturbed machine disturbs all. The
first peer is the one the others are compared with. Ends with status 1 when a peer fails; containers that it
made are removed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bulk import BULK, Settings
from latency import OPERATIONS, SCENARIOS
from peers import Peer, open_peer
from table import table

from proa.client.errors import ClientError


def measure(
    peers: Sequence[Peer], rounds: int, one_round: Callable[[Peer], None], what: str, *, warm_up: bool
) -> None:
    """Fill in the peers' values.

    :param warm_up: one round before the first is not counted: it finds caches cold.
    """
    for number in range(-1 if warm_up else 0, rounds):
        shift = number % len(peers)
        for peer in (*peers[shift:], *peers[:shift]):
            one_round(peer)
        if number < 0:
            for peer in peers:
                peer.values.clear()
        if sys.stderr.isatty():
            print(f"\r{what}: round {number + 1} of {rounds}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)


def bulk_table(peers: Sequence[Peer], settings: Settings, rounds: int, command: str) -> str:
    for peer in peers:
        peer.values.clear()
    for operation in BULK:
        one_round = partial(operation, settings)
        measure(peers, rounds, one_round, operation.__name__, warm_up=False)
    names = dict.fromkeys(name for peer in peers for name in peer.values)
    return table(peers, list(names), f"{rounds} rounds", command)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--peer",
        "--socket",
        action="append",
        required=True,
        metavar="NAME=URL[,isolation=vm][,netns=PID]",
        help="a daemon; netns: its published ports are in the network namespace of that process",
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--bulk", type=int, default=0, metavar="N", help="rounds of bulk operations [none]")
    parser.add_argument("--archive", type=Path, help="docker save archive of a large image, for --bulk")
    parser.add_argument("--large", default="debian-bench:latest", help="the name of the image in it")
    parser.add_argument(
        "--image", default="busybox", help="must have sh, sleep and /bin/true, in every daemon"
    )
    parser.add_argument("--output", type=Path, help="write the tables to this file as well")
    return parser.parse_args(argv)


def main() -> int:
    options = parse(sys.argv[1:])
    command = shlex.join(["bench/run.py", *sys.argv[1:]])
    results: list[str] = []
    try:
        peers = [open_peer(text) for text in options.peer]

        def latency(peer: Peer) -> None:
            for scenario in SCENARIOS:
                scenario(peer, options.image)

        measure(peers, options.rounds, latency, "latency", warm_up=True)
        results.append(table(peers, OPERATIONS, f"{options.rounds} rounds", command))
        if options.bulk:
            settings = Settings(image=options.image, archive=options.archive, large=options.large)
            results.append(bulk_table(peers, settings, options.bulk, command))
    except ClientError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    text = "\n\n".join(results)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

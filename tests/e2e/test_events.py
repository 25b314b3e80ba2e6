# SPDX-License-Identifier: Apache-2.0
"""What the docker CLI is told of the life of a container, its network and its volume."""

from __future__ import annotations

import json
import time

from tests.support.daemon import Daemon


def test_a_whole_life(daemon: Daemon, name: str) -> None:
    since = f"{time.time():.9f}"
    daemon.docker(
        "run", "-d", "--name", name, "--label", "a=b", "-v", f"{name}:/v", "busybox", "sleep", "600"
    )
    daemon.docker("rm", "-f", name)
    daemon.docker("volume", "rm", name)
    daemon.docker("container", "prune", "-f", "--filter", f"label=only-{name}")
    until = f"{time.time():.9f}"

    def told(*filters: str) -> list[dict[str, object]]:
        words = [word for text in filters for word in ("--filter", text)]
        out = daemon.docker(
            "events", "--since", since, "--until", until, "--format", "{{json .}}", *words
        ).out
        return [json.loads(line) for line in out.splitlines()]

    def actions(*filters: str) -> list[str]:
        return [f"{event['Type']} {event['Action']}" for event in told(*filters)]

    assert actions(f"container={name}") == [
        "container create", "container start", "container kill", "container die", "container destroy",
    ]  # fmt: skip
    assert actions(f"volume={name}") == ["volume create", "volume mount", "volume unmount", "volume destroy"]
    assert actions("type=network") == ["network connect", "network disconnect"]
    assert actions("event=prune") == ["container prune"]
    assert actions("label=a=b", "event=die", "event=start") == ["container start", "container die"]
    assert told("event=mount")[0]["Actor"]["Attributes"]["destination"] == "/v"  # type: ignore[index]
    die = told(f"container={name}", "event=die")[0]["Actor"]["Attributes"]  # type: ignore[index]
    assert (die["exitCode"], die["a"], die["image"], die["name"]) == ("137", "b", "busybox", name)

# SPDX-License-Identifier: Apache-2.0
"""What one daemon has on the host, by name: only its own, so that others may work beside the tests."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from proa.network.bridge import table_name
from tests.support.daemon import Daemon

# Mounts, which are counted as such, caches, and machines that wait to be used: they come and go.
NOT_FOLLOWED = ("rootfs", "layers", "templates", "dns", "pool")
PATIENCE_S = 10.0  # taking down goes on behind the answers
FORMATS = {
    "containers": ("ps", "-a", "--format", "{{.ID}} {{.Names}}"),
    "volumes": ("volume", "ls", "-q"),
    "networks": ("network", "ls", "-q"),
    "images": ("images", "-aq", "--no-trunc"),
}

Footprint = Mapping[str, frozenset[str]]


def footprint(daemon: Daemon) -> Footprint:
    """Return the objects its API lists, its files but logs of its own, mounts, processes, cgroups, rules."""
    listed = {kind: daemon.docker(*command).out.splitlines() for kind, command in FORMATS.items()}
    containers = [line.split()[0] for line in listed["containers"]]
    return {
        **{kind: frozenset(lines) for kind, lines in listed.items()},
        "files": frozenset(_files(daemon.base)),
        "mounts": frozenset(
            line.split()[4]
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if str(daemon.base) in line
        ),
        "processes": frozenset(_processes(str(daemon.base))),
        "cgroups": frozenset(
            str(path)
            for root in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir())
            for path in root.glob("proa/*")
            if any(path.name.startswith(identifier) for identifier in containers)
        ),
        "rules": frozenset(_rules(table_name(daemon.exec_root))),
    }


def footprint_at_rest(daemon: Daemon) -> Footprint:
    """Return the footprint when it stays the same: what an earlier test removed goes behind the answers."""
    deadline = time.monotonic() + PATIENCE_S
    seen = footprint(daemon)
    while time.monotonic() < deadline:
        time.sleep(0.1)
        last, seen = seen, footprint(daemon)
        if last == seen and not any("/.removed-" in path for path in seen["files"]):
            return seen
    raise AssertionError(f"the daemon does not come to rest: {sorted(seen['files'])}\n{daemon.log()}")


def assert_unchanged(daemon: Daemon, before: Footprint) -> None:
    """Fail with what is new, or gone, after a while."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        after = footprint(daemon)
        changes = {kind: sorted(after[kind] ^ before[kind]) for kind in before if after[kind] != before[kind]}
        if not changes:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"left behind, or gone: {json.dumps(changes, indent=2)}\n{daemon.log()}")
        time.sleep(0.1)


def _files(base: Path) -> list[str]:
    found = []
    for directory, directories, files in os.walk(base):
        directories[:] = [
            name for name in directories if name not in NOT_FOLLOWED and not name.startswith(".pool-")
        ]
        found += [os.path.join(directory, name) for name in (*directories, *files)]  # noqa: PTH118
    ignored = ("-wal", "-shm", "daemon.log", ".sock")
    return [path for path in found if not path.endswith(ignored)]


def _processes(text: str) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args", "-ww"], capture_output=True, text=True, check=True).stdout
    lines = [line for line in listed.splitlines() if text in line and "proa-pool-" not in line]
    return [line for line in lines if "proa.daemon" not in line and "docker --host" not in line]


def _rules(table: str) -> list[str]:
    command = ["nft", "--stateless", "list", "table", "ip", table]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [f"{number} {line.strip()}" for number, line in enumerate(done.stdout.splitlines())]

# SPDX-License-Identifier: Apache-2.0
"""Counts what a daemon could leave behind on the host."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path


def count_host_state(daemon_pid: int, *roots: Path) -> Mapping[str, int]:
    """Return the counts of mounts, namespaces, interfaces, rules, cgroups, processes and files.

    :param roots: directories whose entries are counted, all the way down.
    """
    return {
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "namespaces": _namespaces(),
        "interfaces": len(list(Path("/sys/class/net").iterdir())),
        "firewall rules": _rules(),
        "cgroups": _cgroups(),
        "processes": _processes(),
        "open files of the daemon": len(list(Path(f"/proc/{daemon_pid}/fd").iterdir())),
        "temporary files": sum(1 for _ in Path("/tmp").iterdir()),
        "loop devices": sum(
            1 for path in Path("/sys/block").glob("loop*/loop/backing_file") if path.exists()
        ),
        **{
            f"files below {root.name}": sum(
                len(files) + len(directories) for _, directories, files in os.walk(root)
            )
            for root in roots
        },
    }


def _namespaces() -> int:
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        for kind in ("net", "mnt", "pid", "ipc", "uts", "cgroup"):
            try:
                found.add((process / "ns" / kind).readlink())
            except OSError:
                continue
    return len(found)


def _rules() -> int:
    done = subprocess.run(["nft", "--json", "list", "ruleset"], capture_output=True, text=True, check=True)
    count = 0
    for entry in json.loads(done.stdout)["nftables"]:
        for kind, value in entry.items():
            count += 1 + (len(value.get("elem", [])) if kind in ("map", "set") else 0)
    return count


def _cgroups() -> int:
    return sum(1 for _, directories, _ in os.walk("/sys/fs/cgroup") for _ in directories)


def _processes() -> int:
    """Count processes but kernel threads (their parent is kthreadd)."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes():
                count += 1
        except OSError:
            continue
    return count

# SPDX-License-Identifier: Apache-2.0
"""The host's processes behind one instance, and what they weigh.

Behind a container stand its processes and conmon; behind a VM QEMU and the file server of its mounts. They
are known by the container's id: in their command line, in their control group, or (the file server, which
inherits its socket) among their open files. Shared pages count by each process's share in them (PSS), so
the sum over several clones of one template is what they take together.

Source: proc_pid_smaps(5), smaps_rollup; proc_pid_stat(5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
FILE_SERVER = "fs-server"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostProcess:
    pid: int
    parent: int
    name: str
    traces: str  # where the id of the container it works for may stand


def read_processes(proc: Path = PROC) -> dict[int, HostProcess]:
    """Return all processes of this host; those that end meanwhile are left out."""
    found = {}
    for directory in proc.iterdir():
        if not directory.name.isdecimal():
            continue
        try:
            stat = (directory / "stat").read_text()
            traces = (directory / "cmdline").read_text(errors="replace")
            traces += (directory / "cgroup").read_text(errors="replace")
        except OSError:
            continue
        # The name is in parentheses and may contain anything, parentheses too.
        name, rest = stat[stat.index("(") + 1 :].rsplit(")", 1)
        if name == FILE_SERVER:
            traces += _open_files(directory / "fd")
        pid = int(directory.name)
        found[pid] = HostProcess(pid=pid, parent=int(rest.split()[1]), name=name, traces=traces)
    return found


def behind(container: str, pid: int, processes: Mapping[int, HostProcess]) -> list[HostProcess]:
    """Return what runs for a container: its first process, those that name it, and their children."""
    chosen = {number for number, process in processes.items() if container in process.traces}
    if pid in processes:
        chosen.add(pid)
    growing = True
    while growing:
        children = {number for number, process in processes.items() if process.parent in chosen}
        growing = not children <= chosen
        chosen |= children
    return [processes[number] for number in sorted(chosen)]


def _open_files(directory: Path) -> str:
    try:
        return "\n".join(str(entry.readlink()) for entry in directory.iterdir())
    except OSError:
        return ""  # it has ended, or is another user's


def proportional_bytes(pid: int, proc: Path = PROC) -> int:
    """Return a process's PSS. Raises OSError; PermissionError when it is another user's."""
    for line in (proc / str(pid) / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def status_field(pid: int, name: str, proc: Path = PROC) -> str:
    """Return a line of /proc/PID/status; "" when there is none. Raises OSError."""
    for line in (proc / str(pid) / "status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return ""

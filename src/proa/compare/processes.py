# SPDX-License-Identifier: Apache-2.0
"""The host's processes behind one instance, and what they weigh.

Behind a container stand its processes and conmon; behind a VM QEMU, the file server of its mounts and what
else names the container on its command line. Shared pages count by the share each process has in them (PSS),
so the sum over several clones of one template is what they take together.

Source: proc_pid_smaps(5), smaps_rollup; proc_pid_stat(5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostProcess:
    pid: int
    parent: int
    name: str
    command: str


def read_processes(proc: Path = PROC) -> dict[int, HostProcess]:
    """Return all processes of this host; those that end meanwhile are left out."""
    found = {}
    for directory in proc.iterdir():
        if not directory.name.isdecimal():
            continue
        try:
            stat = (directory / "stat").read_text()
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        # The name is in parentheses and may contain anything, parentheses too.
        name, rest = stat[stat.index("(") + 1 :].rsplit(")", 1)
        pid = int(directory.name)
        found[pid] = HostProcess(pid=pid, parent=int(rest.split()[1]), name=name, command=command)
    return found


def behind(container: str, pid: int, processes: Mapping[int, HostProcess]) -> list[HostProcess]:
    """Return what runs for a container: its first process, those that name it, and their children."""
    chosen = {number for number, process in processes.items() if container in process.command}
    if pid in processes:
        chosen.add(pid)
    growing = True
    while growing:
        children = {number for number, process in processes.items() if process.parent in chosen}
        growing = not children <= chosen
        chosen |= children
    return [processes[number] for number in sorted(chosen)]


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

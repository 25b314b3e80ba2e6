# SPDX-License-Identifier: Apache-2.0
"""What an instance takes: memory of the host's processes behind it, and disk."""

from __future__ import annotations

from pathlib import Path

from proa.client.client import Client
from proa.client.errors import ClientError
from proa.compare.figures import Better, Cell, Fact, Missing, Row, measured
from proa.compare.hulls import HULLS, Hull
from proa.compare.instances import idling
from proa.compare.isolation import SECURITY
from proa.compare.probing import Prober
from proa.compare.processes import behind, proportional_bytes, read_processes, status_field

DISK = "size on disk"
MEMORY = "memory per instance"
IDLE = "idle, on the host"
MIB = 2**20


class Footprint:
    """Weighs idle instances; the caller says when.

    :param data_root: the daemon's, when it is on this host.
    """

    def __init__(
        self, client: Client, prober: Prober, image_bytes: int, data_root: Path | None, library: Path
    ) -> None:
        self._client = client
        self._prober = prober
        self._image_bytes = image_bytes
        self._data_root = data_root
        self._library = library
        self._memory: dict[Hull, list[float]] = {hull: [] for hull in HULLS}
        self._names: dict[Hull, str] = dict.fromkeys(HULLS, "")
        self._disk: dict[Hull, list[float]] = {hull: [] for hull in HULLS}
        self._facing: dict[Hull, str] = {}
        self._failures: dict[Hull, str] = {}

    def weigh(self, hull: Hull) -> None:
        """Start an instance that waits, weigh it, end it."""
        try:
            with idling(self._client, self._prober.order(hull, "sleep")) as container:
                pid = container.state.pid
                processes = behind(container.id, pid, read_processes())
                memory = sum(proportional_bytes(process.pid) for process in processes)
                self._names[hull] = ", ".join(sorted({process.name for process in processes}))
                self._facing[hull] = _facing(pid)
                self._disk[hull].append(self._own_bytes(container.id) / MIB)
        except (ClientError, OSError) as error:
            self._failures[hull] = str(error)
            return
        self._memory[hull].append(memory / MIB)

    def rows(self) -> list[Row]:
        """Return what was found."""
        memory = {
            hull: measured(
                self._memory[hull],
                "MiB",
                f"sum of PSS of {self._names[hull]} on the host, idle; without page cache and kernel memory",
                reason=self._failures.get(hull, ""),
            )
            for hull in HULLS
        }
        image = measured([self._image_bytes / MIB], "MiB", "size in the API; stored once for both hulls")
        own = {
            hull: measured(
                self._disk[hull],
                "MiB",
                "blocks in use below the instance's own directory, idle",
                reason=self._failures.get(hull, ""),
            )
            for hull in HULLS
        }
        nothing = Fact(text="nothing", method="by design")
        face = {hull: self._face(hull) for hull in HULLS}
        pairs: list[tuple[str, str, Cell, Cell]] = [
            (MEMORY, IDLE, memory[Hull.CONTAINER], memory[Hull.VM]),
            (DISK, "image", image, image),
            (DISK, "instance", own[Hull.CONTAINER], own[Hull.VM]),
            (DISK, "shared by all instances", nothing, self._shared()),
            (SECURITY, "what faces the host", face[Hull.CONTAINER], face[Hull.VM]),
        ]
        return [
            Row(topic=topic, name=name, container=container, vm=vm, better=Better.LOWER)
            for topic, name, container, vm in pairs
        ]

    def _own_bytes(self, container: str) -> int:
        if self._data_root is None:
            raise OSError("the daemon's files are not on this host")
        return allocated_bytes(self._data_root / "containers" / container)

    def _shared(self) -> Cell:
        if self._data_root is None:
            return Missing(reason="the daemon's files are not on this host")
        templates = allocated_bytes(self._data_root / "templates") / MIB
        guest = sum(allocated_bytes(self._library / name) for name in ("kernel", "initramfs.cpio")) / MIB
        return measured(
            [templates + guest],
            "MiB",
            f"memory templates {templates:.0f} MiB, guest kernel, its modules and initramfs {guest:.0f} MiB",
        )

    def _face(self, hull: Hull) -> Cell:
        if hull not in self._facing:
            return Missing(reason=self._failures.get(hull, "not looked at"))
        return Fact(
            text=self._facing[hull], method="/proc/PID/status of the process in State.Pid, seen from the host"
        )


def allocated_bytes(path: Path) -> int:
    """Return the bytes of blocks in use by a file, or by all files below a directory of one file system."""
    if not path.exists():
        return 0
    device = path.stat().st_dev
    total, waiting = 0, [path]
    while waiting:
        entry = waiting.pop()
        try:
            status = entry.lstat()
            if status.st_dev != device:
                continue  # a mounted root file system is not the instance's own
            total += status.st_blocks * 512
            if entry.is_dir() and not entry.is_symlink():
                waiting += entry.iterdir()
        except OSError:
            continue
    return total


def _facing(pid: int) -> str:
    """Describe the process that a break-out would start from."""
    name = status_field(pid, "Name")
    uid = status_field(pid, "Uid").split()[0]
    capabilities = int(status_field(pid, "CapEff") or "0", 16).bit_count()
    seccomp = "seccomp filter" if status_field(pid, "Seccomp") == "2" else "no seccomp filter"
    return f"{name}: uid {uid}, {capabilities} capabilities, {seccomp}"

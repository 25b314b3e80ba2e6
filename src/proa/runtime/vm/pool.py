# SPDX-License-Identifier: Apache-2.0
"""The pool: a few machines that wait, of the images and sizes that were lately started.

    a start takes one, if there is one that fits, and makes a clone if not
    the keeper makes what is missing, behind the starts, one at a time and with low priority
    it ends what nobody has asked for in a while, and everything when memory is short or the daemon ends

Owns the machines until they are taken. Those of a daemon that died are ended by the next one.

Source: docs/decisions/0035-pool.md; Linux Documentation/accounting/psi.rst.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from proa.model.errors import EngineError
from proa.model.task import MountKind, TaskSpec
from proa.runtime.vm import pooled
from proa.runtime.vm.channel import AgentError
from proa.runtime.vm.clone import Tools
from proa.runtime.vm.pooled import PREFIX, Kind, Pooled
from proa.runtime.vm.qemu import HostProcess

MIB = 1024 * 1024
REST_S = 0.2  # after the latest start began, before anything is made
SWEEP_S = 2.0  # between two looks at the memory, while there is something to give back
KEPT_S = 600.0  # an image that was not started for so long may not come again
_COST_BYTES = 64 * MIB  # of one that waits, whatever its size
_PRESSURE_PERCENT = 10.0  # of the last 10 s in which somebody waited for memory

log = logging.getLogger(__name__)


class Pool:
    """The machines that wait.

    :param size: how many there are at the most; 0: none.
    :param exec_root: where the VMs' directories are; ``root`` is for disks, on the containers' file system.
    """

    def __init__(self, size: int, *, tools: Tools, exec_root: Path, root: Path) -> None:
        self._size = size
        self._tools = tools
        self._exec_root = exec_root
        self._root = root
        self._waiting: list[Pooled] = []
        self._uses: dict[Kind, float] = {}  # monotonic time of the latest
        self._programs: dict[Kind, str] = {}
        self._last_start = 0.0
        self._changed = anyio.Event()

    def keep_in(self, tasks: TaskGroup) -> None:
        """Begin to keep it, until ``tasks`` is cancelled: then all that wait are ended."""
        tasks.start_soon(self._keep, name="vm pool")

    def note_use(self, kind: Kind, program: str) -> None:
        """Say that such a machine was asked for, and what it is to run."""
        if self._size > 0:
            self._programs[kind] = program
            self._uses[kind] = self._last_start = time.monotonic()
            self._changed.set()

    def take(self, kind: Kind, spec: TaskSpec) -> Pooled | None:
        """Hand out a machine that can become this container, for good; None when there is none."""
        if any(mount.kind is MountKind.BIND for mount in spec.mounts):
            return None  # its file server is one of the things that QEMU must be started with
        for each in self._waiting:
            if each.kind == kind and each.fits(spec) and not each.process.has_ended():
                self._waiting.remove(each)
                return each
        return None

    # --- machinery ---

    async def _keep(self) -> None:
        try:
            with anyio.CancelScope(shield=True):
                await self._remove_left()
            while self._size > 0:
                await self._wait()
                await self._drop()
                await self._fill()
        finally:
            with anyio.CancelScope(shield=True):
                await self._end(list(self._waiting))

    async def _wait(self) -> None:
        """Until something has changed, or it is time to look again."""
        with anyio.move_on_after(SWEEP_S if self._waiting else None):
            await self._changed.wait()
        self._changed = anyio.Event()

    async def _drop(self) -> None:
        now = time.monotonic()
        self._uses = {kind: used for kind, used in self._uses.items() if now - used < KEPT_S}
        self._programs = {kind: name for kind, name in self._programs.items() if kind in self._uses}
        wanted = [] if is_memory_short() else self._wanted()
        kept: list[Pooled] = []
        for each in self._waiting:
            if each.kind in wanted and not each.process.has_ended() and is_whole(each.kind):
                wanted.remove(each.kind)
                kept.append(each)
        await self._end([each for each in self._waiting if each not in kept])

    async def _fill(self) -> None:
        while kind := self._missing():
            await anyio.sleep(max(0.0, self._last_start + REST_S - time.monotonic()))
            if kind != self._missing() or not has_memory_for(_COST_BYTES):
                return
            try:
                made = await pooled.make(
                    kind,
                    self._programs.get(kind, ""),
                    self._tools,
                    exec_root=self._exec_root,
                    pool_root=self._root,
                )
            except (EngineError, AgentError, OSError) as error:
                log.warning("no machine for the pool: %s", error)
                self._uses.pop(kind, None)
                return
            self._waiting.append(made)

    def _wanted(self) -> list[Kind]:
        """Return what should be there: the kinds used last take turns."""
        recent = sorted(self._uses, key=lambda kind: self._uses[kind], reverse=True)[: self._size]
        return [recent[index % len(recent)] for index in range(self._size)] if recent else []

    def _missing(self) -> Kind | None:
        wanted = [kind for kind in self._wanted() if is_whole(kind)]
        for each in self._waiting:
            if each.kind in wanted:
                wanted.remove(each.kind)
        return wanted[0] if wanted and len(self._waiting) < self._size else None

    async def _end(self, machines: list[Pooled]) -> None:
        for each in machines:
            self._waiting.remove(each)  # first: from here on nobody can be given it
        for each in machines:
            await each.end()

    async def _remove_left(self) -> None:
        """End what a dead daemon had waiting."""
        for home in self._exec_root.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError, ValueError):
                pid, start_time = map(int, (home / "pid").read_text().split())
                process = HostProcess.find(pid, start_time)
                if process is not None:
                    await process.end()
                    process.close()
            shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(self._root, ignore_errors=True)
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)


def is_whole(kind: Kind) -> bool:
    """Whether its template is still the one in the store."""
    return kind.template.memory_file.exists()


def is_memory_short() -> bool:
    """Whether somebody waits for memory, or little is left."""
    if _read_pressure() >= _PRESSURE_PERCENT:
        return True
    available, total = _read_memory()
    return available < total // 20


def has_memory_for(wanted_bytes: int) -> bool:
    """Whether enough is left after that: more than would be given back again."""
    available, total = _read_memory()
    return not is_memory_short() and available - wanted_bytes >= total // 10


def _read_memory() -> tuple[int, int]:
    """Return MemAvailable and MemTotal in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    values = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return values["MemAvailable"], values["MemTotal"]


def _read_pressure() -> float:
    """Return in how many percent of the last ten seconds somebody waited; 0 where there is no PSI."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return float(Path("/proc/pressure/memory").read_text().split("avg10=")[1].split()[0])
    return 0.0

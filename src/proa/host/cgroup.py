# SPDX-License-Identifier: Apache-2.0
"""Control groups by path, in every layout a host may have: v1, hybrid, v2.

A ``Cgroup`` is one path (``/proa/<id>``) in all mounted hierarchies at once: made, filled, frozen, killed and
removed as one. What the limits are called is in ``cgroup_limits``, what the readings mean in
``cgroup_usage``. OCI runtimes make the cgroups of containers themselves, at the same paths; everything here
works on those too.

    v1      /sys/fs/cgroup/<controller>/proa/<id>     one tree for each controller (some share one)
    hybrid  the same, and /sys/fs/cgroup/unified/proa/<id> without controllers
    v2      /sys/fs/cgroup/proa/<id>                  one tree, controllers enabled from the root down

Source: kernel Documentation/admin-guide/cgroup-v1, cgroup-v2.rst; cgroups(7).
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio

from proa.host import cgroup_limits, cgroup_oom, cgroup_usage, process
from proa.model.errors import Internal, InvalidParameter, Unavailable
from proa.model.task import Resources

V1_CONTROLLERS = (
    "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio",
    "pids", "hugetlb", "perf_event", "net_cls", "net_prio", "rdma", "misc",
)  # fmt: skip
# What crun 1.8 wants mounted before it takes a hybrid host for v1 (it looks for every controller of
# /proc/cgroups that may be in use).
MOUNTED_FOR_CRUN = ("hugetlb", "perf_event", "net_cls", "net_prio")
DELETE_TIMEOUT_S = 5.0  # a killed process may need this long to leave (dirty pages, a busy disk)
FREEZE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchies:
    """Where the host has its cgroup trees mounted.

    :ivar v1: mount point by controller (``name=systemd`` included), empty on a v2 host.
    :ivar unified: mount point of cgroup2, None on a pure v1 host.
    """

    v1: Mapping[str, Path]
    unified: Path | None

    @property
    def is_v2(self) -> bool:
        """Whether the controllers are in the unified tree."""
        return self.unified is not None and not any(name in V1_CONTROLLERS for name in self.v1)

    @property
    def roots(self) -> tuple[Path, ...]:
        """Every tree once."""
        found = dict.fromkeys(self.v1.values())
        if self.unified is not None:
            found[self.unified] = None
        return tuple(found)

    def root_of(self, controller: str) -> Path | None:
        """The tree that has this controller, None when no tree has."""
        return self.unified if self.is_v2 else self.v1.get(controller)

    @property
    def weighs_io(self) -> bool:
        """Whether the kernel knows weights of block I/O.

        Only cgroups below a root have the file, if the controller is on there; io.cost.qos is the root's.
        """
        root = self.root_of("io" if self.is_v2 else "blkio")
        if root is None:
            return False
        below = [entry for entry in root.iterdir() if entry.is_dir()]
        names = ("io.weight", "io.bfq.weight", "blkio.weight", "blkio.bfq.weight")
        return (
            (root / "io.cost.qos").exists()
            or any((directory / name).exists() for directory in below for name in names)
            or not below
        )


def parse_mountinfo(text: str) -> Hierarchies:
    """Read the trees out of /proc/self/mountinfo. The first mount of each wins.

    Source: proc_pid_mountinfo(5).
    """
    v1: dict[str, Path] = {}
    unified: Path | None = None
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        mount_point = Path(left.split()[4])
        kind, _, super_options = right.split(" ", 2)
        if kind == "cgroup2" and unified is None:
            unified = mount_point
        elif kind == "cgroup":
            for option in super_options.split(","):
                if option in V1_CONTROLLERS or option.startswith("name="):
                    v1.setdefault(option, mount_point)
    return Hierarchies(v1=v1, unified=unified)


def get_hierarchies() -> Hierarchies:
    """Return the host's present trees."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text())


async def ensure_hierarchies() -> Hierarchies:
    """Mount the v1 trees that crun misses on a v1 or hybrid host; return what is mounted then.

    Does nothing on a v2 host or without the right to mount. A controller that the kernel does not have, or
    has switched off, is left out. Idempotent.
    """
    found = get_hierarchies()
    if found.is_v2 or not found.v1 or os.geteuid() != 0:
        return found
    base = next(iter(found.v1.values())).parent
    for name in unmounted_controllers(found):
        directory = base / name
        try:
            directory.mkdir(mode=0o755, exist_ok=True)
        except OSError:
            continue
        await process.run(["mount", "-t", "cgroup", "-o", name, "cgroup", directory], check=False)
    return get_hierarchies()


def unmounted_controllers(found: Hierarchies) -> tuple[str, ...]:
    """Return the v1 controllers that crun wants and that the kernel could give; none on a v2 host."""
    if found.is_v2 or not found.v1:
        return ()
    return tuple(name for name in MOUNTED_FOR_CRUN if name not in found.v1 and _is_free(name))


def _is_free(controller: str) -> bool:
    """Whether the kernel has the controller, enabled and bound to no tree."""
    for line in Path("/proc/cgroups").read_text().splitlines():
        fields = line.split()
        if fields[0] == controller:
            return fields[1] == "0" and fields[3] == "1"
    return False


class Cgroup:
    """The cgroup ``path`` in all trees. The object holds nothing; the kernel has the state.

    :param path: absolute, from the root of the trees: "/proa/4f…".
    """

    def __init__(self, path: str, hierarchies: Hierarchies) -> None:
        if not path.startswith("/") or ".." in path.split("/") or path.strip("/") == "":
            raise InvalidParameter(f"invalid cgroup path: {path!r}")
        self.path = path
        self.hierarchies = hierarchies

    # --- making and filling ---

    def create(self, resources: Resources | None = None) -> None:
        """Make the cgroup, its ancestors too, and set the limits. Idempotent.

        :raises InvalidParameter: a limit cannot be had on this host; the cgroup is gone again.
        :raises Internal: the trees cannot be written.
        """
        try:
            for root in self.hierarchies.roots:
                self._make_below(root)
        except OSError as error:
            raise Internal(f"cannot create cgroup {self.path}: {error}") from error
        if resources is not None:
            try:
                self.set_limits(resources)
            except BaseException:
                self._remove_once()
                raise

    def exists(self) -> bool:
        """Whether any tree has it."""
        return any(True for _ in self.directories())

    def directories(self) -> Iterator[Path]:
        """The directories that exist, one for each tree."""
        for root in self.hierarchies.roots:
            directory = self._below(root)
            if directory.is_dir():
                yield directory

    def attach(self, pid: int) -> None:
        """Move the process into the cgroup, in all trees.

        Each move may wait for an RCU grace period (milliseconds); a child attached before it begins its
        work is cheapest. Raises Internal.
        """
        try:
            for directory in self.directories():
                (directory / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise Internal(f"cannot move process {pid} into cgroup {self.path}: {error}") from error

    def set_limits(self, resources: Resources, *, reset: bool = False) -> None:
        """Set the limits. With ``reset`` a limit that is not given is lifted, else it is left alone.

        What the kernel cannot limit and Docker then discards with a warning (weights of block I/O,
        swappiness on v2…) is discarded here too.

        :raises InvalidParameter: the kernel refused a value; earlier ones have been set.
        """
        for controller, name, value in cgroup_limits.plan(
            resources, is_v2=self.hierarchies.is_v2, reset=reset, read=self._read
        ):
            root = self.hierarchies.root_of(controller)
            file = None if root is None else self._below(root) / name
            if file is None or not file.exists():
                if cgroup_limits.may_be_discarded(name):
                    continue
                raise InvalidParameter(f"this host cannot set {name}: no {controller} cgroup controller")
            try:
                file.write_text(value)
            except OSError as error:
                if error.errno == errno.EBUSY and name.startswith("memory."):
                    raise InvalidParameter(
                        f"cannot set {name} to {value}: the container uses more than that"
                    ) from error
                raise InvalidParameter(f"cannot set {name} to {value}: {error.strerror}") from error

    # --- reading ---

    def pids(self) -> list[int]:
        """Processes in it and below it, by host pid; empty when it is gone."""
        tree = self._process_tree()
        found: list[int] = []
        if tree is not None:
            for directory in _descend(tree):
                with contextlib.suppress(OSError):
                    found += map(int, (directory / "cgroup.procs").read_text().split())
        return found

    def usage(self) -> cgroup_usage.Usage:
        """Read the present use. Raises FileNotFoundError when the cgroup is gone."""
        if self._process_tree() is None:
            raise FileNotFoundError(errno.ENOENT, "no such cgroup", self.path)
        return cgroup_usage.read(self._read, is_v2=self.hierarchies.is_v2)

    def oom_kills(self) -> int:
        """How many processes the kernel killed for want of memory; 0 when that cannot be told."""
        return cgroup_usage.read_oom_kills(self._read, is_v2=self.hierarchies.is_v2)

    async def watch_oom(self, tell: Callable[[], Awaitable[None]]) -> None:
        """Call ``tell`` whenever the kernel has to kill in it for want of memory, until cancelled.

        Returns at once where no tree limits memory. Raises OSError when the kernel does not tell.
        """
        root = self.hierarchies.root_of("memory")
        if root is not None:
            await cgroup_oom.watch(self._below(root), tell, is_v2=self.hierarchies.is_v2)

    # --- freezing, killing, removing ---

    async def set_frozen(self, frozen: bool) -> None:
        """Freeze or thaw all processes in it; returns when they are. Idempotent.

        :raises Unavailable: a process did not freeze in time (it is stuck in the kernel); thawed again.
        """
        root = self.hierarchies.root_of("freezer")
        directory = None if root is None else self._below(root)
        if directory is None or not directory.is_dir():
            raise Internal(f"cannot freeze cgroup {self.path}: no freezer")
        with anyio.move_on_after(FREEZE_TIMEOUT_S):
            while not self._freeze_once(directory, frozen=frozen):  # noqa: ASYNC110 - the kernel has no event for it in v1
                await anyio.sleep(0.001)
            return
        self._freeze_once(directory, frozen=False)
        raise Unavailable(f"cannot freeze cgroup {self.path}: a process does not react")

    def is_frozen(self) -> bool:
        """Whether it was asked to freeze."""
        if self.hierarchies.is_v2:
            return (self._read("", "cgroup.freeze") or "").strip() == "1"
        return (self._read("freezer", "freezer.state") or "THAWED").strip() != "THAWED"

    def kill(self) -> None:
        """Send SIGKILL to every process in it, frozen ones too. They need a moment to leave."""
        for directory in self.directories():
            with contextlib.suppress(OSError):  # kernel before 5.14, or a v1 tree: no such file
                fd = os.open(directory / "cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
                with contextlib.closing(os.fdopen(fd, "wb", buffering=0)) as file:
                    file.write(b"1")
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        root = self.hierarchies.v1.get("freezer")
        if root is not None:  # a frozen process of v1 dies only when it thaws; of v2 at once
            for directory in _descend(self._below(root)):
                with contextlib.suppress(OSError):
                    (directory / "freezer.state").write_text("THAWED")

    async def delete(self, *, timeout_s: float = DELETE_TIMEOUT_S) -> None:
        """Kill what is in it and remove it, with everything below. Idempotent.

        :raises Internal: processes would not leave in time.
        """
        pause_s = 0.001
        with anyio.move_on_after(timeout_s):
            while not self._remove_once():
                self.kill()
                await anyio.sleep(pause_s)
                pause_s = min(2 * pause_s, 0.1)
            return
        raise Internal(f"cgroup {self.path} cannot be removed: processes {self.pids()} do not end")

    # --- machinery ---

    def _below(self, root: Path) -> Path:
        return root / self.path.lstrip("/")

    def _read(self, controller: str, name: str) -> str | None:
        """The content of a file in the tree of a controller ("" is the unified tree); None without it."""
        root = self.hierarchies.root_of(controller) if controller else self.hierarchies.unified
        if root is None:
            return None
        try:
            return (self._below(root) / name).read_text()
        except OSError:
            return None

    def _process_tree(self) -> Path | None:
        return next(self.directories(), None)

    def _freeze_once(self, directory: Path, *, frozen: bool) -> bool:
        if self.hierarchies.is_v2:
            (directory / "cgroup.freeze").write_text(str(int(frozen)))
            events = cgroup_usage.parse_keyed((directory / "cgroup.events").read_text())
            return bool(events.get("frozen")) == frozen
        wanted = "FROZEN" if frozen else "THAWED"
        file = directory / "freezer.state"
        file.write_text(wanted)  # written anew each time: v1 may stop at FREEZING when a fork ran meanwhile
        return file.read_text().strip() == wanted

    def _make_below(self, root: Path) -> None:
        directory = root
        parts = self.path.strip("/").split("/")
        is_cpuset = root == self.hierarchies.v1.get("cpuset")
        for part in parts:
            if self.hierarchies.is_v2:
                _enable_controllers(directory)
            parent, directory = directory, directory / part
            with contextlib.suppress(FileExistsError):
                directory.mkdir(mode=0o755)
            if is_cpuset:
                _inherit_cpuset(parent, directory)

    def _remove_once(self) -> bool:
        """Remove what can be removed; True when nothing is left."""
        gone = True
        for directory in list(self.directories()):
            for each in reversed(list(_descend(directory))):
                try:
                    each.rmdir()
                except FileNotFoundError:
                    pass
                except OSError:
                    gone = False
        return gone


def find_cgroups(name: str) -> list[Cgroup]:
    """Return the cgroups of this name, wherever in the trees they are.

    :param name: the last part of a path, such as a container's id.
    """
    hierarchies = get_hierarchies()
    found = {
        f"/{each.relative_to(root)}"
        for root in hierarchies.roots
        for each in _descend(root)
        if each.name == name
    }
    return [Cgroup(path, hierarchies) for path in sorted(found)]


def _descend(directory: Path) -> Iterator[Path]:
    """The cgroup and all below it, parents first."""
    yield directory
    try:
        children = [
            Path(entry.path) for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)
        ]
    except OSError:
        return
    for child in children:
        yield from _descend(child)


def _inherit_cpuset(parent: Path, child: Path) -> None:
    """A new cpuset of v1 is empty, and an empty one takes no process."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not (child / name).read_text().strip():
            (child / name).write_text((parent / name).read_text())


def _enable_controllers(directory: Path) -> None:
    """Let the children have every controller this cgroup has.

    One by one: a controller that cannot be enabled (processes in the cgroup, real-time threads) shall not
    keep the others away; a limit that needs it fails later, by name.
    """
    try:
        available = (directory / "cgroup.controllers").read_text().split()
        enabled = (directory / "cgroup.subtree_control").read_text().split()
    except OSError:
        return
    for name in _missing(available, enabled):
        with contextlib.suppress(OSError):
            (directory / "cgroup.subtree_control").write_text(f"+{name}")


def _missing(available: Iterable[str], enabled: Iterable[str]) -> list[str]:
    present = set(enabled)
    return [name for name in available if name not in present]

# SPDX-License-Identifier: Apache-2.0
"""The seam between the engine and the two hulls.

A *runtime* makes *tasks*; a task is the running side of one container. The engine knows only these
interfaces: which driver serves a container is looked up by name, once, in ``proa.daemon``. Both drivers and
the fake in ``tests/support`` pass the one suite in ``tests/contract``.

Rules that hold for every implementation:

- The daemon may die at any point. What a task needs to go on, and what a later daemon needs to find it, its
  log and its exit status, lives in processes and files outside the daemon.
- Errors are those of ``proa.model.errors``; OSError, exit statuses and protocol errors are translated here.
- Every method may be cancelled; what it had acquired is then released.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from proa.model.config import HostConfig
from proa.model.ids import ContainerId, ExecId
from proa.model.task import (
    ExitStatus,
    Interface,
    Mount,
    NetworkKind,
    ProcessSpec,
    ProcessTable,
    Resources,
    RootfsKind,
    Security,
    TaskSpec,
    TaskStats,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request to create a container, as a driver judges it: the API's own words, and what they mean."""

    host: HostConfig
    security: Security
    mounts: tuple[Mount, ...]


# The Docker Engine's sentence, for either hull.
NO_WEIGHT = "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded."


# HostConfig.Annotations that speak of the kernel of a container of its own.
KERNEL_ANNOTATION = "proa.vm.kernel"  # a file on the daemon's host
KERNEL_ARGUMENTS_ANNOTATION = "proa.vm.kernel-args"  # what follows on its command line


def accept(asked: Asked) -> Sequence[str]:
    """Judge that nothing more is refused, and nothing left out."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What a runtime can do, so that the engine refuses before anything is made.

    :ivar refused: options of the Engine API that this hull cannot honour, by their API name
        (``HostConfig.PidMode``…), each with the reason, as the user will read it. The engine refuses a
        request that sets one of them to anything but its default.
    :ivar network_modes: accepted kinds of HostConfig.NetworkMode: "bridge" (any network), "none", "host",
        "container".
    :ivar judge: raises InvalidParameter for what is not a field but a value in one, and returns a warning for
        each limit that this host's kernel does not have, and that is left out as Docker leaves it out.
    """

    rootfs: RootfsKind
    network: NetworkKind
    refused: dict[str, str]
    network_modes: Collection[str]
    min_memory_bytes: int
    judge: Callable[[Asked], Sequence[str]] = accept
    most_networks: int = 0  # that one container may be on; 0: any number


class StreamId(enum.IntEnum):
    """Numbers of Docker's multiplexed stream format (Engine API, ContainerAttach, Stream format)."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2


class Stdio(Protocol):
    """A client's connection to the standard streams of a process. With a tty all output is STDOUT.

    Several may be open on one process; each receives all output from its opening on. A slow reader holds
    back its process (as a pipe would), never loses output.
    """

    async def receive(self) -> tuple[StreamId, bytes]:
        """Return the next piece of output, never empty. Raises anyio.EndOfStream when all has been read."""
        ...

    async def send(self, data: bytes) -> None:
        """Write to standard input. Raises anyio.BrokenResourceError when nobody will read it."""
        ...

    async def send_eof(self) -> None:
        """Tell that no input follows. Whether the process sees the end is up to stdin_once. Idempotent."""
        ...

    async def aclose(self) -> None:
        """Leave; the process goes on. Idempotent."""
        ...


class Process(Protocol):
    """A process started by exec."""

    @property
    def pid(self) -> int:
        """The pid as seen from the host (of a VM: inside the guest); 0 before it runs."""
        ...

    @property
    def stdio(self) -> Stdio | None:
        """The streams, connected before the process began; None when started detached."""
        ...

    async def wait(self) -> ExitStatus:
        """Wait for the end. May be called any number of times, by several callers."""
        ...

    async def kill(self) -> None:
        """End it with SIGKILL, and what it has started with it. Idempotent."""
        ...

    async def resize(self, *, rows: int, columns: int) -> None:
        """Set the size of the process's terminal. A process without one ignores it."""
        ...


class Task(Protocol):
    """The running side of a container, from ``Runtime.create`` until ``delete``."""

    @property
    def id(self) -> ContainerId: ...

    @property
    def pid(self) -> int:
        """Host pid of the container's first process, or of QEMU."""
        ...

    async def start(self) -> None:
        """Begin the user's program. Once only. Raises StartFailed (127 not found, 126 not executable)."""
        ...

    async def attach(self) -> Stdio:
        """Connect to the first process's streams; before ``start``, nothing of the output is missed."""
        ...

    async def wait(self) -> ExitStatus:
        """Wait for the end. Any number of callers, any number of times. Raises TaskLost when the task
        vanished without leaving a status (host rebooted, supervisor killed)."""
        ...

    async def watch_oom(self, tell: Callable[[], Awaitable[None]]) -> None:
        """Call ``tell`` whenever a process in it is killed for want of memory, until cancelled.

        Returns at once when this is heard of only with the end, in its ``ExitStatus``. Raises OSError.
        """
        ...

    async def kill(self, signal: int) -> None:
        """Send a signal to the first process. Raises WrongState when it has ended."""
        ...

    async def pause(self) -> None:
        """Freeze everything in it. Idempotent."""
        ...

    async def resume(self) -> None:
        """Undo ``pause``. Idempotent."""
        ...

    async def exec(self, exec_id: ExecId, spec: ProcessSpec, *, attached: bool) -> Process:
        """Start another process inside. Raises StartFailed."""
        ...

    async def resize(self, *, rows: int, columns: int) -> None:
        """Set the size of the first process's terminal. A task without one ignores it."""
        ...

    async def update(self, resources: Resources) -> None:
        """Replace all limits of the running task. Raises FeatureMissing for one it cannot change."""
        ...

    async def edit_file(self, target: str, edit: Callable[[bytes], bytes]) -> None:
        """Change one of the running task's ``TaskSpec.files``, as it is now. One that the task was not given
        stays as it is. Raises FeatureMissing."""
        ...

    async def stats(self) -> TaskStats:
        """Read the present use. Raises WrongState when it has ended."""
        ...

    async def processes(self, ps_args: str) -> ProcessTable:
        """List the processes inside as ``ps ps_args`` would. Raises WrongState, InvalidParameter."""
        ...

    async def delete(self, *, keep_writes: bool = True) -> None:
        """Free all that belongs to the task: processes (killed if need be), cgroup, runtime state, files in
        the exec root. The log stays. Idempotent.

        :param keep_writes: False when the root file system and the log will be removed: a task that would
            have to write them out first need not.
        """
        ...


class FilesKind(enum.IntEnum):
    """What a task is asked to do with its files; numbers of docs/reference/agent-protocol.md, FILES.

    LOAD and STORE are of one of ``TaskSpec.files``, as it is: the task's own, for ``edit_file``.
    """

    STAT = 1
    READ = 2
    EXPORT = 3
    UPPER = 4
    WRITE = 5
    LOAD = 6
    STORE = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesRequest:
    """One operation on the files of a task that keeps them where the host cannot reach.

    :ivar path: absolute and clean; a slash at its end follows a link there.
    :ivar name: what READ calls it in the archive.
    :ivar freeze: let nothing run in the container meanwhile.
    :ivar content: what STORE writes.
    :ivar strict, user, read_only_root, volumes: of WRITE, as ``proa.storage.files.trees.WriteRules``.
    """

    kind: FilesKind
    path: str = "/"
    name: str = ""
    freeze: bool = False
    strict: bool = False
    user: str = ""
    read_only_root: bool = False
    volumes: Sequence[tuple[str, bool]] = ()
    content: bytes = b""


@runtime_checkable
class FileTask(Task, Protocol):
    """A task of a hull whose file systems only its own kernel mounts (``RootfsKind.BLOCK``).

    It serves files from ``Runtime.create`` on, whether its program has begun or not.
    """

    async def open_files(self, request: FilesRequest) -> Process:
        """Begin an operation: a process whose output is what was found and a tar (READ, EXPORT, UPPER), and
        whose input is one (WRITE). It ends with 0, 1 invalid, 2 missing or 3 failed, and says why on its
        standard error. Nothing it says is to be believed. Raises StartFailed, WrongState."""
        ...

    async def sync(self) -> None:
        """Have everything written to the disks."""
        ...


@runtime_checkable
class NetworkTask(Task, Protocol):
    """A task of a hull whose interfaces are on taps (``NetworkKind.TAP``): it must be told of each change.

    Of one in a network namespace the network package makes and removes the interfaces itself.
    """

    def check_change(self, *, joins: bool) -> None:
        """Raise FeatureMissing, WrongState when its networks cannot change now; ``joins``: by one more."""
        ...

    async def set_networks(self, interfaces: Sequence[Interface]) -> None:
        """Make its interfaces these, whose taps exist: plug in what is new, take out what is gone, lead the
        default routes by the others as they say. On failure nothing is plugged in.

        Raises FeatureMissing, WrongState, Internal, Unavailable, OutcomeUnknown.
        """
        ...


class Runtime(Protocol):
    """One way to run containers. Registered by name in the daemon."""

    @property
    def name(self) -> str:
        """The name in HostConfig.Runtime: crun, runc, vm."""
        ...

    @property
    def features(self) -> Features: ...

    async def create(self, spec: TaskSpec) -> Task:
        """Make a task whose streams can be attached and whose program has not begun.

        On failure nothing is left behind. Raises StartFailed, InvalidParameter, Unavailable.
        """
        ...

    async def find(self, container_id: ContainerId) -> Task | None:
        """Find a task made by an earlier daemon, running or ended; None when there is no trace of one."""
        ...

    async def forget(self, container_id: ContainerId) -> None:
        """Clean up what a task that cannot be found may have left (half-made create). Idempotent."""
        ...


@runtime_checkable
class ForkingRuntime(Runtime, Protocol):
    """A runtime whose running tasks can be copied, with their memory and their processes."""

    async def fork(self, source: Task, spec: TaskSpec) -> Task:
        """Make a running copy of a running task, which goes on; it stands still for a moment only.

        :param spec: of the copy: the source's but for id, names, networks, log and root file system. What is
            written to the latter is copied from the source's.

        On failure nothing is left behind and the source runs. Raises WrongState, StartFailed,
        InvalidParameter, Unavailable, Internal.
        """
        ...


@runtime_checkable
class SavingRuntime(ForkingRuntime, Protocol):
    """A runtime whose running tasks can be saved, to be gone on with later."""

    async def save(self, source: Task, directory: Path) -> Mapping[str, Any]:
        """Save a running task in SAVED_PARTS of an empty directory; it goes on.

        Return what ``load`` is to be told, as JSON. Any: its content is the runtime's matter.
        Raises as ``ForkingRuntime.fork``.
        """
        ...

    async def load(self, directory: Path, machine: Mapping[str, Any], spec: TaskSpec) -> Task:
        """Make a running task that goes on from what was saved; the directory stays as it is.

        :param spec: as of ``ForkingRuntime.fork``.

        Raises InvalidParameter for what was saved on a host that this one is too different from.
        """
        ...


SAVED_PARTS = ("state", "pages", "mem", "disk")
"""The files that a saved task consists of. ``mem`` may be one that others share; all may have holes."""

# SPDX-License-Identifier: Apache-2.0
"""Starts conmon, the supervisor of one container or of one exec, and understands what it tells.

conmon holds the streams, writes the log, serves the attach socket and keeps the exit status in a file; it
outlives the engine. Its parent gets the outcome of the start as lines of JSON on a pipe: the pid, or what the
runtime printed when it failed. What the process then does is watched in ``task`` and ``exec``.

    <directory>/            made by the caller, one for each conmon
        attach              socket of the streams (stdio)
        ctl, winsz          FIFOs that take terminal sizes (stdio)
        pidfile             pid of the container's first process, or of the exec'd one
        exit/<cid>          exit status in decimal; its mtime is the time of the end
        conmon.log          conmon's own complaints
        oom                 there once the kernel has killed for want of memory

Source: conmon(8); containers/conmon, src/conmon.c (the _OCI_*PIPE variables).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import msgspec

from proa.host import process
from proa.model.errors import Internal

START_TIMEOUT_S = 120.0  # runc on a machine that swaps; a hang beyond that is a fault
_MESSAGE_MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One conmon to start.

    :ivar log_path: None keeps no log.
    :ivar keep_stdin: stdin stays open when a client leaves.
    :ivar exec_spec: the process specification when this is an exec.
    """

    conmon: Path
    runtime: Path
    runtime_args: Sequence[str]
    container_id: str
    name: str
    directory: Path
    log_path: Path | None
    log_max_bytes: int = 0
    tty: bool = False
    open_stdin: bool = False
    keep_stdin: bool = False
    exec_spec: Path | None = None
    exec_attach: bool = False

    @property
    def exit_file(self) -> Path:
        return self.directory / "exit" / self.container_id

    @property
    def pid_file(self) -> Path:
        return self.directory / "pidfile"


class RuntimeFailed(Internal):
    """The runtime under conmon failed.

    :ivar output: what it printed.
    """

    def __init__(self, output: str) -> None:
        self.output = output
        super().__init__(output or "the runtime failed without a message")


class _Report(msgspec.Struct, frozen=True):
    """A line on the sync or attach pipe. ``data`` is a pid, or negative on failure."""

    data: int = 0
    pid: int = 0
    message: str = ""


def arguments(plan: Plan) -> list[str]:
    """Return the command line. Pure."""
    argv = [
        str(plan.conmon),
        *("--api-version", "1"),
        "--sync",  # our own child from the first moment, reaped here: one fork and one pid file less
        *("-c", plan.container_id),
        *("-u", plan.name),
        *("-n", plan.name),
        *("-r", str(plan.runtime)),
    ]
    for argument in plan.runtime_args:
        argv += ["--runtime-arg", argument]
    argv += [
        *("-b", str(plan.directory)),
        *("-p", str(plan.pid_file)),
        *("--exit-dir", str(plan.exit_file.parent)),
        "--full-attach",  # the socket lies in the directory, whatever the length of its path
        "--no-sync-log",  # an fsync at the end of each container costs tens of milliseconds
        *("--log-level", "error"),
        *("-l", "none" if plan.log_path is None else f"k8s-file:{plan.log_path}"),
    ]
    if plan.log_max_bytes:
        argv += ["--log-size-max", str(plan.log_max_bytes)]
    if plan.tty:
        argv.append("-t")
    if plan.open_stdin:
        argv.append("-i")
    if plan.keep_stdin:
        argv.append("--leave-stdin-open")
    if plan.exec_spec is not None:
        argv += ["-e", "--exec-process-spec", str(plan.exec_spec)]
    if plan.exec_attach:
        argv.append("--exec-attach")
    return argv


class Launch:
    """A conmon that is being started. Use as an async context manager; leave it before the process ends.

    Left by an exception (cancellation too), conmon and with it the runtime's create are killed.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._files = contextlib.ExitStack()
        self._conmon: process.Spawned | None = None
        self._sync = _Reader()
        self._attach = _Reader()
        self._go = -1

    async def __aenter__(self) -> Launch:
        try:
            self._spawn()
        except BaseException:
            self._files.close()
            raise
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        self._files.close()
        if kind is not None and self._conmon is not None and self._conmon.status is None:
            kill_children(self._conmon.pid)
            await self._conmon.stop(grace_s=0)

    @property
    def conmon(self) -> process.Spawned:
        """The running conmon: from now on the caller's to wait for."""
        assert self._conmon is not None
        return self._conmon

    async def wait_attachable(self) -> None:
        """For an exec with ``exec_attach``: wait until its socket takes clients. It starts with ``begin``."""
        await self._report(self._attach)

    def begin(self) -> None:
        """Let an exec with ``exec_attach`` start its process."""
        os.write(self._go, b"x")

    async def wait_started(self) -> int:
        """Wait until the runtime has done its work; return the pid of the process.

        :raises RuntimeFailed: it could not.
        """
        report = await self._report(self._sync)
        number = report.pid or report.data
        if number <= 0:
            raise RuntimeFailed(report.message.strip() or self._complaints())
        return number

    def _spawn(self) -> None:
        plan = self.plan
        (plan.directory / "exit").mkdir(exist_ok=True)
        with contextlib.ExitStack() as passed:
            env = {**process.BASE_ENV, "_OCI_SYNCPIPE": str(self._sync.open(self._files, passed))}
            if plan.exec_attach:
                env["_OCI_ATTACHPIPE"] = str(self._attach.open(self._files, passed))
                gate, self._go = os.pipe2(os.O_CLOEXEC)
                passed.callback(os.close, gate)
                self._files.callback(os.close, self._go)
                env["_OCI_STARTPIPE"] = str(gate)
                os.write(self._go, b"x")  # the first byte lets conmon begin, the second its process
            log = os.open(plan.directory / "conmon.log", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            passed.callback(os.close, log)
            self._conmon = process.spawn_now(
                arguments(plan),
                env=env,
                cwd=plan.directory,  # where conmon leaves its oom file
                stderr=log,
                pass_fds=[int(value) for name, value in env.items() if name.startswith("_OCI_")],
                start_new_session=True,
            )

    async def _report(self, reader: _Reader) -> _Report:
        with anyio.move_on_after(START_TIMEOUT_S):
            line = await reader.line()
            if not line:
                raise RuntimeFailed(self._complaints())
            try:
                return msgspec.json.decode(line, type=_Report)
            except msgspec.DecodeError as error:
                raise Internal(f"conmon reported something unknown: {line!r}") from error
        raise Internal(f"conmon did not report within {START_TIMEOUT_S:g} s")

    def _complaints(self) -> str:
        with contextlib.suppress(OSError):
            return (self.plan.directory / "conmon.log").read_text(errors="replace")[-2000:].strip()
        return ""


def kill_children(pid: int) -> None:
    """Kill what a conmon has started, its runtime and the runtime's own children, without conmon itself.

    The container's first process need not be in its cgroup yet, and the runtime is never.
    """
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            kill_children(int(child))
            os.kill(int(child), signal.SIGKILL)


class _Reader:
    """Our end of a pipe on which conmon reports, one line at a time."""

    def __init__(self) -> None:
        self._fd = -1
        self._pending = bytearray()

    def open(self, ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> int:
        """Make the pipe; return conmon's end, which closes with ``theirs``."""
        self._fd, write = os.pipe2(os.O_CLOEXEC)
        ours.callback(os.close, self._fd)
        theirs.callback(os.close, write)
        os.set_blocking(self._fd, False)
        return write

    async def line(self) -> bytes:
        """The next line; b"" when conmon ended without one."""
        while b"\n" not in self._pending:
            await anyio.wait_readable(self._fd)
            data = os.read(self._fd, 16384)
            if not data or len(self._pending) > _MESSAGE_MAX_BYTES:
                return b""
            self._pending += data
        line, _, rest = bytes(self._pending).partition(b"\n")
        self._pending = bytearray(rest)
        return line

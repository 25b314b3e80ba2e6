# SPDX-License-Identifier: Apache-2.0
"""One process started inside a running container, with a conmon of its own.

Unlike a container it is not found again by a later engine: it goes on, its client has lost it.

Source: OCI runtime command line, exec; Engine API, ExecStart.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio
import msgspec
from anyio.abc import TaskGroup

from proa.host.process import Spawned
from proa.host.watch import Handle, open_process
from proa.model.task import ExitStatus
from proa.runtime.oci import conmon, failures
from proa.runtime.oci.stdio import OciStdio, Streams
from proa.runtime.oci.terminal import resize

SPEC = "process.json"
STATUS_UNKNOWN = 137  # the container was killed around it: what a shell says of SIGKILL


class OciProcess:
    """Made by ``start_process``."""

    def __init__(
        self,
        plan: conmon.Plan,
        started: conmon.Launch,
        pid: int,
        *,
        streams: Streams,
        client: OciStdio | None,
    ) -> None:
        self._plan = plan
        self._conmon = started.conmon
        self._pid = pid
        self._streams = streams
        self._stdio = client
        self._ended = anyio.Event()
        self._status: ExitStatus | None = None

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def stdio(self) -> OciStdio | None:
        return self._stdio

    async def wait(self) -> ExitStatus:
        """Wait for the end, and for the last of its output."""
        await self._ended.wait()
        assert self._status is not None
        return self._status

    async def kill(self) -> None:
        """Kill it and its descendants; conmon stays, to tell of the end."""
        if not self._ended.is_set():
            conmon.kill_children(self._conmon.pid)

    async def resize(self, *, rows: int, columns: int) -> None:
        """Set the size of its terminal, if it has one."""
        if self._plan.tty and not self._ended.is_set():
            resize(self._conmon.pid, self._plan.directory, rows=rows, columns=columns)

    async def watch(self) -> None:
        """Wait for conmon, keep the status, remove the directory. Run once, by the owner's task group."""
        first = open_process(self._pid)
        await wait_drained(first, self._conmon, self._streams)
        await self._streams.close()
        if first is not None:
            first.close()
        self._status = read_exit(self._plan.exit_file) or ExitStatus(
            code=STATUS_UNKNOWN, finished_at_ns=time.time_ns()
        )
        self._ended.set()
        # In a thread: whoever waits for the end need not wait for this.
        await anyio.to_thread.run_sync(partial(shutil.rmtree, self._plan.directory, ignore_errors=True))


async def start_process(
    plan: conmon.Plan,
    entry: dict[str, object],
    *,
    program: str,
    tasks: TaskGroup,
    ended: Callable[[OciProcess], None],
) -> OciProcess:
    """Start the process; its streams are connected before it begins when the plan says so.

    :param entry: the process as the runtime takes it.
    :param ended: called when it has ended.
    :raises StartFailed: it could not be started; nothing is left.
    """
    with contextlib.ExitStack() as undo:
        plan.directory.mkdir(parents=True, mode=0o700)
        undo.callback(shutil.rmtree, plan.directory, ignore_errors=True)
        (plan.directory / SPEC).write_bytes(msgspec.json.encode(entry))
        streams = Streams(plan.directory, open_stdin=plan.open_stdin, stdin_once=True, tasks=tasks)
        client = None
        try:
            async with conmon.Launch(plan) as launch:
                if plan.exec_attach:
                    await launch.wait_attachable()
                    client = await streams.attach()
                    undo.callback(client.close_now)
                    launch.begin()
                pid = await launch.wait_started()
                process = OciProcess(plan, launch, pid, streams=streams, client=client)
        except conmon.RuntimeFailed as error:
            raise failures.translate(error.output, program=program, action="exec") from error
        undo.pop_all()

    async def watch() -> None:
        await process.watch()
        ended(process)

    tasks.start_soon(watch)
    return process


async def wait_drained(first: Handle | None, supervisor: Handle | Spawned, streams: Streams) -> None:
    """Wait for the end of a conmon; from the end of its process on, no slow client holds it up.

    :param first: the process it supervises, None when it has ended already.
    """

    async def drain() -> None:
        if first is not None:
            await first.wait()
        streams.drain()

    async with anyio.create_task_group() as group:
        group.start_soon(drain)
        await supervisor.wait()
        group.cancel_scope.cancel()


def read_exit(path: Path) -> ExitStatus | None:
    """Read an exit file of conmon; None when there is none, or no number in it."""
    try:
        code = int(path.read_text().strip())
        return ExitStatus(code=code, finished_at_ns=path.stat().st_mtime_ns)
    except (OSError, ValueError):
        return None

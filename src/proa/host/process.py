# SPDX-License-Identifier: Apache-2.0
"""The one place where proa starts programs of the host.

A program gets an argument list (never a shell), an environment built from nothing, /dev/null where no other
file is given, and only the file descriptors that are passed. The child goes from vfork to exec in C
(``subprocess`` without ``preexec_fn``): no Python runs in between. Its end is noticed by a pidfd, so neither
SIGCHLD handlers nor a waiting thread are involved, and whoever starts a program here reaps it here.

What a program means by its output is the caller's business, except that a failure becomes ToolFailed with
the command and the end of its stderr.

Source: pidfd_open(2), waitid(2).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.abc

from proa.model.errors import ToolFailed

STDERR_TAIL_BYTES = 16 * 1024  # enough for any tool's last words; a chatty one cannot fill our memory
STDOUT_MAX_BYTES = 64 * 1024 * 1024  # a larger answer is a fault of the tool or of our question
TERM_GRACE_S = 2.0  # between SIGTERM and SIGKILL when the caller gave up; helpers have little to tidy
BASE_ENV: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",  # messages are parsed: never translated
    "HOME": "/root",
}

Argument = str | Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """How a program ended. ``status`` is its exit status, or minus the signal that killed it; ``stderr`` its
    end only, at most STDERR_TAIL_BYTES."""

    stdout: bytes
    stderr: str
    status: int


async def run(
    argv: Sequence[Argument],
    *,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 60,
    pass_fds: Collection[int] = (),
    check: bool = True,
) -> Completed:
    """Run a program to its end and return what it wrote.

    Descendants that keep the output open do not hold it up: when the program itself has ended, what has
    been written is taken and the rest is lost. On cancellation the program gets SIGTERM, then SIGKILL, and
    is reaped before this returns.

    :param env: the whole environment; None means BASE_ENV.
    :raises ToolFailed: it could not be started (status 127 or 126), ran longer than ``timeout_s``, wrote
        more than STDOUT_MAX_BYTES, or (with ``check``) ended with another status than 0.
    """
    with contextlib.ExitStack() as files:
        stdin_fd = None if stdin is None else _file_of(stdin, files)
        with contextlib.ExitStack() as writing:
            out_read, out_write = _pipe(files, writing)
            err_read, err_write = _pipe(files, writing)
            child = spawn_now(
                argv, env=env, cwd=cwd, stdin=stdin_fd, stdout=out_write, stderr=err_write, pass_fds=pass_fds
            )
        out = _Collector(out_read, STDOUT_MAX_BYTES, keep_end=False)
        err = _Collector(err_read, STDERR_TAIL_BYTES, keep_end=True)
        try:
            with anyio.move_on_after(timeout_s) as deadline:
                await _collect(child, out, err)
        finally:
            if child.status is None:
                await child.stop()
    status = child.status
    assert status is not None
    text = err.data.decode(errors="replace")
    if deadline.cancelled_caught:
        raise ToolFailed(child.argv, status, f"{text}\nit did not end within {timeout_s:g} s".lstrip())
    if out.overflowed:
        raise ToolFailed(child.argv, status, f"it wrote more than {STDOUT_MAX_BYTES} bytes")
    if check and status != 0:
        raise ToolFailed(child.argv, status, text)
    return Completed(stdout=bytes(out.data), stderr=text, status=status)


async def spawn(
    argv: Sequence[Argument],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    pass_fds: Collection[int] = (),
    start_new_session: bool = False,
) -> Spawned:
    """Start a program and return at once; the caller owns it and must ``wait`` for it (or ``stop`` it).

    The descriptors stay open here: close those that only the program needs. None means /dev/null. A program
    with ``start_new_session`` outlives a signal sent to the daemon's terminal.

    :raises ToolFailed: it could not be started (status 127: no such file; 126: not executable).
    """
    return spawn_now(
        argv,
        env=env,
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
        start_new_session=start_new_session,
    )


def spawn_now(
    argv: Sequence[Argument],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    pass_fds: Collection[int] = (),
    start_new_session: bool = False,
) -> Spawned:
    """``spawn`` for callers that are not coroutines (starting takes about a millisecond)."""
    words = [os.fspath(word) for word in argv]
    try:
        popen = subprocess.Popen(
            words,
            env=dict(BASE_ENV if env is None else env),
            cwd=cwd,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.DEVNULL if stdout is None else stdout,
            stderr=subprocess.DEVNULL if stderr is None else stderr,
            pass_fds=tuple(pass_fds),
            close_fds=True,
            start_new_session=start_new_session,
        )
    except FileNotFoundError as error:
        raise ToolFailed(words, 127, str(error)) from error
    except OSError as error:
        raise ToolFailed(words, 126, str(error)) from error
    return Spawned(words, popen)


class Spawned:
    """A child of the daemon, from its start until it is reaped by ``wait`` or ``stop``.

    :ivar status: exit status, minus the signal, or None while it has not been reaped.
    """

    def __init__(self, argv: Sequence[str], popen: subprocess.Popen[bytes]) -> None:
        self.argv = tuple(argv)
        self._popen = popen
        # The child cannot have been reaped yet, so the number still is its own.
        self._pidfd = os.pidfd_open(popen.pid)
        self.status: int | None = None

    @property
    def pid(self) -> int:
        return self._popen.pid

    async def wait(self) -> int:
        """Wait for the end, reap it, return the status. May be called by several, and again later."""
        while self.status is None:
            # Its own descriptor for each caller: the event loop takes one reader per number.
            fd = os.dup(self._pidfd)
            try:
                await anyio.wait_readable(fd)
            finally:
                os.close(fd)
            self._reap()
        return self.status

    def send_signal(self, number: int) -> None:
        """Send a signal. Does nothing when the program has ended."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def stop(self, *, grace_s: float = TERM_GRACE_S) -> int:
        """End it: SIGTERM, after ``grace_s`` SIGKILL; reaped on return, even when cancelled meanwhile."""
        with anyio.CancelScope(shield=True):
            self.send_signal(signal.SIGTERM)
            with anyio.move_on_after(grace_s):
                await self.wait()
            self.send_signal(signal.SIGKILL)
            await self.wait()
        return await self.wait()

    def _reap(self) -> None:
        if self.status is None:
            status = self._popen.poll()
            if status is not None:
                self.status = status
                os.close(self._pidfd)


class _Collector:
    """What came out of one pipe: its beginning up to a limit, or its end."""

    def __init__(self, fd: int, limit: int, *, keep_end: bool) -> None:
        self.fd = fd
        self.data = bytearray()
        self.overflowed = False
        self._limit = limit
        self._keep_end = keep_end

    def take(self) -> bool:
        """Take what is there now; False at the end of the stream."""
        while True:
            try:
                chunk = os.read(self.fd, 65536)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            self.data += chunk
            if len(self.data) > self._limit:
                self.overflowed = True
                del self.data[: -self._limit if self._keep_end else None]

    async def follow(self) -> None:
        while self.take():
            await anyio.wait_readable(self.fd)


async def _collect(child: Spawned, out: _Collector, err: _Collector) -> None:
    async with anyio.create_task_group() as readers:
        readers.start_soon(out.follow)
        readers.start_soon(err.follow)
        await child.wait()
        readers.cancel_scope.cancel()
    out.take()
    err.take()


def _pipe(reading: contextlib.ExitStack, writing: contextlib.ExitStack) -> tuple[int, int]:
    read, write = os.pipe2(os.O_CLOEXEC)
    reading.callback(os.close, read)
    writing.callback(os.close, write)
    os.set_blocking(read, False)
    return read, write


def _file_of(data: bytes, files: contextlib.ExitStack) -> int:
    """An anonymous file instead of a pipe: nothing has to be fed while the program runs."""
    fd = os.memfd_create("stdin")
    files.callback(os.close, fd)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd

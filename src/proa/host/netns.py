# SPDX-License-Identifier: Apache-2.0
"""Network namespaces made ahead of time, and given a name in the file system when they are taken.

A namespace is two descriptors: the namespace itself, and an rtnetlink socket that was opened inside it, by
which everything in it is configured from here. Both come from a small child program (``netns_server``): this
process never changes its namespace. A pooled namespace has no mount and no name, so nothing is left of the
pool when the daemon dies; ``bind`` gives a taken one the path by which a container's runtime joins it.

Source: network_namespaces(7), unix(7) SCM_RIGHTS.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections import deque
from pathlib import Path

import anyio
import anyio.abc

from proa.host import netns_server
from proa.host.mount import ensure_unmounted, is_mount_point, mount
from proa.host.process import Spawned, spawn
from proa.host.rtnetlink import RouteSocket

POOL_SIZE = (
    4  # a burst of that many starts pays nothing; an unused namespace holds about 100 KB of kernel memory
)
REFILL_DELAY_S = 0.1  # longer than a container's start: the pool is filled when the processors are free again
_ANSWER_TIMEOUT_S = (
    10.0  # the program answers within a millisecond; the kernel may be busy with old namespaces
)
_MS_BIND = 4096
_ANSWER_BYTES = 8192

_log = logging.getLogger(__name__)


class Namespace:
    """A network namespace that is kept alive by its descriptors, and by its mount once it has one.

    :ivar fd: the namespace.
    :ivar route: configures it.
    """

    def __init__(self, fd: int, route: RouteSocket) -> None:
        self.fd = fd
        self.route = route

    def bind(self, path: Path) -> None:
        """Mount it at ``path``, which is made and must not exist.

        :raises OSError: nothing is left behind.
        """
        path.touch(mode=0o444, exist_ok=False)
        try:
            mount(f"/proc/self/fd/{self.fd}", path, "", flags=_MS_BIND)
        except OSError:
            path.unlink()
            raise

    def close(self) -> None:
        """Let go of it. Unless it is mounted or in use, it ends, and what is in it with it. Idempotent."""
        self.route.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def is_bound(path: Path) -> bool:
    """Tell whether a namespace is mounted at ``path``."""
    return is_mount_point(path)


def unbind(path: Path) -> None:
    """Take away the mount and its path. The kernel drops an unused namespace later. Idempotent."""
    ensure_unmounted(path)
    path.unlink(missing_ok=True)


class NamespacePool:
    """Namespaces ready to be taken. ``tasks`` runs what fills it up; ``close`` before the group ends."""

    def __init__(self, tasks: anyio.abc.TaskGroup, *, size: int = POOL_SIZE) -> None:
        self._tasks = tasks
        self._size = size
        self._ready: deque[Namespace] = deque()
        self._wanted = anyio.Event()
        self._scope = anyio.CancelScope()
        self._server: Spawned | None = None
        self._control: socket.socket | None = None
        self._lock = (
            anyio.Lock()
        )  # one request at a time; taken last, nothing is awaited under it but the answer
        self._closed = False

    def open(self) -> None:
        """Begin to fill the pool."""
        self._wanted.set()
        self._tasks.start_soon(self._fill, name="namespace pool")

    async def take(self) -> Namespace:
        """Return a fresh namespace with loopback up; waits (a millisecond) only when the pool is empty.

        :raises OSError: the kernel refuses, or the program cannot be run.
        """
        namespace = self._ready.popleft() if self._ready else await self._request(b"new")
        self._wanted.set()
        return namespace

    async def make_of(self, user_namespace: Path) -> Namespace:
        """Return a fresh namespace as ``take`` does, owned by the user namespace mounted there.

        :raises OSError: as ``take``.
        """
        return await self._request(b"new-of " + os.fsencode(user_namespace))

    async def enter(self, path: Path) -> Namespace:
        """Return descriptors of the namespace mounted at ``path``.

        :raises OSError: there is none.
        """
        return await self._request(b"enter " + os.fsencode(path))

    async def allow_ipv6(self, namespace: Namespace) -> None:
        """Let interfaces that are made in the namespace from now on have IPv6.

        :raises OSError: the kernel refuses.
        """
        path = f"/proc/{os.getpid()}/fd/{namespace.fd}"
        (await self._request(b"ipv6 " + path.encode())).close()

    async def close(self) -> None:
        """Drop the pool and end the program. Idempotent."""
        self._closed = True
        self._scope.cancel()
        with anyio.CancelScope(shield=True):
            # Not while somebody waits for an answer, which comes within a millisecond.
            async with self._lock:
                await self._stop_server()
        while self._ready:
            self._ready.popleft().close()

    async def _fill(self) -> None:
        with self._scope:
            while True:
                await self._wanted.wait()
                self._wanted = anyio.Event()
                while len(self._ready) < self._size:
                    try:
                        self._ready.append(await self._request(b"new"))
                    except OSError as error:
                        if self._closed:
                            return
                        # The next ``take`` asks again and reports.
                        _log.warning("cannot prepare network namespaces: %s", error)
                        break
                # A burst of starts wakes this loop once.
                await anyio.sleep(REFILL_DELAY_S)

    async def _request(self, request: bytes) -> Namespace:
        found: Namespace | None = None
        # Shielded: an answer left in the socket would be taken for that to the next question.
        with anyio.CancelScope(shield=True):
            async with self._lock:
                try:
                    found = await self._ask(request)
                except (ConnectionError, EOFError, TimeoutError):
                    _log.warning("the namespace program has ended; starting it again")
                    await self._stop_server()
                    found = await self._ask(request)
        assert found is not None
        return found

    async def _ask(self, request: bytes) -> Namespace:
        if self._closed:
            raise OSError("the namespace pool is closed")
        control = self._control or await self._start_server()
        control.send(request)
        with anyio.fail_after(_ANSWER_TIMEOUT_S):
            await anyio.wait_readable(control)
        answer, descriptors, _flags, _address = socket.recv_fds(control, _ANSWER_BYTES, 2)
        if not answer:
            raise EOFError
        word, _, rest = answer.partition(b" ")
        if word != b"ok" or len(descriptors) != 2:
            for descriptor in descriptors:
                os.close(descriptor)
            number, _, message = rest.decode(errors="replace").partition(" ")
            raise OSError(int(number or 0), f"network namespace: {message}")
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        return Namespace(descriptors[0], RouteSocket(opened=socket.socket(fileno=descriptors[1])))

    async def _start_server(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            number = theirs.fileno()
            program = [sys.executable, "-I", "-S", netns_server.__file__, str(number)]
            self._server = await spawn(program, pass_fds=[number], start_new_session=True)
            undo.pop_all()
        ours.setblocking(False)
        self._control = ours
        return ours

    async def _stop_server(self) -> None:
        control, self._control = self._control, None
        server, self._server = self._server, None
        if control is not None:
            control.close()  # it ends by itself when its socket does
        if server is not None:
            await server.stop()

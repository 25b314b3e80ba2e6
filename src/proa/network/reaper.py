# SPDX-License-Identifier: Apache-2.0
"""The slow part of taking containers off networks, done after the answer has been given.

Deleting a device synchronously takes the kernel 10 to 30 ms, reading the table of connections may take
longer: both happen in a worker thread. What is still to be done when the daemon dies, ``Networks.cleanup`` of
the next one does.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Collection, Iterable
from ipaddress import IPv4Address

import anyio
import anyio.abc
import anyio.to_thread

from proa.host.conntrack import forget_udp
from proa.host.rtnetlink import RouteSocket, delete_link

DELAY_S = 0.2  # a namespace that ends takes its veths along within this time, and they need no work here

_log = logging.getLogger(__name__)


class Reaper:
    """Deletes devices and forgets connections. ``tasks`` runs it."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self._tasks = tasks
        self._devices: set[str] = set()
        self._targets: set[tuple[IPv4Address, int]] = set()
        self._wanted = anyio.Event()
        self._scope = anyio.CancelScope()

    def open(self) -> None:
        self._tasks.start_soon(self._work, name="network reaper")

    def bury(self, devices: Iterable[str]) -> None:
        """Delete those of the devices that still exist in a moment."""
        self._devices.update(devices)
        self._wake()

    def forget_udp(self, targets: Collection[tuple[IPv4Address, int]]) -> None:
        """Forget UDP connections to these addresses and ports, so that they follow the rules of now."""
        self._targets.update(targets)
        self._wake()

    async def close(self) -> None:
        """Finish what is to be done, and end. Idempotent."""
        self._scope.cancel()
        with anyio.CancelScope(shield=True):
            await self._reap()

    def _wake(self) -> None:
        if self._devices or self._targets:
            self._wanted.set()

    async def _work(self) -> None:
        with self._scope:
            while True:
                await self._wanted.wait()
                self._wanted = anyio.Event()
                if self._targets:
                    await self._reap_connections()
                if self._devices:
                    await anyio.sleep(DELAY_S)
                    await self._reap()

    async def _reap(self) -> None:
        await self._reap_connections()
        devices, self._devices = self._devices, set()
        if devices:
            await anyio.to_thread.run_sync(delete_devices, devices)

    async def _reap_connections(self) -> None:
        targets, self._targets = self._targets, set()
        if not targets:
            return
        try:
            await anyio.to_thread.run_sync(forget_udp, frozenset(targets))
        except OSError as error:
            _log.warning("cannot forget UDP connections: %s", error)


def delete_devices(names: Collection[str]) -> None:
    """Delete the devices that exist. Blocks; failures are logged."""
    route = RouteSocket()
    try:
        for name in names:
            try:
                link = route.find_link(name)
                if link is not None:
                    route.transact(delete_link(link.index))
            except OSError as error:
                if error.errno != errno.ENODEV:
                    _log.warning("cannot delete device %s: %s", name, error)
    finally:
        route.close()

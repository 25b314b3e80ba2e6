# SPDX-License-Identifier: Apache-2.0
"""The slow part of taking containers off networks, done after the answer has been given.

When a namespace ends, or a device is deleted, the kernel holds the lock that every other change of devices
needs, and waits for RCU grace periods under it: tens of milliseconds, seconds on a busy host. So the dead are
buried together, when no container has started for a moment, in a worker thread. Until then their address may
have been given to another container: the bridge knows only the new one's port by it (``fix_port_of_mac``).
What is left when the daemon dies, ``Networks.cleanup`` of the next one removes.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Collection, Sequence

import anyio
import anyio.abc
import anyio.to_thread

from proa.host.conntrack import forget_udp
from proa.host.netns import unbind
from proa.host.rtnetlink import RouteSocket, delete_link
from proa.model.network import IpAddress
from proa.model.task import NetworkKind
from proa.network.files import addresses_of
from proa.network.store import Record

QUIET_S = 0.15  # after a start: longer than a container takes to start
PATIENCE_S = 1.0  # starts that follow one another without end do not keep the dead longer
CROWD = 32  # nor do so many dead wait
DELAY_S = 0.25  # a namespace that ends takes its veths along in this time; what is left then is deleted

_log = logging.getLogger(__name__)


class Reaper:
    """Buries attachments and forgets connections. ``tasks`` runs it."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self._tasks = tasks
        self._dead: list[Record] = []
        self._first_died_at = 0.0
        self._last_start_at = 0.0
        self._targets: set[tuple[IpAddress, int]] = set()
        self._wanted = anyio.Event()
        self._scope = anyio.CancelScope()
        self._burying = anyio.Lock()

    def open(self) -> None:
        self._tasks.start_soon(self._work, name="network reaper")

    def hold_back(self) -> None:
        """A container starts: leave the kernel to it."""
        self._last_start_at = time.monotonic()

    def bury(self, record: Record) -> None:
        """Remove the record's namespace and devices, those that exist, in a while."""
        if not self._dead:
            self._first_died_at = time.monotonic()
        self._dead.append(record)
        self._wanted.set()

    async def make_way(self, record: Record) -> None:
        """Bury at once if one of the dead has an address of this record under another MAC: both would answer
        to it."""
        wanted = {
            (found.network_id, address): found.mac
            for found in record.endpoints
            for address in addresses_of([found])
        }
        for dead in self._dead:
            for found in dead.endpoints:
                macs = {wanted.get((found.network_id, one), found.mac) for one in addresses_of([found])}
                if macs != {found.mac}:
                    await self._bury_all(delay_s=0)
                    return

    def forget_udp(self, targets: Collection[tuple[IpAddress, int]]) -> None:
        """Forget UDP connections to these addresses and ports, so that they follow the rules of now."""
        self._targets.update(targets)
        self._wanted.set()

    async def close(self) -> None:
        """Finish what is to be done, and end. Idempotent."""
        self._scope.cancel()
        with anyio.CancelScope(shield=True):
            await self._forget_connections()
            await self._bury_all(delay_s=0)

    async def _work(self) -> None:
        with self._scope:
            while True:
                await self._wanted.wait()
                self._wanted = anyio.Event()
                await self._forget_connections()
                while (wait_s := self._wait_s()) > 0:
                    await anyio.sleep(min(wait_s, QUIET_S))
                    await self._forget_connections()
                await self._bury_all(delay_s=DELAY_S)

    def _wait_s(self) -> float:
        """How long the dead still have to wait."""
        if not self._dead or len(self._dead) >= CROWD:
            return 0.0
        now = time.monotonic()
        return min(self._last_start_at + QUIET_S, self._first_died_at + PATIENCE_S) - now

    async def _bury_all(self, *, delay_s: float) -> None:
        async with self._burying:
            dead, self._dead = self._dead, []
            if not dead:
                return
            # Shielded: what has been taken off the list must be buried.
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_bury, dead)
                if delay_s:
                    await anyio.sleep(delay_s)
                veths = [device for record in dead for device in record.devices]
                await anyio.to_thread.run_sync(delete_devices, veths)

    async def _forget_connections(self) -> None:
        targets, self._targets = self._targets, set()
        if not targets:
            return
        try:
            await anyio.to_thread.run_sync(forget_udp, frozenset(targets))
        except OSError as error:
            _log.warning("cannot forget UDP connections: %s", error)


def _bury(dead: Sequence[Record]) -> None:
    for record in dead:
        if record.namespace is not None:
            try:
                unbind(record.namespace)
            except OSError as error:
                _log.warning("cannot remove a network namespace: %s", error)
    taps = [record for record in dead if record.kind is NetworkKind.TAP]
    delete_devices([device for record in taps for device in record.devices])


def delete_devices(names: Collection[str]) -> None:
    """Delete the devices that exist. Blocks; failures are logged."""
    if not names:
        return
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

# SPDX-License-Identifier: Apache-2.0
"""Sends logs on to where their log driver says, behind the workload's back.

The file of a log is written as with every driver; what is in it is shipped from there. So a server that is
slow or away holds nobody up and costs no memory, ``docker logs`` works, and what is written while no daemon
runs is shipped by the next. How far it got is kept beside the log:

    shipped       the number of the file, and the offset in it, up to which all lines have been handed over

It is written once a second: lines are sent again after a daemon was killed, and none is left out. What the
bound on the files drops before a server that was away has got it is counted in the daemon's own log.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import anyio
import msgspec
from anyio.abc import TaskGroup

from proa.engine.container import Container
from proa.engine.log_files import list_files
from proa.engine.log_options import log_source, ships
from proa.engine.log_tail import End, end_of, grow, unpack
from proa.engine.logs import STREAMS, parse_time_ns
from proa.engine.registry import Registry
from proa.engine.unit import Units
from proa.model.errors import EngineError, StartFailed
from proa.model.ids import ContainerId
from proa.runtime.seam import StreamId
from proa.shipping import drivers
from proa.shipping.lines import Destination, Line

log = logging.getLogger(__name__)

CURSOR = "shipped"
SAVE_INTERVAL_S = 1.0
RETRY_FIRST_S, RETRY_LAST_S = 0.1, 30.0
REMOVED_PATIENCE_S = 10.0  # how long the lines of a container that is gone wait for their server


class Cursor(msgspec.Struct, frozen=True):
    """Up to where all lines have been handed over."""

    number: int = 0
    offset: int = 0


class LogShipping:
    """Ships the logs of all containers whose driver asks for it. ``tasks`` owns one task for each."""

    def __init__(self, *, registry: Registry, units: Units, tasks: TaskGroup) -> None:
        self._registry = registry
        self._units = units
        self._tasks = tasks
        self._shipped: set[ContainerId] = set()

    async def check(self, container: Container) -> None:
        """See that the destination can be reached, before a start. Raises StartFailed, as Docker does."""
        if not ships(container):
            return
        destination = _connect(container)
        try:
            await destination.open()
        except OSError as error:
            raise StartFailed(f"failed to initialize logging driver: {error}") from error
        finally:
            await destination.aclose()

    def watch(self, container: Container) -> None:
        """Ship what the container has written and will write, until it has ended. Idempotent."""
        if ships(container) and container.id not in self._shipped:
            self._shipped.add(container.id)
            # Opened here and now: a container with --rm may be gone in a moment, and its log with it.
            first = self._prepare(container)
            self._tasks.start_soon(self._run, container, first, name=f"ship the log of {container.id[:12]}")

    def resume(self) -> None:
        """Go on with everything that an earlier daemon has not shipped."""
        for container in self._registry:
            if Path(container.log_path).exists():
                self.watch(container)

    def _prepare(self, container: Container) -> _Shipment:
        return _Shipment(container, self._registry, end_of(self._registry, self._units[container.id]))

    async def _run(self, container: Container, shipment: _Shipment) -> None:
        try:
            await shipment.run()
            while not shipment.has_ended():  # it was started again while the last lines went out
                shipment = self._prepare(container)
                await shipment.run()
        except (EngineError, OSError) as error:
            log.warning("shipping the log of container %s: %s", container.id, error)
        finally:
            self._shipped.discard(container.id)


@dataclass(slots=True)
class _Lines:
    """Cuts pieces of a file into lines, and knows how far whole lines reach."""

    offset: int
    rest: bytes = b""

    def feed(self, data: bytes) -> Iterator[Line]:
        found = (self.rest + data).split(b"\n")
        self.offset += len(self.rest) + len(data)
        self.rest = found.pop()
        self.offset -= len(self.rest)
        for line in found:
            parts = line.split(b" ", 3)
            if len(parts) == 4 and parts[1] in STREAMS:  # else it was cut by a crash of the writer
                yield Line(
                    at_ns=parse_time_ns(parts[0]),
                    text=parts[3],
                    is_error=STREAMS[parts[1]] is StreamId.STDERR,
                    is_partial=parts[2][:1] == b"P",
                )


class _Shipment:
    """One container's log on its way."""

    def __init__(self, container: Container, registry: Registry, end: End) -> None:
        self._id = container.id
        self._path = Path(container.log_path)
        self._cursor_path = self._path.with_name(CURSOR)
        self._cursor = _load(self._cursor_path)
        self._registry = registry
        self._end = end
        self._destination = _connect(container)
        self._is_open = False
        self._saved_at = 0.0
        self._file = self._open()

    def has_ended(self) -> bool:
        """Tell whether the container has, so that no more will come."""
        return self._end.has_come()

    async def run(self) -> None:
        """Ship until the container has ended and all is shipped. Raises OSError when it is given up."""
        try:
            if self._file is not None:
                with self._file:
                    await self._ship(self._file.fileno())
        finally:
            self._save()
            with anyio.CancelScope(shield=True):
                await self._destination.aclose()

    async def _ship(self, fd: int) -> None:
        number = self._cursor.number
        lines = _Lines(self._cursor.offset)
        async with contextlib.aclosing(
            grow(self._path, fd, number=number, done=number, end=self._end)
        ) as read:
            async for piece in read:
                if piece.fd != fd:
                    fd, lines = piece.fd, _Lines(0)
                    number = piece.number or _next_number(self._path)
                    self._tell_of_lost_files(number)
                batch = list(lines.feed(piece.data))
                if batch:
                    await self._deliver(batch)
                self._cursor = Cursor(number, lines.offset)
                if time.monotonic() - self._saved_at > SAVE_INTERVAL_S:
                    self._save()

    def _open(self) -> BinaryIO | None:
        """Open the file where the reading is to go on, at the place; None when nothing was written."""
        number = 0
        for part in list_files(self._path):
            number = part.number or number + 1
            if number < self._cursor.number:
                continue
            try:
                file: BinaryIO = part.path.open("rb")
            except FileNotFoundError:  # dropped just now
                continue
            if part.is_compressed:
                with file:
                    file = unpack(file)
            offset = self._cursor.offset if number == self._cursor.number else 0
            if self._cursor.number:
                self._tell_of_lost_files(number)
            file.seek(offset)
            self._cursor = Cursor(number, offset)
            return file
        return None

    async def _deliver(self, batch: Sequence[Line]) -> None:
        """Hand the lines over, however often it takes."""
        delay, failures, gone_since = RETRY_FIRST_S, 0, 0.0
        while True:
            try:
                if not self._is_open:
                    await self._destination.open()
                    self._is_open = True
                await self._destination.send(batch)
            except OSError as error:
                self._is_open = False
                failures += 1
                if failures == 1:
                    log.warning("shipping the log of container %s: %s; trying on", self._id, error)
                if self._registry.find(self._id) is None:
                    gone_since = gone_since or time.monotonic()
                    if time.monotonic() - gone_since > REMOVED_PATIENCE_S:
                        raise OSError(
                            f"the container is gone, and {len(batch)} lines or more with it"
                        ) from error
                await anyio.sleep(delay)
                delay = min(delay * 2, RETRY_LAST_S)
            else:
                if failures:
                    log.info(
                        "shipping the log of container %s: goes on after %d failures", self._id, failures
                    )
                return

    def _tell_of_lost_files(self, number: int) -> None:
        lost = number - self._cursor.number - 1
        if lost > 0:
            log.warning("%d files of the log of container %s were dropped unshipped", lost, self._id)

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        new = self._cursor_path.with_suffix(".new")
        with contextlib.suppress(FileNotFoundError):  # the container has been removed
            new.write_bytes(msgspec.json.encode(self._cursor))
            new.replace(self._cursor_path)


def _connect(container: Container) -> Destination:
    config = container.host_config.log_config
    return drivers.connect(config.type, config.config or {}, log_source(container))


def _load(path: Path) -> Cursor:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Cursor)
    except (OSError, msgspec.MsgspecError):
        return Cursor()


def _next_number(path: Path) -> int:
    """Return the number that the present file is about to get."""
    parts = list_files(path)
    return max((part.number for part in parts), default=0) + (not parts or not parts[-1].number)

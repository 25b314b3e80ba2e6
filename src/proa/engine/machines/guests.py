# SPDX-License-Identifier: Apache-2.0
"""Files of machines that run, by their guests' agents.

Source: docs/reference/vms.yaml, VmArchive, VmArchiveInfo, VmPutArchive.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from proa.engine.machines.lives import Lives
from proa.machines import guest_files
from proa.machines.agent import Agent, conversation
from proa.machines.guest_files import GuestPath
from proa.machines.store import MachineStore


class GuestFiles:
    """The use cases of ``proa vm cp``. All raise NoSuchMachine, WrongState, and Conflict without an agent."""

    def __init__(self, store: MachineStore, lives: Lives) -> None:
        self._store = store
        self._lives = lives

    async def stat(self, ref: str, path: str) -> GuestPath:
        """Tell what is at a path. Raises NotFound, InvalidParameter."""
        async with self._speaking(ref) as agent:
            return await guest_files.look(agent, path)

    @asynccontextmanager
    async def open_archive(
        self, ref: str, path: str
    ) -> AsyncIterator[tuple[GuestPath, AsyncIterator[bytes]]]:
        """Give a file or directory as tar, and what it is. Raises NotFound, InvalidParameter."""
        async with self._speaking(ref) as agent:
            found = await guest_files.look(agent, path)
            async with guest_files.packed(agent, path) as pieces:
                yield found, pieces

    async def put_archive(
        self, ref: str, path: str, stream: AsyncIterator[bytes], *, keep_owner: bool
    ) -> None:
        """Unpack a tar in a directory of the guest. Raises NotFound, InvalidParameter, Unavailable."""
        async with self._speaking(ref) as agent:
            await guest_files.unpack(agent, path, stream, keep_owner=keep_owner)

    @asynccontextmanager
    async def _speaking(self, ref: str) -> AsyncIterator[Agent]:
        running = self._lives.running(self._store.get(ref))
        with running.speaking() as socket:
            async with conversation(socket) as agent:
                yield agent

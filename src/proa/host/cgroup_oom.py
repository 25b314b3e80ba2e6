# SPDX-License-Identifier: Apache-2.0
"""Hears of it when a cgroup has run out of memory, the same in v1 and v2.

Source: kernel Documentation/admin-guide/cgroup-v1/memory.rst, OOM Control; cgroup-v2.rst, memory.events;
eventfd(2); inotify(7).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
from inotify_simple import INotify, flags

from proa.host.cgroup_usage import parse_keyed

Tell = Callable[[], Awaitable[None]]


async def watch(directory: Path, tell: Tell, *, is_v2: bool) -> None:
    """Call ``tell`` whenever the kernel has to kill there, until cancelled.

    :param directory: the cgroup in the tree of the memory controller.
    :raises OSError: the kernel does not tell.
    """
    await (_watch_v2 if is_v2 else _watch_v1)(directory, tell)


async def _watch_v2(directory: Path, tell: Tell) -> None:
    path = directory / "memory.events"
    with INotify() as changes:
        changes.add_watch(str(path), flags.MODIFY)
        told = _kills(path)
        while True:
            await anyio.wait_readable(changes.fileno())
            changes.read(timeout=0)
            now = _kills(path)
            if now > told:
                await tell()
            told = now


async def _watch_v1(directory: Path, tell: Tell) -> None:
    with contextlib.ExitStack() as stack:
        notes = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        stack.callback(os.close, notes)
        with (directory / "memory.oom_control").open("rb") as control:
            (directory / "cgroup.event_control").write_text(f"{notes} {control.fileno()}")
        while True:
            await anyio.wait_readable(notes)
            os.eventfd_read(notes)
            if not directory.is_dir():  # its removal is told in the same way
                return
            await tell()


def _kills(path: Path) -> int:
    try:
        return parse_keyed(path.read_text()).get("oom_kill", 0)
    except OSError:  # the cgroup has gone
        return 0

# SPDX-License-Identifier: Apache-2.0
"""Makes user namespaces that nobody lives in: for the ids of mounts, and to be joined.

A process cannot leave its user namespace, so a child makes it: ``unshare`` becomes ``cat``, and the byte that
comes back says that it has. The maps are written from here, where every id may be given away. The namespace
then lives by its descriptor, by mounts of it and by those that have joined.

Source: user_namespaces(7), unshare(1).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio

from proa.host.mount import mount
from proa.host.process import spawn_now

_START_TIMEOUT_S = 30.0  # a millisecond, but on a machine that swaps
_MS_BIND = 4096


@dataclass(frozen=True, slots=True)
class Extent:
    """``count`` ids from ``inside`` on are, seen from the host, those from ``uid`` and ``gid`` on."""

    inside: int
    uid: int
    gid: int
    count: int


async def open_user_namespace(extents: Sequence[Extent]) -> int:
    """Make a user namespace with this map; return a descriptor of it.

    :raises OSError: the kernel has none, or allows no more (/proc/sys/user/max_user_namespaces).
    """
    with contextlib.ExitStack() as ours:
        with contextlib.ExitStack() as theirs:
            its_input, question = _pipe(theirs, ours)
            answer, its_output = _pipe(ours, theirs)
            child = spawn_now(["unshare", "--user", "cat"], stdin=its_input, stdout=its_output)
        try:
            with contextlib.suppress(BrokenPipeError):  # unshare has failed
                os.write(question, b"x")
            with anyio.fail_after(_START_TIMEOUT_S):
                await anyio.wait_readable(answer)
            if not os.read(answer, 1):
                raise OSError("cannot make a user namespace: see /proc/sys/user/max_user_namespaces")
            process = Path("/proc", str(child.pid))
            for name, lines in (
                ("uid_map", [f"{one.inside} {one.uid} {one.count}" for one in extents]),
                ("gid_map", [f"{one.inside} {one.gid} {one.count}" for one in extents]),
            ):
                (process / name).write_text("\n".join(lines) + "\n")
            return os.open(process / "ns" / "user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            with anyio.CancelScope(shield=True):
                await child.stop(grace_s=0)


def bind_namespace(descriptor: int, path: Path) -> None:
    """Mount a namespace at ``path``, which is made where it is missing: it lives as long as the mount."""
    path.touch(mode=0o400)
    mount(f"/proc/self/fd/{descriptor}", path, "", flags=_MS_BIND)


def _pipe(reader: contextlib.ExitStack, writer: contextlib.ExitStack) -> tuple[int, int]:
    """Return the reading and the writing end of a pipe; each closes with its stack."""
    read, write = os.pipe2(os.O_CLOEXEC)
    reader.callback(os.close, read)
    writer.callback(os.close, write)
    return read, write

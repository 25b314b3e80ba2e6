# SPDX-License-Identifier: Apache-2.0
"""A runtime's program in a sealed file in memory, so that it need not protect itself anew each time.

A process in a container could overwrite the runtime on the host through /proc/<pid>/exe (CVE-2019-5736).
crun and runc therefore make a read-only copy or mount of themselves and execute that, unless they already
run from a sealed memfd. Measured with crun 1.8 on an idle machine: 2.5 ms of processor time for a create,
and a synchronous unmount (a wait of 8 to 25 ms) that falls away.

Source: memfd_create(2), fcntl(2) F_ADD_SEALS; crun, src/libcrun/cloned_binary.c.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from proa.host import process
from proa.model.errors import ToolFailed

_MFD_EXEC = 0x10  # Linux 6.3; before that every memfd could be executed
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_PROBE_TIMEOUT_S = 10.0


class SealedBinary:
    """Made once for a runtime. ``path`` is good for as long as this process lives."""

    def __init__(self, binary: Path) -> None:
        self._binary = binary
        self._sealed: Path | None = None
        self._fd = -1

    async def path(self) -> Path:
        """Return what to execute: the sealed copy, or the program itself where a copy will not run."""
        if self._sealed is None:
            self._sealed = await self._seal()
        return self._sealed

    def close(self) -> None:
        """Let go of the copy. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    async def _seal(self) -> Path:
        try:
            self._fd = _copy(self._binary)
            sealed = Path(f"/proc/{os.getpid()}/fd/{self._fd}")
            # A policy of the host (vm.memfd_noexec, a security module) may forbid it.
            await process.run([sealed, "--version"], timeout_s=_PROBE_TIMEOUT_S)
        except (OSError, ToolFailed):
            self.close()
            return self._binary
        return sealed


def _copy(binary: Path) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create(binary.name, flags | _MFD_EXEC)
    except OSError:
        fd = os.memfd_create(binary.name, flags)
    try:
        with binary.open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            copied = 0
            while copied < size:
                sent = os.sendfile(fd, source.fileno(), copied, size - copied)
                if sent == 0:
                    raise OSError(f"{binary} became shorter while it was copied")
                copied += sent
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd

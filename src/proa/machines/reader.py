# SPDX-License-Identifier: Apache-2.0
"""Reads the disks of a machine that is off, by the kernel of another machine that is made for it.

The host's kernel never sees them. The other machine has our initial ram disk (``machine/read``), no network,
the disks, and one more on which it leaves a tar of the root file system after a page with the outcome; it is
another user's QEMU, and what it leaves is a stranger's.

Source: decision 0045.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread

from proa.machines import image_boot, running
from proa.machines.console import BoundedLog
from proa.machines.home import MachineHome
from proa.machines.plan import MIB, Drive, Plan, Sockets
from proa.model.errors import InvalidParameter, StartFailed, Unavailable
from proa.model.ids import new_id
from proa.model.machine import MachineId
from proa.runtime.vm import qemu
from proa.runtime.vm.accel import TCG, Accelerator

ARCHIVE = "archive"  # the disk's name, by which machine/read finds it
PAGE = 4096
MEMORY_BYTES = 512 * MIB  # a million hard links take a third of it
MAX_ARCHIVE_BYTES = 1 << 40  # the file has holes: only what is written takes room
TIME_S = 4 * 3600.0  # for a terabyte on an idle host, under emulation
PIECE_BYTES = 1 << 20
_DONE = re.compile(rb"done (\d{1,15})\n")
_FAILED = re.compile(rb"failed ([^\n\0]{0,1000})\n")


class DiskReader:
    """Makes such machines. ``lib`` is where setup/ has put the guest kernel."""

    def __init__(self, *, lib: Path, data_root: Path, exec_root: Path) -> None:
        self._kernel = lib / "kernel" / "vmlinuz"
        self._initrds = (lib / "machine.cpio", lib / "machine-reader.cpio")
        self._data_root = data_root
        self._exec_root = exec_root

    @asynccontextmanager
    async def open_tar(
        self, disks: Sequence[Drive], *, program: Path, architecture: str, accelerator: Accelerator | None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give a tar of the root file system that is on one of the disks, for the span of the block.

        :raises InvalidParameter: none of them has one that can be read; the message says why.
        :raises StartFailed, Unavailable: the other machine does not run, or came to nothing.
        """
        for path in (self._kernel, *self._initrds):
            if not path.exists():
                raise Unavailable(f"{path} is not there: run make setup")
        home = MachineHome(self._data_root, self._exec_root, MachineId(new_id()))
        home.create()
        try:
            await anyio.to_thread.run_sync(self._write_files, home)
            identifier = MachineId(home.data.name)

            def plan(sockets: Sockets) -> Plan:
                drives = [*disks, Drive(name=ARCHIVE, path=home.data / ARCHIVE, raw=True)]
                return Plan(
                    qemu=program,
                    identifier=identifier,
                    name=f"proa-reader-{identifier[:12]}",
                    architecture=architecture,
                    accelerator=accelerator.name if accelerator else TCG,
                    cpus=1,
                    memory_bytes=MEMORY_BYTES,
                    sockets=sockets,
                    kernel=self._kernel,
                    initrd=home.data / "initrd",
                    kernel_arguments=f"console={image_boot.CONSOLES[architecture]} quiet init=read",
                    drives=drives,
                    headless=True,
                    run_as=qemu.rights_of(
                        identifier, home.run, accelerator.qemu_version if accelerator else ""
                    ),
                )

            await _run(await running.launch(identifier, home, plan))
            with (home.data / ARCHIVE).open("rb") as file:
                size = _outcome(file.read(PAGE), home)
                yield _pieces(file.fileno(), size)
        finally:
            await anyio.to_thread.run_sync(home.remove)

    def _write_files(self, home: MachineHome) -> None:
        with (home.data / "initrd").open("xb") as file:
            for path in self._initrds:
                file.write(path.read_bytes())
        with (home.data / ARCHIVE).open("xb") as file:
            os.fchmod(file.fileno(), 0o600)
            os.ftruncate(file.fileno(), MAX_ARCHIVE_BYTES)


async def _run(machine: running.RunningMachine) -> None:
    try:
        with anyio.fail_after(TIME_S):
            await machine.supervise()
    except BaseException as error:
        with anyio.CancelScope(shield=True):
            machine.kill()
            await machine.wait()
        if isinstance(error, TimeoutError):
            raise StartFailed("reading the disks took too long") from error
        raise
    finally:
        with anyio.CancelScope(shield=True):
            await machine.release()


def _outcome(page: bytes, home: MachineHome) -> int:
    """Return the length of the tar. Raises InvalidParameter, StartFailed."""
    if match := _DONE.match(page):
        return min(int(match[1]), MAX_ARCHIVE_BYTES - PAGE)
    if match := _FAILED.match(page):
        reason = "".join(c if c.isprintable() else "\ufffd" for c in match[1].decode(errors="replace"))
        raise InvalidParameter(f"the disks cannot be read: {reason}")
    printed = BoundedLog(home.data / "console.log").read()[-300:].decode(errors="replace")
    said = " ".join("".join(c for c in printed if c.isprintable() or c == "\n").split())
    raise StartFailed(f"the virtual machine that reads the disks ended early: {said}")


async def _pieces(fd: int, size: int) -> AsyncIterator[bytes]:
    at = 0
    while at < size:
        length = min(PIECE_BYTES, size - at)
        piece = await anyio.to_thread.run_sync(os.pread, fd, length, PAGE + at)
        if not piece:
            return
        at += len(piece)
        yield piece

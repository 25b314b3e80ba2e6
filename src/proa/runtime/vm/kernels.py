# SPDX-License-Identifier: Apache-2.0
"""Another kernel for one container, more words on its command line, and the modules of proa's own.

A template of another kernel lies in a store of its own, below that of all others:

    templates/kernel-<digest>/<key>/…      as ``proa.runtime.vm.template`` says

Source: kernel Documentation/admin-guide/kernel-parameters.txt; Engine API, HostConfig.Annotations.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio

from proa.model.errors import InvalidParameter, Unavailable
from proa.model.task import Mount, MountKind, TaskSpec
from proa.runtime.seam import KERNEL_ANNOTATION, KERNEL_ARGUMENTS_ANNOTATION
from proa.runtime.vm.boot import Guest
from proa.runtime.vm.template import KERNEL, Templates

KEPT = 4  # stores of other kernels; the least used goes first
MAX_ARGUMENTS = 1024  # characters: the kernel's command line has room for 2048
NEEDED = "virtio_mmio, virtio_console, virtio_blk, virtio_net, erofs, overlay, ext4 and fuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a container wants booted. ``kernel`` None is the daemon's."""

    kernel: Path | None = None
    arguments: str = ""


def parse_choice(annotations: Mapping[str, str]) -> Choice:
    """Read the annotations. Raises InvalidParameter for a file that is not there, or words that are none."""
    path, arguments = annotations.get(KERNEL_ANNOTATION, ""), annotations.get(KERNEL_ARGUMENTS_ANNOTATION, "")
    if path and not Path(path).is_absolute():
        raise InvalidParameter(f"invalid kernel {path!r}: an absolute path on the daemon's host is needed")
    if path and not Path(path).is_file():
        raise InvalidParameter(f"invalid kernel {path!r}: there is no such file on the daemon's host")
    if len(arguments) > MAX_ARGUMENTS:
        raise InvalidParameter(f"invalid kernel arguments: longer than {MAX_ARGUMENTS} characters")
    if not arguments.isascii() or not all(letter.isprintable() for letter in arguments):
        raise InvalidParameter(f"invalid kernel arguments {arguments!r}: printable ASCII is needed")
    return Choice(kernel=Path(path) if path else None, arguments=" ".join(arguments.split()))


class Kernels:
    """The stores of templates of other kernels.

    :param guest: what is booted for those that do not choose.
    """

    def __init__(self, root: Path, guest: Guest, qemu_version: str) -> None:
        self._root = root
        self._guest = guest
        self._qemu_version = qemu_version
        self._stores: dict[Choice, Templates] = {}
        self._cleaning = anyio.Lock()
        self._is_clean = False

    @asynccontextmanager
    async def open_store(self, choice: Choice) -> AsyncIterator[Templates]:
        """Give the templates of a kernel for the length of the block.

        Raises Unavailable when it does not boot in there; the message says what a kernel needs.
        """
        kernel = choice.kernel or self._guest.kernel
        directory = self._directory(choice)
        async with self._cleaning:
            await self._remove_unfinished()
        if choice not in self._stores:
            guest = replace(self._guest, kernel=kernel, more_arguments=choice.arguments)
            self._stores[choice] = Templates(directory, guest, self._qemu_version)
            self._prune(directory)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.utime(directory)  # its last use, for ``_prune``
        try:
            yield self._stores[choice]
        except Unavailable as error:
            said = f' with "{choice.arguments}"' if choice.arguments else ""
            raise Unavailable(
                f"the kernel {kernel}{said} could not be booted as a guest: {error.message}\n"
                f"A kernel other than proa's own needs {NEEDED} built in: the modules at hand are not its."
            ) from error

    def _directory(self, choice: Choice) -> Path:
        digest = hashlib.sha256(f"{choice.kernel}\0{choice.arguments}".encode()).hexdigest()[:16]
        return self._root / f"{KERNEL}{digest}"

    async def _remove_unfinished(self) -> None:
        """Remove what a killed daemon had begun, in all stores: some may never be asked for again."""
        if not self._is_clean:
            for directory in self._root.glob(f"{KERNEL}*"):
                await Templates(directory, self._guest, self._qemu_version).remove_unfinished()
            self._is_clean = True

    def _prune(self, taken: Path) -> None:
        stores = sorted(self._root.glob(f"{KERNEL}*"), key=lambda path: path.stat().st_mtime, reverse=True)
        for directory in [store for store in stores if store != taken][KEPT - 1 :]:
            self._stores = {
                choice: store
                for choice, store in self._stores.items()
                if self._directory(choice) != directory
            }
            shutil.rmtree(directory, ignore_errors=True)


def with_modules(spec: TaskSpec, lib: Path) -> TaskSpec:
    """Return the task with the modules of proa's own kernel at /lib/modules, unless it mounts there itself.

    For modprobe in a privileged container; read-only. Where they are not installed the task stays as it is.
    """
    version_file = lib / "kernel" / "version"
    if not version_file.is_file():
        return spec
    version = version_file.read_text().strip()
    modules, target = lib / "kernel" / "tree" / version, f"/lib/modules/{version}"
    if not modules.is_dir() or any(Path(target).is_relative_to(mount.target) for mount in spec.mounts):
        return spec
    mount = Mount(kind=MountKind.BIND, source=modules, target=target, read_only=True)
    return replace(spec, mounts=(*spec.mounts, mount))

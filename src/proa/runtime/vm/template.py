# SPDX-License-Identifier: Apache-2.0
"""The store of memory templates: guests that have booted to an idle agent, saved once for each shape.

    templates/<key>/mem        memory of the guest, mapped copy-on-write by every clone
                    state      state of the devices (some tens of KB)
                    meta.json  what it was made of; written last
    templates/.making-…/       one being made; never used, removed by the next daemon

``key`` is a digest of all a clone depends on: kernel, initramfs, QEMU and its words, processor, shape. A
template is written to a directory of its own, synchronised, and renamed when complete, so one half made is
never found.
Several callers that need the same one wait for a single maker. What no longer fits (another kernel,
another QEMU) is removed when the next template is made; running clones keep their memory file open.

Source: DESIGN.md, section 4; QEMU docs/devel/migration.rst (x-ignore-shared).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from proa.host import sparse
from proa.model.errors import Internal, Unavailable
from proa.runtime.vm import boot
from proa.runtime.vm.boot import Guest
from proa.runtime.vm.machine import Shape
from proa.runtime.vm.monitor import IGNORE_SHARED, open_monitor
from proa.runtime.vm.qemu import HostProcess

KEPT = 8  # templates of different shapes that stay; the least used goes first
SETTLE_S = 0.3  # for what the guest's kernel does after its agent is ready (late initcalls, freed memory)
SAVE_TIMEOUT_S = 30.0  # a few MB at most are written
IMAGE = "image-"  # templates with an image's root file system: proa.runtime.vm.image_template
KERNEL = "kernel-"  # stores of other kernels: proa.runtime.vm.kernels
_MAKING = ".making-"


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """Content of meta.json."""

    ingredients: str
    memory_bytes: int
    vcpus: int
    nics: int
    state_sha256: str
    memory_changed_ns: int = 0
    kernel_release: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A complete template.

    :ivar memory_changed_ns: see ``is_as_made``.
    """

    memory_file: Path
    state_file: Path
    memory_changed_ns: int = 0

    def is_as_made(self) -> bool:
        """Whether nobody has changed the memory since it was saved.

        QEMU 7.2 opens the file to read and write it, also for a clone that only maps it privately: one that
        was broken out of could write into the memory of all later clones. The file is not its own, so it
        cannot set back the time of the change (utimensat(2)). A digest would take longer than the start.
        """
        try:
            return self.memory_file.stat().st_mtime_ns == self.memory_changed_ns
        except OSError:
            return False


class Templates:
    """The store in ``root``.

    :param guest: what is booted; fixed for the life of the store.
    """

    def __init__(self, root: Path, guest: Guest, qemu_version: str) -> None:
        self._root = root
        self._guest = guest
        self._qemu_version = qemu_version
        self._making: dict[Shape, anyio.Lock] = {}
        self._checked: dict[Shape, Template] = {}
        self._cleaning = anyio.Lock()
        self._is_clean = False
        self._ingredients = ""
        self._ingredients_of: tuple[object, ...] = ()

    async def ensure(self, shape: Shape, blank: Path) -> Template:
        """Return the template of a shape, made now when there is none. Seconds the first time.

        :param blank: the disk that is mounted in it, of which new containers have copies.
        :raises Unavailable: the guest does not boot.
        """
        ingredients = await self._get_ingredients(blank)
        found = self._find(shape, ingredients)
        if found is not None:
            return found
        async with self._making.setdefault(shape, anyio.Lock()):
            return self._find(shape, ingredients) or await self._make(shape, ingredients, blank)

    @contextlib.asynccontextmanager
    async def single_use(self, shape: Shape, blank: Path) -> AsyncIterator[Template]:
        """Boot a guest now, whatever is stored, and give its template; removed when the block ends.

        A clone made in the block keeps the memory file open. What a start costs without a stored template.

        :raises Unavailable: the guest does not boot.
        """
        directory = await self.make_directory()
        try:
            await self._boot_and_save(shape, directory, blank)
            yield Template(memory_file=directory / "mem", state_file=directory / "state")
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    async def remove_unfinished(self) -> None:
        """Remove what a killed daemon had begun, its QEMU included. Only before the first one is made."""
        for directory in self._root.glob(f"{_MAKING}*"):
            with contextlib.suppress(OSError, ValueError):
                pid, start_time = map(int, (directory / "pid").read_text().split())
                process = HostProcess.find(pid, start_time)
                if process is not None:
                    await process.end()
                    process.close()
            shutil.rmtree(directory, ignore_errors=True)

    # --- finding ---

    def _find(self, shape: Shape, ingredients: str) -> Template | None:
        directory = self._root / key_of(ingredients, shape)
        known = self._checked.get(shape)
        if known is not None and known.memory_file.parent == directory and known.is_as_made():
            return known
        meta = _read_meta(directory)
        if meta is None:
            return None
        template = Template(
            memory_file=directory / "mem",
            state_file=directory / "state",
            memory_changed_ns=meta.memory_changed_ns,
        )
        if not _is_whole(template, meta, shape, ingredients):
            return None
        self._checked[shape] = template
        os.utime(directory)  # its last use, for ``_prune``
        return template

    async def _get_ingredients(self, blank: Path) -> str:
        """Return the digest of everything but the shape; read again only when a file has changed."""
        files = (self._guest.kernel, self._guest.initramfs, self._guest.qemu, blank)
        try:
            stats = [path.stat() for path in files]
        except OSError as error:
            raise Unavailable(f"virtual machines cannot be started: {error}; run make setup") from error
        present = tuple((each.st_ino, each.st_size, each.st_mtime_ns) for each in stats)
        if present != self._ingredients_of:
            digest = await anyio.to_thread.run_sync(_digest_files, (*files[:2], blank))
            parts = (
                boot.recipe(self._guest),
                digest,
                self._qemu_version,
                self._guest.accelerator,
                processor(),
            )
            self._ingredients = hashlib.sha256("\0".join(parts).encode()).hexdigest()
            self._ingredients_of = present
        return self._ingredients

    # --- making ---

    async def _make(self, shape: Shape, ingredients: str, blank: Path) -> Template:
        directory = await self.make_directory()
        try:
            kernel_release = await self._boot_and_save(shape, directory, blank)
            meta = Meta(
                ingredients=ingredients,
                memory_bytes=shape.memory_bytes,
                vcpus=shape.vcpus,
                nics=shape.nics,
                state_sha256=hashlib.sha256((directory / "state").read_bytes()).hexdigest(),
                memory_changed_ns=(directory / "mem").stat().st_mtime_ns,
                kernel_release=kernel_release,
            )
            (directory / "meta.json").write_bytes(msgspec.json.encode(meta))
            await anyio.to_thread.run_sync(synchronise, directory)
            final = self._root / key_of(ingredients, shape)
            shutil.rmtree(final, ignore_errors=True)  # damaged, or it would have been found
            directory.rename(final)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        self._prune(ingredients)
        template = self._find(shape, ingredients)
        if template is None:
            raise Internal(f"the memory template in {final} cannot be read back")
        return template

    async def make_directory(self) -> Path:
        """Make a directory for a template that is being made; its caller renames or removes it."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        async with self._cleaning:
            if not self._is_clean:
                await self.remove_unfinished()
                self._is_clean = True
        directory = self._root / f"{_MAKING}{secrets.token_hex(6)}"
        directory.mkdir(mode=0o700)
        return directory

    async def _boot_and_save(self, shape: Shape, directory: Path, blank: Path) -> str:
        """Boot to an idle agent and save what clones need; return the guest kernel's release."""
        new_disk = directory / "new"  # QEMU must be able to write to it, so it is not the blank itself
        await anyio.to_thread.run_sync(sparse.copy, blank, new_disk)
        async with boot.open_booted(self._guest, shape, directory, new_disk=new_disk) as booted:
            await anyio.sleep(SETTLE_S)
            await save_state(booted.monitor, directory / "state")
        new_disk.unlink()
        remove_traces(directory)
        return booted.kernel_release

    def _prune(self, ingredients: str) -> None:
        """Remove templates that fit no more, and the least used beyond KEPT."""
        fitting: list[Path] = []
        for directory in self._root.iterdir():
            if directory.name.startswith((_MAKING, IMAGE, KERNEL)):
                continue
            meta = _read_meta(directory)
            if meta is not None and meta.ingredients == ingredients:
                fitting.append(directory)
            else:
                shutil.rmtree(directory, ignore_errors=True)
        remove_least_used(fitting)


async def load_state(monitor_socket: Path, state_fd: int) -> None:
    """Let a machine that waits for it go on from a saved state: one round trip.

    :param state_fd: its number in QEMU, which inherited it.
    :raises MonitorError, OutcomeUnknown, Unavailable: QEMU could not, or is gone.
    """
    async with open_monitor(monitor_socket) as monitor:
        await monitor.greet_and_execute(IGNORE_SHARED, ("migrate-incoming", {"uri": f"fd:{state_fd}"}))


async def save_state(monitor_socket: Path, path: Path) -> None:
    """Write the state of the devices to ``path``; the machine stands still from then on.

    Saved running: a clone then goes on by itself, without a word over the monitor.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        async with open_monitor(monitor_socket) as monitor:
            await monitor.greet_and_execute(IGNORE_SHARED)
            await monitor.execute("getfd", {"fdname": "state"}, fd=fd)
            await monitor.execute("migrate", {"uri": "fd:state"})
            with anyio.move_on_after(SAVE_TIMEOUT_S):
                while True:
                    answer = await monitor.execute("query-migrate")
                    if answer["status"] == "completed":
                        return
                    if answer["status"] in ("failed", "cancelled"):
                        raise Internal(f"QEMU could not save the template: {answer.get('error-desc', '')}")
                    await anyio.sleep(0.005)
            raise Unavailable(f"QEMU did not save the template within {SAVE_TIMEOUT_S:g} s")
    finally:
        os.close(fd)


def key_of(ingredients: str, shape: Shape) -> str:
    """Return the directory name of a template: readable shape, then a digest of everything."""
    text = f"{ingredients} {shape.memory_bytes} {shape.vcpus} {shape.nics} {shape.seats}"
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{shape.memory_bytes >> 20}m-{shape.vcpus}c-{shape.nics}n-{digest}"


def _is_whole(template: Template, meta: Meta, shape: Shape, ingredients: str) -> bool:
    try:
        return (
            meta.ingredients == ingredients
            and template.is_as_made()
            and template.memory_file.stat().st_size == shape.memory_bytes
            and hashlib.sha256(template.state_file.read_bytes()).hexdigest() == meta.state_sha256
        )
    except OSError:
        return False


def _read_meta(directory: Path) -> Meta | None:
    try:
        return msgspec.json.decode((directory / "meta.json").read_bytes(), type=Meta)
    except (OSError, msgspec.DecodeError):
        return None


def _digest_files(paths: Sequence[Path]) -> str:
    """Digest what is in the files and where, leaving out holes: a blank disk is nearly nothing but."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(f"{os.fstat(file.fileno()).st_size}\n".encode())
            for start, data in sparse.iter_data(file.fileno()):
                digest.update(f"{start} {len(data)}\n".encode())
                digest.update(data)
    return digest.hexdigest()


def processor() -> str:
    """What the guest has seen of the host's processor: model and features."""
    kept = ("model name", "flags", "Features")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return "\n".join(sorted({line for line in lines if line.partition("\t")[0].rstrip(" :") in kept}))


def remove_least_used(directories: list[Path]) -> None:
    """Remove all but the KEPT templates that were used last."""
    directories.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for directory in directories[KEPT:]:
        shutil.rmtree(directory, ignore_errors=True)


def remove_traces(directory: Path) -> None:
    """Remove what the machine that made a template left beside it."""
    for name in ("control", "monitor", "console", "pid", "qemu.log"):
        (directory / name).unlink(missing_ok=True)
    for path in directory.glob("control-*"):
        path.unlink()


def synchronise(directory: Path) -> None:
    """After a crash of the host a template is whole or not there."""
    for path in (*directory.iterdir(), directory, directory.parent):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

# SPDX-License-Identifier: Apache-2.0
"""From a machine's record to its files and its QEMU: what is copied when it is made, what a start needs.

Owns the directories (``home``); knows nothing of states, names and networks, which are the engine's.
"""

from __future__ import annotations

import contextlib
import platform
import secrets
import shutil
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import anyio.to_thread

from proa.machines import images, running, seed, tpm
from proa.machines.agent import frozen
from proa.machines.archive import files_of
from proa.machines.copying import copy_disks, has_agent
from proa.machines.downloads import Downloads, find_address
from proa.machines.home import MachineHome
from proa.machines.images import SECTOR_BYTES
from proa.machines.plan import BOARDS, Drive, Firmware, Nic, Plan, Sockets
from proa.machines.reader import DiskReader
from proa.machines.running import RunningMachine
from proa.model.errors import InvalidParameter, Unavailable
from proa.model.machine import Machine, MachineConfig, MachineDisk, MachineId
from proa.runtime.vm import qemu
from proa.runtime.vm.accel import TCG, Accelerator

_UEFI = {
    ("x86_64", "uefi"): ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd", "ovmf"),
    ("x86_64", "uefi-secure"): (
        "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.ms.fd",
        "ovmf",
    ),
    ("aarch64", "uefi"): (
        "/usr/share/AAVMF/AAVMF_CODE.fd",
        "/usr/share/AAVMF/AAVMF_VARS.fd",
        "qemu-efi-aarch64",
    ),
}


class Driver:
    """Makes and starts machines. ``accelerator`` None: this host runs none, for the ``missing`` reason."""

    def __init__(
        self,
        data_root: Path,
        exec_root: Path,
        accelerator: Accelerator | None,
        missing: str = "",
        *,
        downloads: Downloads,
    ) -> None:
        self._downloads = downloads
        self._data_root = data_root
        self._exec_root = exec_root
        self._accelerator = accelerator
        self._missing = missing

    def home(self, machine_id: MachineId) -> MachineHome:
        """The machine's directories."""
        return MachineHome(self._data_root, self._exec_root, machine_id)

    def check(self, config: MachineConfig) -> None:
        """Raise InvalidParameter or Unavailable for what this host or no host can run."""
        architecture = architecture_of(config)
        if architecture not in BOARDS:
            raise InvalidParameter(f"unknown architecture {architecture!r}: {', '.join(BOARDS)} are known")
        self._find_qemu(architecture)
        _firmware_files(config)
        if config.tpm:
            if not BOARDS[architecture].tpm:
                raise InvalidParameter(f"{architecture} machines have no TPM")
            tpm.check_installed()

    # --- files ---

    async def prepare(self, machine: Machine) -> None:
        """Make the machine's files. On failure they are gone.

        :raises InvalidParameter, Unavailable, ToolFailed: as ``images`` and ``seed``.
        """
        home = self.home(machine.id)
        config = machine.config
        home.create()
        try:
            if (disc := find_address(config.cdrom)) is not None:
                await self._downloads.get(disc, home.cdrom)
            for name, source in (("kernel", config.kernel), ("initrd", config.initrd)):
                if source:
                    await images.copy_in(Path(source), home.data / name)
            firmware = _firmware_files(config)
            if firmware.image is not None:
                await images.copy_in(firmware.image, home.data / "firmware")
            if firmware.variables is not None:
                await images.copy_in(firmware.variables, home.variables)
            for disk in config.disks or ():
                await self.add_disk(machine.id, disk)
            await self._make_seed(machine)
        except BaseException:
            home.remove()
            raise

    async def copy_disks(self, machine: Machine, folder: Path) -> list[Path]:
        """Copy the disks as they are now into a folder, without snapshots and holes; return the files.

        Of a running machine they are all of one moment, with the guest's file systems at rest when its agent
        answers. Raises InvalidParameter, Internal, Unavailable.
        """
        home = self.home(machine.id)
        sources = {disk.name: home.disk(disk.name) for disk in machine.config.disks or ()}
        targets = {name: folder / path.name for name, path in sources.items()}
        if machine.state.is_alive:
            sizes = {name: images.header_of(path).size for name, path in sources.items()}
            rest = partial(frozen, home.run / "agent") if await has_agent(home.monitor) else nullcontext
            wanted = {name: (sizes[name], target) for name, target in targets.items()}
            await copy_disks(home.monitor, wanted, frozen=rest)
        else:
            for name, path in sources.items():
                await images.import_disk(path, targets[name], size=0, user=qemu.user_of(machine.id))
        return list(targets.values())

    async def copy_others(self, machine: Machine, folder: Path) -> list[Path]:
        """Copy the files that are neither disk nor seed into a folder; return the copies."""
        targets = []
        for path in self._other_files(machine):
            targets.append(folder / path.name)
            await images.copy_in(path, targets[-1])
        return targets

    def _other_files(self, machine: Machine) -> list[Path]:
        """Return the files of a machine that are neither disk nor seed."""
        data = self.home(machine.id).data
        names = ("kernel", "initrd", "firmware", "variables.fd")
        return [path for name in names if (path := data / name).exists()]

    def copy_tpm(self, machine: Machine, folder: Path) -> list[Path]:
        """Copy what the TPM keeps, if anything, into a folder; return the copies. Raises InvalidParameter."""
        target = folder / tpm.STATE
        has_state = machine.config.tpm and tpm.save_state(self.home(machine.id).tpm, target)
        return [target] if has_state else []

    async def fork(self, source: Machine, machine: Machine) -> None:
        """Make the files of a new machine from those of another.

        Raises as ``copy_disks``; then nothing is left.
        """
        home = self.home(machine.id)
        home.create()
        try:
            await self.copy_others(source, home.data)
            if (disc := self.home(source.id).cdrom).exists():
                home.cdrom.hardlink_to(disc)
            for path in await self.copy_disks(source, home.data):
                images.check_own(path)
            await self._make_seed(machine)
        except BaseException:
            home.remove()
            raise

    async def adopt(self, machine: Machine, files: Mapping[str, Path]) -> None:
        """Make the files of a new machine from those of an archive, which are a stranger's and are used up.

        :raises InvalidParameter: one is missing or cannot be; nothing is left.
        """
        home, config = self.home(machine.id), machine.config
        firmware = _firmware_files(config)
        wanted = files_of(config, has_variables=firmware.variables is not None)
        if missing := set(wanted) - set(files):
            raise InvalidParameter(f"the archive is not whole: {min(missing)!r} is missing")
        home.create()
        try:
            for name in wanted:
                target = home.data / name
                if name.endswith(".qcow2"):
                    user = qemu.user_of(machine.id)
                    await images.import_disk(files[name], target, size=0, user=user, take=True)
                else:
                    files[name].replace(target)
            if firmware.variables is not None:
                expected, found = firmware.variables.stat().st_size, home.variables.stat().st_size
                if expected != found:
                    raise InvalidParameter(
                        f"the firmware's variables have {found} bytes, this host's firmware wants {expected}"
                    )
            if config.tpm and tpm.STATE in files:
                tpm.load_state(machine.id, files[tpm.STATE], home.tpm)
            await self._make_seed(machine)
        except BaseException:
            home.remove()
            raise

    @contextmanager
    def work(self) -> Iterator[Path]:
        """A folder for files on their way in or out; gone at the end of the block."""
        folder = self._data_root / f".work-{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700, parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def add_disk(self, machine_id: MachineId, disk: MachineDisk) -> None:
        """Make a disk. Raises InvalidParameter, Unavailable, ToolFailed; then there is none."""
        target = self.home(machine_id).disk(disk.name)
        user = qemu.user_of(machine_id)
        if (address := find_address(disk.source)) is not None:
            fetched = target.with_suffix(".fetched")
            try:
                await self._downloads.get(address, fetched)
                await images.import_disk(fetched, target, size=disk.size, user=user)
            finally:
                fetched.unlink(missing_ok=True)
        elif disk.source:
            await images.import_disk(Path(disk.source), target, size=disk.size, user=user)
        else:
            await images.create_blank(target, disk.size)

    async def resize_disk(self, machine_id: MachineId, name: str, size: int) -> None:
        """Let a disk grow that no QEMU has open. Raises InvalidParameter, ToolFailed."""
        await images.resize(self.home(machine_id).disk(name), size)

    def remove_disk(self, machine_id: MachineId, name: str) -> None:
        """Idempotent."""
        self.home(machine_id).disk(name).unlink(missing_ok=True)

    def disk_sizes(self, machine: Machine) -> dict[str, tuple[int, int]]:
        """Return what the guest sees and what the host holds of each disk, in bytes."""
        found = {}
        for disk in machine.config.disks or ():
            path = self.home(machine.id).disk(disk.name)
            held = path.stat().st_blocks * SECTOR_BYTES if path.exists() else 0
            found[disk.name] = (images.header_of(path).size, held)
        return found

    def strangers(self, known: Collection[str]) -> list[MachineId]:
        """Return what has files here and no record: what reads disks for an image, of a daemon killed."""
        if not self._data_root.is_dir():
            return []
        return [MachineId(path.name) for path in self._data_root.iterdir() if path.name not in known]

    def checked_disks(self, machine: Machine) -> list[Path]:
        """Return the disks, each safe to be read with root's rights. Raises InvalidParameter."""
        paths = [self.home(machine.id).disk(disk.name) for disk in machine.config.disks or ()]
        for path in paths:
            images.check_own(path)
        return paths

    def disk_usage(self, machine: Machine) -> tuple[int, int]:
        """Return the bytes that the host holds for a machine, and how many snapshots are among them."""
        home = self.home(machine.id)
        held = 0
        with contextlib.suppress(OSError):  # it is being removed
            for path in home.data.rglob("*"):
                held += path.stat(follow_symlinks=False).st_blocks * SECTOR_BYTES
        snapshots = [images.header_of(home.disk(disk.name)).snapshots for disk in machine.config.disks or ()]
        return held, max(snapshots, default=0)

    async def prune_downloads(self) -> int:
        """Remove the images that were fetched; return the bytes. Machines have what they need of them."""
        return await anyio.to_thread.run_sync(self._downloads.prune)

    def remove_all_but(self, known: Collection[str]) -> None:
        """Remove directories that no record accounts for."""
        if self._data_root.is_dir():
            for path in self._data_root.iterdir():
                if path.name not in known:
                    shutil.rmtree(path, ignore_errors=True)

    # --- processes ---

    async def launch(self, machine: Machine, nics: Sequence[Nic]) -> RunningMachine:
        """Start QEMU. Raises StartFailed, Unavailable, InvalidParameter."""
        self.check(machine.config)
        home = self.home(machine.id)
        self.checked_disks(machine)
        return await running.launch(
            machine.id,
            home,
            lambda sockets: self._plan(machine, nics, sockets),
            with_tpm=machine.config.tpm,
        )

    def find(self, machine_id: MachineId) -> RunningMachine | None:
        """Take up what an earlier daemon has started."""
        return running.find(machine_id, self.home(machine_id))

    @asynccontextmanager
    async def open_tar(self, machine: Machine, reader: DiskReader) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give a tar of the root file system on a machine that is off. Raises as ``DiskReader.open_tar``."""
        architecture = platform.machine()
        disks = [Drive(name=path.stem, path=path) for path in self.checked_disks(machine)]
        async with reader.open_tar(
            disks,
            program=self._find_qemu(architecture),
            architecture=architecture,
            accelerator=self._accelerator,
        ) as pieces:
            yield pieces

    async def end_leftover(self, machine_id: MachineId) -> None:
        """End what an earlier daemon had begun to start."""
        await running.end_leftover(machine_id, self.home(machine_id))

    # --- machinery ---

    async def _make_seed(self, machine: Machine) -> None:
        config = machine.config
        if config.cloud_init is not None:
            target = self.home(machine.id).seed
            instance = machine.instance_id or machine.id
            await seed.make_seed(target, instance, config.hostname or machine.name, config.cloud_init)

    def _plan(self, machine: Machine, nics: Sequence[Nic], sockets: Sockets) -> Plan:
        config, home = machine.config, self.home(machine.id)
        version = self._accelerator.qemu_version if self._accelerator else ""
        architecture = architecture_of(config)
        is_native = architecture == platform.machine()
        firmware = _firmware_files(config)
        drives = [Drive(name=disk.name, path=home.disk(disk.name)) for disk in config.disks or ()]
        if config.cloud_init is not None:
            drives.append(Drive(name="seed", path=home.seed, raw=True, read_only=True))
        return Plan(
            qemu=self._find_qemu(architecture),
            identifier=machine.id,
            name=f"proa-machine-{machine.name}",
            architecture=architecture,
            accelerator=self._accelerator.name if self._accelerator and is_native else TCG,
            cpus=config.cpus,
            memory_bytes=config.memory,
            sockets=sockets,
            firmware=Firmware(
                code=firmware.code,
                variables=home.variables if firmware.code else None,
                image=home.data / "firmware" if firmware.image else None,
                secure=firmware.secure,
            ),
            kernel=home.data / "kernel" if config.kernel or config.image else None,
            initrd=home.data / "initrd" if config.initrd or config.image else None,
            kernel_arguments=config.kernel_arguments,
            drives=drives,
            cdrom=self._cdrom(machine),
            nics=nics,
            headless=config.headless,
            run_as=qemu.rights_of(machine.id, home.run, version),
        )

    def _cdrom(self, machine: Machine) -> Path | None:
        if find_address(machine.config.cdrom) is not None:
            return self.home(machine.id).cdrom
        return Path(machine.config.cdrom) if machine.config.cdrom else None

    def _find_qemu(self, architecture: str) -> Path:
        if self._accelerator is None:
            raise Unavailable(f"this host runs no virtual machines: {self._missing}")
        board = BOARDS[architecture]
        found = shutil.which(board.program)
        if found is None:
            raise Unavailable(f"{architecture} machines need {board.program}: apt install {board.package}")
        return Path(found)


def architecture_of(config: MachineConfig) -> str:
    """The machine's, which is the host's when none is named."""
    return config.architecture or platform.machine()


def _firmware_files(config: MachineConfig) -> Firmware:
    """Return the files of the host that the machine's firmware comes from. Raises InvalidParameter,
    Unavailable."""
    wanted = config.firmware
    if wanted in ("", "bios"):
        if wanted and architecture_of(config) != "x86_64":
            raise InvalidParameter(f"{architecture_of(config)} machines have no BIOS")
        return Firmware()
    if wanted.startswith("/"):
        return Firmware(image=Path(wanted))
    files = _UEFI.get((architecture_of(config), wanted))
    if files is None:
        raise InvalidParameter(
            f"unknown firmware {wanted!r} for {architecture_of(config)}: bios, uefi, uefi-secure, or a path"
        )
    code, variables, package = files
    if not Path(code).exists():
        raise Unavailable(f"firmware {wanted} is not installed: apt install {package}")
    return Firmware(code=Path(code), variables=Path(variables), secure=wanted == "uefi-secure")

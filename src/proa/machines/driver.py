# SPDX-License-Identifier: Apache-2.0
"""From a machine's record to its files and its QEMU: what is copied when it is made, what a start needs.

Owns the directories (``home``); knows nothing of states, names and networks, which are the engine's.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from proa.machines import images, running, seed
from proa.machines.home import MachineHome
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
        self, data_root: Path, exec_root: Path, accelerator: Accelerator | None, missing: str = ""
    ) -> None:
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

    # --- files ---

    async def prepare(self, machine: Machine) -> None:
        """Make the machine's files. On failure they are gone.

        :raises InvalidParameter, Unavailable, ToolFailed: as ``images`` and ``seed``.
        """
        home = self.home(machine.id)
        config = machine.config
        home.create()
        try:
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
            if config.cloud_init is not None:
                await seed.make_seed(
                    home.seed, machine.id, config.hostname or machine.name, config.cloud_init
                )
        except BaseException:
            home.remove()
            raise

    async def add_disk(self, machine_id: MachineId, disk: MachineDisk) -> None:
        """Make a disk. Raises InvalidParameter, Unavailable, ToolFailed; then there is none."""
        target = self.home(machine_id).disk(disk.name)
        if disk.source:
            user = qemu.user_of(machine_id)
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
            held = path.stat().st_blocks * 512 if path.exists() else 0
            found[disk.name] = (images.size_of(path), held)
        return found

    def strangers(self, known: Collection[str]) -> list[MachineId]:
        """Return what has files here and no record: what reads disks for an image, of a daemon killed."""
        if not self._data_root.is_dir():
            return []
        return [MachineId(path.name) for path in self._data_root.iterdir() if path.name not in known]

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
        return await running.launch(machine.id, home, lambda sockets: self._plan(machine, nics, sockets))

    def find(self, machine_id: MachineId) -> RunningMachine | None:
        """Take up what an earlier daemon has started."""
        return running.find(machine_id, self.home(machine_id))

    @asynccontextmanager
    async def open_tar(self, machine: Machine, reader: DiskReader) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give a tar of the root file system on a machine that is off. Raises as ``DiskReader.open_tar``."""
        home, architecture = self.home(machine.id), platform.machine()
        disks = [Drive(name=disk.name, path=home.disk(disk.name)) for disk in machine.config.disks or ()]
        async with reader.open_tar(
            disks,
            program=self._find_qemu(architecture),
            architecture=architecture,
            accelerator=self._accelerator.name if self._accelerator else TCG,
        ) as pieces:
            yield pieces

    async def end_leftover(self, machine_id: MachineId) -> None:
        """End what an earlier daemon had begun to start."""
        await running.end_leftover(machine_id, self.home(machine_id))

    # --- machinery ---

    def _plan(self, machine: Machine, nics: Sequence[Nic], sockets: Sockets) -> Plan:
        config, home = machine.config, self.home(machine.id)
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
            cdrom=Path(config.cdrom) if config.cdrom else None,
            nics=nics,
            headless=config.headless,
            run_as=qemu.user_of(machine.id),
        )

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

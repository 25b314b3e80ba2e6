# SPDX-License-Identifier: Apache-2.0
"""The two directories of a machine.

    <data root>/machines/<id>/       what must not be lost
        <disk>.qcow2                 its disks
        kernel, initrd, firmware     copies of what the user named
        variables.fd                 of UEFI
        tpm/                         what its TPM keeps; the TPM's own
        seed.iso                     for cloud-init
        cdrom.iso                    an installer that was fetched; others lie where they lie
        console.log, console.log.1   what the serial console printed, bounded

    <data root>/machines/.work-<random>/   files on their way in or out; cleared when a daemon starts

    <exec root>/machines/<short id>/ of one run; gone after a reboot of the host
        monitor, events, console, agent   sockets that QEMU listens on
        qemu.log                     QEMU's stderr
        process.json                 pid and start time of QEMU

Everything is root's alone: QEMU opens its files before it becomes the machine's own user.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from proa.model.ids import short
from proa.model.machine import MachineId
from proa.runtime.vm.home import Pid


class MachineHome:
    """Paths of one machine."""

    def __init__(self, data_root: Path, exec_root: Path, machine_id: MachineId) -> None:
        self.data = data_root / machine_id
        self.run = exec_root / short(machine_id)

    def create(self) -> None:
        """Make the directory of what must not be lost."""
        self.data.mkdir(mode=0o700, parents=True)

    def create_run(self) -> None:
        """Make the directory of a run anew."""
        self.remove_run()
        self.run.mkdir(mode=0o700, parents=True)

    def remove_run(self) -> None:
        """Idempotent."""
        shutil.rmtree(self.run, ignore_errors=True)

    def remove(self) -> None:
        """Remove both. Idempotent."""
        self.remove_run()
        shutil.rmtree(self.data, ignore_errors=True)

    def disk(self, name: str) -> Path:
        return self.data / f"{name}.qcow2"

    @property
    def seed(self) -> Path:
        return self.data / "seed.iso"

    @property
    def cdrom(self) -> Path:
        return self.data / "cdrom.iso"

    @property
    def variables(self) -> Path:
        return self.data / "variables.fd"

    @property
    def tpm(self) -> Path:
        return self.data / "tpm"

    @property
    def monitor(self) -> Path:
        return self.run / "monitor"

    def write_process(self, pid: Pid) -> None:
        """Note QEMU, for a later daemon."""
        temporary = self.run / "process.json.new"
        temporary.write_bytes(msgspec.json.encode(pid))
        temporary.replace(self.run / "process.json")

    def read_process(self) -> Pid | None:
        """Return what was noted; None when there is nothing that can be read."""
        try:
            return msgspec.json.decode((self.run / "process.json").read_bytes(), type=Pid)
        except (OSError, msgspec.DecodeError):
            return None

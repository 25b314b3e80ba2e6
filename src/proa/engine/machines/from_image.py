# SPDX-License-Identifier: Apache-2.0
"""A machine that is made of an image of the store: its root disk, and what boots it.

The image's own kernel, when it has one with an initial ram disk; else proa's, with one of ours that starts
the image's init or, without one, its command. See decision 0045.

Source: docs/reference/vms.yaml, VmConfig.Image.
"""

from __future__ import annotations

import os
import platform
import uuid
from pathlib import Path

import anyio.to_thread
import msgspec

from proa.engine.creation import command_line, merge_config
from proa.engine.signals import parse_signal
from proa.image.images import Images
from proa.machines import image_boot, root_disk
from proa.machines.home import MachineHome
from proa.machines.image_boot import MAX_INITRD_BYTES, MAX_KERNEL_BYTES, Program
from proa.model.config import ContainerConfig
from proa.model.errors import InvalidParameter, Unavailable
from proa.model.image import Image
from proa.model.machine import Machine, MachineConfig, MachineDisk
from proa.runtime.oci.user import find_user
from proa.runtime.vm import qemu
from proa.storage.rootfs import Roots

FOR_ENGINE = "proa.modules=engine"  # among the kernel's arguments: a container engine is to run there
ROOT = "root"  # the disk's name, by which machine/init finds it
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64", "riscv64": "riscv64"}
_STOP_SIGNAL = "TERM"


class FromImage:
    """Makes disks of images. ``lib`` is where setup/ has put the guest kernel."""

    def __init__(self, *, images: Images, roots: Roots, lib: Path) -> None:
        self._images = images
        self._roots = roots
        self._kernel = lib / "kernel" / "vmlinuz"
        self._initrd = lib / "machine.cpio"
        self._engine_modules = lib / "machine-engine.cpio"

    def complete(self, config: MachineConfig) -> MachineConfig:
        """Add the root disk and the architecture to what a user asks. Raises NoSuchImage,
        InvalidParameter."""
        if not config.image:
            if config.image_disk_size or config.cmd:
                raise InvalidParameter("a root disk's size and a command need an image")
            return config
        for value, what in (
            (config.kernel, "a kernel"),
            (config.initrd, "an initrd"),
            (config.cdrom, "an ISO image"),
            (config.firmware, "firmware"),
        ):
            if value:
                raise InvalidParameter(
                    f"a machine that is made of an image boots by itself: leave out {what}"
                )
        image = self._images.get(config.image)
        if not image.layers:
            raise InvalidParameter(f"image {config.image} has no files")
        architecture = _ARCHITECTURES.get(image.architecture, image.architecture or platform.machine())
        if config.architecture not in ("", architecture):
            raise InvalidParameter(
                f"image {config.image} is for {architecture}, not for {config.architecture}"
            )
        size = root_disk.size_for(config.image_disk_size, image.size)
        disks = [MachineDisk(name=ROOT, size=size), *(config.disks or ())]
        return msgspec.structs.replace(config, architecture=architecture, disks=disks)

    async def fill(self, machine: Machine, home: MachineHome) -> MachineConfig:
        """Make the root disk of a machine whose other files are there; return its configuration with what its
        kernel is told. On failure the caller removes the machine's files.

        :raises InvalidParameter: the image cannot be booted, or does not fit the disk.
        :raises Unavailable, ToolFailed: the host lacks a program or room.
        """
        config = machine.config
        image = self._images.get(config.image)
        with self._roots.open_below(image.layers) as merged:
            tree = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=merged)
            try:
                words = await anyio.to_thread.run_sync(self._write_boot, machine, image, tree, home)
                disk = next(one for one in config.disks or () if one.name == ROOT)
                target = home.disk(ROOT)
                target.unlink(missing_ok=True)
                await root_disk.make(
                    tree,
                    target,
                    size=disk.size,
                    identifier=_identifier(machine),
                    user=qemu.user_of(machine.id),
                )
            finally:
                os.close(tree)
        arguments = " ".join((*words, config.kernel_arguments)).strip()
        return msgspec.structs.replace(config, kernel_arguments=arguments)

    # --- machinery ---

    def _write_boot(self, machine: Machine, image: Image, tree: int, home: MachineHome) -> list[str]:
        """Put kernel and initial ram disk beside the disk; return the first words of the command line."""
        config = machine.config
        console = f"console={image_boot.CONSOLES.get(config.architecture, 'ttyS0')}"
        kernel, initrd = home.data / "kernel", home.data / "initrd"
        found = None if config.cmd else image_boot.find_kernel(tree)
        if found is not None:
            image_boot.copy_out(tree, found[0], kernel, limit=MAX_KERNEL_BYTES)
            image_boot.copy_out(tree, found[1], initrd, limit=MAX_INITRD_BYTES)
            return [f"root=UUID={_identifier(machine)}", "rw", console]
        if config.architecture != platform.machine():
            raise InvalidParameter(
                f"image {config.image} has no kernel, and proa's own is not for {config.architecture}"
            )
        parts = [self._initrd]
        if FOR_ENGINE in config.kernel_arguments.split():
            parts.append(self._engine_modules)
        for path in (self._kernel, *parts):
            if not path.exists():
                raise Unavailable(f"{path} is not there: run make setup")
        program = self._program(config, image, tree)
        kernel.write_bytes(self._kernel.read_bytes())
        kernel.chmod(0o600)
        image_boot.write_initrd(parts, initrd, program)
        return [console, "quiet", *(["init=run"] if config.cmd else [])]

    def _program(self, config: MachineConfig, image: Image, tree: int) -> Program | None:
        wanted = merge_config(ContainerConfig(cmd=config.cmd), image.config)
        try:
            arguments = command_line(wanted)
        except InvalidParameter:
            if image_boot.has_init(tree):
                return None
            raise InvalidParameter(
                f"image {config.image} has nothing to boot: no kernel, no init, and no command"
            ) from None
        user = find_user(Path(f"/proc/self/fd/{tree}"), wanted.user)
        environment = list(wanted.env or ())
        if not any(entry.startswith("HOME=") for entry in environment):
            environment.append(f"HOME={user.home}")
        if not any(entry.startswith("TERM=") for entry in environment):
            environment.append("TERM=vt100")
        return Program(
            uid=user.uid,
            gid=user.gid,
            groups=user.groups,
            directory=wanted.working_dir or "/",
            stop_signal=parse_signal(wanted.stop_signal or _STOP_SIGNAL),
            arguments=arguments,
            environment=environment,
        )


def _identifier(machine: Machine) -> str:
    """The UUID of the machine's root file system: the machine's own."""
    return str(uuid.UUID(machine.id[:32]))

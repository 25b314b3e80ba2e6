# SPDX-License-Identifier: Apache-2.0
"""An image made of what is on the disks of a machine that is off: one layer, the root file system.

Source: docs/reference/vms.yaml, VmImage; decision 0045.
"""

from __future__ import annotations

from collections.abc import Sequence

from proa.engine.machines.lives import Lives
from proa.image.images import Images
from proa.image.reference import parse_name
from proa.machines.driver import Driver, architecture_of
from proa.machines.reader import DiskReader
from proa.machines.store import MachineStore
from proa.model.errors import InvalidParameter, WrongState
from proa.model.ids import Digest

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}


class ToImage:
    """Makes images of machines."""

    def __init__(
        self, *, store: MachineStore, lives: Lives, driver: Driver, reader: DiskReader, images: Images
    ) -> None:
        self._store = store
        self._lives = lives
        self._driver = driver
        self._reader = reader
        self._images = images

    async def make(
        self, ref: str, *, repository: str, tag: str, message: str, changes: Sequence[str]
    ) -> Digest:
        """Make an image; the machine cannot be started until it is made. Return its id.

        :raises WrongState: the machine is not off.
        :raises InvalidParameter: it has no disk with a root file system that can be read, or a name or an
            instruction is wrong.
        :raises StartFailed, Unavailable: the machine that reads the disks does not run.
        """
        if repository:
            parse_name(repository, tag)  # before much work
        async with self._lives.changing(self._store.get(ref)) as machine:
            if not machine.state.is_off:
                raise WrongState(
                    f"virtual machine {machine.name} is {machine.state.value}: stop it to make an image of it"
                )
            if not machine.config.disks:
                raise InvalidParameter(f"virtual machine {machine.name} has no disk")
            async with self._driver.open_tar(machine, self._reader) as pieces:
                return await self._images.import_(
                    pieces,
                    repository=repository,
                    tag=tag,
                    message=message or f"Made of virtual machine {machine.name}",
                    changes=changes,
                    platform=f"linux/{_ARCHITECTURES[architecture_of(machine.config)]}",
                )

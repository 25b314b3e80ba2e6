# SPDX-License-Identifier: Apache-2.0
"""The directory of one VM in the exec root: what a later daemon needs to find it again.

    <exec root>/<container id>/
        state.json    Record: written once QEMU has been started, replaced when something changes
        monitor       QMP socket of QEMU
        control       socket of the agent's control port
        console       socket of the serial console
        copying       it stands still while a copy of it is made: whoever finds this later lets it go on
        layers.vmdk   descriptor of the layers' disk, when there is more than one
        exit          the exit record, appended by QEMU: ``code oom finished_unix_ns``
        qemu.log      QEMU's stderr

The exec root is on a tmpfs: after a reboot of the host nothing is left, as of the VM itself. Bytes of
``exit`` come from the guest: only one well-formed line is believed.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

import msgspec

from proa.model.errors import Conflict
from proa.model.ids import ContainerId
from proa.model.task import ExitStatus

_MAX_EXIT_BYTES = 4096


class Pid(msgspec.Struct, frozen=True, kw_only=True):
    """A process, told from later ones of the same number by its start time in clock ticks."""

    pid: int
    start_time: int


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Content of state.json. ``memory_bytes`` is the machine's; ``cgroup`` is the
    path of the one that is around QEMU when there are limits that need it; ``writable`` is the disk, which is
    the new one or the kept one as ``is_new`` says; ``is_unfinished``: a copy that is still being made;
    ``cards`` and ``spares``: the tap behind each network card, "" for none (``proa.runtime.vm.nics``)."""

    qemu: Pid
    fs_server: Pid | None
    memory_bytes: int
    vcpus: int
    capabilities: int
    no_new_privileges: bool
    tty: bool
    open_stdin: bool
    stdin_once: bool
    cgroup: str
    log_path: str = ""
    log_max_bytes: int = 0  # 0: no bound
    writable: str = ""
    is_new: bool = False
    nics: int = 0
    is_unfinished: bool = False
    cards: tuple[str, ...] = ()
    spares: tuple[str, ...] = ()
    log_chardev: str = "log"
    pod: str = ""  # directory of the machine that it shares with others (``pods``), and its seat there
    seat: int = -1
    memory_limit_bytes: int = 0  # that it was promised there
    joins: int | None = None  # the seat whose network it shares


class Home:
    """One such directory."""

    def __init__(self, exec_root: Path, container_id: ContainerId) -> None:
        self.path = exec_root / container_id

    def create(self) -> None:
        """Make it. Raises Conflict when it is there already."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self.path.mkdir(mode=0o700)
        except FileExistsError as error:
            raise Conflict(f"a virtual machine of this container exists already: {self.path}") from error

    def exists(self) -> bool:
        return self.path.is_dir()

    def remove(self) -> None:
        """Remove it with all that is in it. Idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)

    def write(self, record: Record) -> None:
        """Replace state.json."""
        temporary = self.path / "state.json.new"
        temporary.write_bytes(msgspec.json.encode(record))
        temporary.replace(self.path / "state.json")

    def read(self) -> Record | None:
        """Return the record; None when there is none that can be read."""
        try:
            return msgspec.json.decode((self.path / "state.json").read_bytes(), type=Record)
        except (OSError, msgspec.DecodeError):
            return None

    @property
    def control(self) -> Path:
        return self.path / "control"

    @property
    def monitor(self) -> Path:
        return self.path / "monitor"

    @property
    def exit_record(self) -> Path:
        return self.path / "exit"

    @property
    def copying(self) -> Path:
        return self.path / "copying"

    def read_exit(self) -> ExitStatus | None:
        """Return how the main process ended, if a record of it is there."""
        with contextlib.suppress(OSError), self.exit_record.open("rb") as file:
            return parse_exit(file.read(_MAX_EXIT_BYTES))
        return None

    def write_exit(self, code: int) -> None:
        """Leave a record in the agent's place, for a machine that was ended from outside."""
        with contextlib.suppress(OSError), self.exit_record.open("ab") as file:
            file.write(f"{code} 0 {time.time_ns()}\n".encode())


def parse_exit(content: bytes) -> ExitStatus | None:
    """Return the first whole, well-formed line of an exit record; None when there is none."""
    for line in content.split(b"\n")[:-1]:
        words = line.split(b" ")
        if len(words) != 3 or not all(word.isdigit() and len(word) < 20 for word in words):
            continue
        code, oom, finished = map(int, words)
        if code <= 255 and oom <= 1 and finished < 2**63:
            return ExitStatus(code=code, finished_at_ns=finished, oom_killed=bool(oom))
    return None

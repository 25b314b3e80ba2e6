# SPDX-License-Identifier: Apache-2.0
"""What a later engine needs to find a container again, in one file of its directory.

    <exec root>/<id>/           directory of conmon (see conmon) and OCI bundle
        config.json             what the runtime was given
        task.json               this record
        files/                  /etc/hosts and its like, mounted into the container
        exec/<exec id>/         directory of the conmon of one exec
    <exec root>/.<runtime>/<id>/  the runtime's own state; exec.fifo is there until the start

The record is written twice: when conmon has been started, and again when the container has been made.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from proa.model.task import IdMap

RECORD = "task.json"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """:ivar pid: of the container's first process; 0 while it is being made.
    :ivar pid_start: clock ticks from boot, with which a pid is recognised; also of conmon.
    :ivar ids: the map of its user namespace; None for the host's.
    """

    runtime: str
    cgroup: str
    conmon_pid: int
    conmon_start: int
    program: str
    pid: int = 0
    pid_start: int = 0
    open_stdin: bool = False
    stdin_once: bool = False
    host_network: bool = False
    ids: IdMap | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """The places of one container."""

    directory: Path
    state: Path  # of the runtime

    @property
    def config(self) -> Path:
        return self.directory / "config.json"

    @property
    def files(self) -> Path:
        return self.directory / "files"

    @property
    def execs(self) -> Path:
        return self.directory / "exec"

    @property
    def start_fifo(self) -> Path:
        return self.state / "exec.fifo"

    def save(self, record: Record) -> None:
        """Replace the record; a reader sees the old one or the new one."""
        new = self.directory / f"{RECORD}.new"
        new.write_bytes(msgspec.json.encode(record))
        os.replace(new, self.directory / RECORD)  # noqa: PTH105

    def load(self) -> Record | None:
        """Return the record; None when there is none, or none of use."""
        try:
            return msgspec.json.decode((self.directory / RECORD).read_bytes(), type=Record)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

# SPDX-License-Identifier: Apache-2.0
"""How this host reaches a ``proa machine``: ssh, with a key of the machine's own.

What is kept of a machine, below ``$XDG_CONFIG_HOME/proa/machine/NAME``: ``key``, ``key.pub``,
``known_hosts``. What goes with its run, below ``/run/proa-machine/NAME``: ``docker.sock``, ``control`` (ssh's
own socket), ``lock``, ``log``.

Source: ssh(1), ssh_config(5).
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import click

from proa.cli.machine_disk import SOCKET

RUN = Path("/run/proa-machine")
UP_S = 600.0  # for a machine to boot under emulation on a busy host
_TRY_S = 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where the files of a machine are."""

    name: str

    @property
    def kept(self) -> Path:
        base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
        return Path(base) / "proa" / "machine" / self.name

    @property
    def run(self) -> Path:
        return RUN / self.name

    @property
    def socket(self) -> Path:
        return self.run / "docker.sock"

    @property
    def control(self) -> Path:
        return self.run / "control"


def ssh_words(place: Place) -> list[str]:
    """Return ssh with its options. The machine's key is learnt at the first connection, and kept to."""
    options = (
        f"IdentityFile={place.kept / 'key'}",
        "IdentitiesOnly=yes",
        f"UserKnownHostsFile={place.kept / 'known_hosts'}",
        f"HostKeyAlias={place.name}",
        "StrictHostKeyChecking=accept-new",
        "BatchMode=yes",
        "LogLevel=ERROR",
        f"ConnectTimeout={_TRY_S}",
    )
    return ["ssh", "-F", "none", *(word for option in options for word in ("-o", option))]


def wait_until_up(place: Place, address: str) -> None:
    """Wait until the engine in the machine listens. Raises click.ClickException."""
    deadline = time.monotonic() + UP_S
    command = [*ssh_words(place), f"root@{address}", "test", "-S", SOCKET]
    while True:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            raise click.ClickException(
                f"the engine in {place.name} does not answer: {done.stderr.strip() or 'it is not up'}; "
                f"see proa vm logs {place.name}"
            )
        time.sleep(0.5)


def close_connection(place: Place) -> None:
    """End the connection to a machine that has gone: else it is missed only after a while. Idempotent."""
    if place.control.exists():
        words = [*ssh_words(place), "-S", str(place.control), "-O", "exit", "machine"]
        subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL)

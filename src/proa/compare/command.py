# SPDX-License-Identifier: Apache-2.0
"""The user's own command: from the create request to its end, in each hull."""

from __future__ import annotations

import shutil
import subprocess
import time

from proa.client.client import Client
from proa.client.errors import ClientError
from proa.compare.figures import Better, Missing, Row, measured
from proa.compare.hulls import HULLS, Hull
from proa.compare.instances import Order, run
from proa.compare.performance import TOPIC

NAME = "your command"
HOST_TIMEOUT_S = 600.0  # a command that a user compares ends; one that does not must not hang the comparison
_METHOD = "create request to exit status 0, over the API"


class OwnCommand:
    """Collects the times of the command; without a command every cell says so."""

    def __init__(self, client: Client, image: str, command: tuple[str, ...], *, has_entrypoint: bool) -> None:
        self._client = client
        self._image = image
        self._command = command
        self._has_entrypoint = has_entrypoint
        self._host: list[float] = []
        self._inside: dict[Hull, list[float]] = {hull: [] for hull in HULLS}
        reason = "" if command else "no command was given (proa compare IMAGE -- COMMAND)"
        self._failures: dict[Hull | None, str] = dict.fromkeys((*HULLS, None), reason)
        self._failures[None] = reason or self._why_not_on_host()

    def on_host(self) -> None:
        """Run it on this host, where it is the same command: no entrypoint, and the program is here too."""
        if self._failures[None]:
            return
        began = time.monotonic()
        try:
            subprocess.run(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=HOST_TIMEOUT_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            self._failures[None] = f"it fails on this host: {error}"
            return
        self._host.append((time.monotonic() - began) * 1000)

    def inside(self, hull: Hull) -> None:
        """Run it in a hull."""
        if self._failures[hull]:
            return
        try:
            outcome = run(self._client, Order(image=self._image, hull=hull, command=self._command))
        except ClientError as error:
            self._failures[hull] = error.message
            return
        self._inside[hull].append(outcome.ended_s * 1000)

    def rows(self) -> list[Row]:
        """Return what was found."""
        host = measured(self._host, "ms", "this host's own program of that name", reason=self._failures[None])
        cells = {
            hull: measured(self._inside[hull], "ms", _METHOD, reason=self._failures[hull], base=host)
            for hull in HULLS
        }
        return [
            Row(
                topic=TOPIC,
                name=NAME,
                host=host,
                container=cells[Hull.CONTAINER],
                vm=cells[Hull.VM],
                better=Better.LOWER,
            )
        ]

    def _why_not_on_host(self) -> str:
        if self._has_entrypoint:
            return "the image has an entrypoint, which this host has not"
        if shutil.which(self._command[0]) is None:
            return f"this host has no program {self._command[0]}"
        return ""


def missing_everywhere(reason: str) -> Row:
    """Return the row for when nothing could be run at all."""
    cell = Missing(reason=reason)
    return Row(topic=TOPIC, name=NAME, host=cell, container=cell, vm=cell, better=Better.LOWER)

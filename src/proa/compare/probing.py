# SPDX-License-Identifier: Apache-2.0
"""The probe program: the same measuring code inside each hull and on the host.

It is one static file, so a read-only bind mount brings it into any image. Its results are lines of JSON
(probe/probe.h). Works only where the daemon's host is this one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from proa.client.client import Client
from proa.compare.hulls import Hull
from proa.compare.instances import Order, RunFailed, run

INSIDE = "/.proa-probe"
TIMEOUT_S = 120.0  # of a whole run of the probe on the host: seconds, unless the host is in trouble


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One measure: a value with its unit and method, or the error that prevented it."""

    measure: str
    value: float | None = None
    unit: str = ""
    method: str = ""
    error: str = ""


class SyscallCensus(msgspec.Struct, frozen=True, kw_only=True):
    """Of the calls tried, how many the kernel looked at, and how the others were refused."""

    tried: int
    passed: int
    denied: int  # EPERM
    missing: int  # ENOSYS
    killed: int  # SIGSYS


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What is seen from inside (probe/look.c)."""

    kernel_release: str
    kernel_version: str
    machine: str
    boot_id: str
    uptime_s: float
    hypervisor: bool
    memory_bytes: float
    cpus_online: int
    processes: int
    mounts: int
    kernel_modules: int
    cgroup: str
    uid_map: str
    capabilities_effective: str  # hexadecimal
    seccomp_mode: int
    no_new_privileges: bool
    devices: list[str]
    character_devices: int
    block_devices: int
    kcore_readable: bool
    dmesg_readable: bool
    sysrq_writable: bool
    sysctl_writable: bool
    sysfs_writable: bool
    raw_memory_readable: bool
    syscalls: SyscallCensus | None = None


def default_path() -> Path:
    """Return where ``make setup`` puts the program."""
    return Path(sys.prefix) / "lib/proa/probe"


def parse_results(output: bytes) -> dict[str, Result]:
    """Read the lines of measures, by name. Raises RunFailed for anything else."""
    try:
        results = [msgspec.json.decode(line, type=Result) for line in output.splitlines() if line.strip()]
    except msgspec.MsgspecError as error:
        raise RunFailed(f"the probe's output cannot be read: {error}") from error
    return {result.measure: result for result in results}


def parse_look(output: bytes) -> Look:
    """Read the answer of ``look``. Raises RunFailed."""
    try:
        return msgspec.json.decode(output, type=Look)
    except msgspec.MsgspecError as error:
        raise RunFailed(f"the probe's output cannot be read: {error}") from error


class Prober:
    """Runs the probe in the hulls and on the host."""

    def __init__(self, client: Client, image: str, program: Path) -> None:
        self._client = client
        self._image = image
        self._program = program

    @property
    def bind(self) -> str:
        """The mount that brings the program in, as ``docker run -v`` writes it."""
        return f"{self._program}:{INSIDE}:ro"

    def order(self, hull: Hull, *arguments: str) -> Order:
        """What to run for the probe inside a hull: as root, whatever the image's user is."""
        return Order(
            image=self._image,
            hull=hull,
            entrypoint=(INSIDE,),
            command=arguments,
            user="0",
            binds=(self.bind,),
        )

    def inside(self, hull: Hull, *arguments: str) -> bytes:
        """Return the output of the probe in a hull. Raises ClientError."""
        return run(self._client, self.order(hull, *arguments)).stdout

    def on_host(self, *arguments: str) -> bytes:
        """Return the output of the probe on this host. Raises RunFailed."""
        try:
            done = subprocess.run(
                [self._program, *arguments], capture_output=True, timeout=TIMEOUT_S, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise RunFailed(f"the probe does not run on this host: {error}") from error
        return done.stdout

    @contextmanager
    def peer(self, address: str) -> Iterator[str]:
        """Serve the network measures on an address of this host. Gives HOST:PORT. Raises RunFailed."""
        argv: list[str | Path] = [self._program, "serve", "--address", address]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as server:
            try:
                line = server.stdout.readline() if server.stdout else b""
                yield _serving(line, address)
            finally:
                server.terminate()


def _serving(line: bytes, address: str) -> str:
    try:
        answer = msgspec.json.decode(line, type=dict[str, str])
    except msgspec.MsgspecError:
        answer = {"error": "the probe's server said nothing that can be read"}
    if "serving" not in answer:
        raise RunFailed(f"cannot listen on {address}: {answer.get('error', 'no reason given')}")
    return answer["serving"]

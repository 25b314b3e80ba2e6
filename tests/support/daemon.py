# SPDX-License-Identifier: Apache-2.0
"""A daemon of the tests' own: its roots in a temporary directory, its socket at a short path."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# The same tests with another default (make parity): options of every daemon, and patience with machines.
EXTRA_OPTIONS = tuple(shlex.split(os.environ.get("PROA_TEST_DAEMON_OPTIONS", "")))
TIME_FACTOR = float(os.environ.get("PROA_TEST_TIME_FACTOR", "1"))

START_TIMEOUT_S = 60.0 * TIME_FACTOR
COMMAND_TIMEOUT_S = 120.0 * TIME_FACTOR
PROA = Path(sys.executable).with_name("proa")
LIB = Path(sys.prefix) / "lib" / "proa"
DOCKER = shutil.which("docker") or str(PROA.with_name("docker"))  # setup/docker-cli.sh puts it there


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a command left."""

    status: int
    out: str
    err: str


@dataclass(slots=True)
class Daemon:
    """Starts and ends a proa daemon, and runs clients against it."""

    options: Sequence[str] = ()
    wrapper: Sequence[str] = ()  # a command that becomes the daemon it is given, in the same process
    base: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="pt-", dir="/tmp")))
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.base / "s"

    @property
    def host(self) -> str:
        return f"unix://{self.socket}"

    @property
    def data_root(self) -> Path:
        return self.base / "d"

    @property
    def exec_root(self) -> Path:
        return self.base / "x"

    @property
    def log_path(self) -> Path:
        return self.base / "daemon.log"

    def start(self) -> None:
        """Start it and wait until it listens."""
        command = [
            *self.wrapper,
            sys.executable,
            "-m",
            "proa.daemon",
            "--host",
            self.host,
            "--data-root",
            str(self.data_root),
        ]
        command += ["--exec-root", str(self.exec_root), *EXTRA_OPTIONS, *self.options]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the daemon ended:\n{self.log()}")
            if self.docker("version", check=False).status == 0:
                return
            time.sleep(0.05)
        raise AssertionError(f"the daemon does not answer:\n{self.log()}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it, as asked or by force; the workloads go on."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(30)
            self.process = None

    def restart(self, number: int = signal.SIGTERM) -> None:
        self.stop(number)
        self.start()

    def load_busybox(self) -> None:
        self.docker("load", "-i", str(LIB / "busybox.tar"))

    def docker(
        self,
        *arguments: str,
        check: bool = True,
        stdin: str | None = None,
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> Result:
        """Run the docker CLI against the daemon."""
        return self._run([DOCKER, "--host", self.host, *arguments], check, stdin, timeout_s)

    def proa(
        self,
        *arguments: str,
        check: bool = True,
        stdin: str | None = None,
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> Result:
        """Run our own command against the daemon."""
        return self._run([str(PROA), *arguments], check, stdin, timeout_s)

    def clean(self) -> None:
        """Remove every container, end the daemon, and delete what it had."""
        if self.process is not None:
            ids = self.docker("ps", "-aq", check=False).out.split()
            if ids:
                self.docker("rm", "-f", "-v", *ids, check=False)
            custom = self.docker("network", "ls", "-q", "--filter", "type=custom", check=False).out.split()
            for network in custom:
                self.docker("network", "rm", network, check=False)
        self.stop()
        purge(self.data_root, self.exec_root)
        shutil.rmtree(self.base, ignore_errors=True)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")[-8000:] if self.log_path.exists() else ""

    @property
    def env(self) -> Mapping[str, str]:
        return {**os.environ, "PROA_HOST": self.host, "DOCKER_CLI_HINTS": "false"}

    def _run(self, command: list[str], check: bool, stdin: str | None, timeout_s: float) -> Result:
        done = subprocess.run(
            command,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=self.env,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}\n{self.log()}"
            )
        return Result(status=done.returncode, out=done.stdout, err=done.stderr)


def purge(data_root: Path, exec_root: Path) -> None:
    """Take away what a daemon that has ended keeps on the host: bridges, rules, mounts."""
    roots = ["--data-root", str(data_root), "--exec-root", str(exec_root)]
    subprocess.run([sys.executable, "-m", "proa.daemon.purge", *roots], check=False)

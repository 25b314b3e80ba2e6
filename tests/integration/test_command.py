# SPDX-License-Identifier: Apache-2.0
"""The installed command: the script that setup/venv.sh writes, and how it begins and ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMAND = Path(sys.prefix) / "bin/proa"
CACHED = Path(__file__).resolve().parents[2] / "src/proa/cli/__pycache__"


def proa(*words: str, stdout: int | None = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PROA_HOST": "unix:///nonexistent.sock"}
    return subprocess.run(
        [COMMAND, *words], stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, check=False
    )


def test_exit_statuses_and_output_come_through() -> None:
    assert proa("--version").stdout.startswith("proa version ")
    lost = proa("ps")
    assert (lost.returncode, lost.stdout) == (1, "")
    assert lost.stderr.startswith("Cannot connect to the proa daemon at unix:///nonexistent.sock.")
    assert proa("run", "busybox").returncode == 125
    assert proa("nothing").returncode == 125


def test_a_full_disk_is_no_traceback() -> None:
    with Path("/dev/full").open("w") as full:
        done = proa("--help", stdout=full.fileno())
    assert (done.returncode, done.stderr) == (1, "proa: No space left on device\n")


def test_what_was_compiled_is_kept_whatever_the_environment_says() -> None:
    (stored,) = CACHED.glob(f"main.{sys.implementation.cache_tag}.pyc")
    stored.unlink()
    proa("--version")
    assert stored.exists()

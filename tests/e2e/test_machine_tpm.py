# SPDX-License-Identifier: Apache-2.0
"""Full machines with a TPM: seen by the guest, kept, carried along, and gone with the machine."""

from __future__ import annotations

import io
import os
import signal
import tarfile
from pathlib import Path

from tests.e2e.test_machine_copies import machine
from tests.e2e.test_machines import LINUX, create, inspect, type_and_read, wait_for, wait_for_console
from tests.support.daemon import Daemon

__all__ = ["machine"]  # a fixture
STATE = "tpm2-00.permall"


def swtpms(daemon: Daemon, machine: str) -> list[int]:
    """The processes that work in the folder of the machine's TPM."""
    folder = str(daemon.data_root / "machines" / inspect(daemon, machine)["Id"] / "tpm")
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if str((path / "cwd").readlink()) == folder:
                found.append(int(path.name))
        except OSError:
            continue
    return found


def see_tpm(daemon: Daemon, machine: str) -> None:
    typed = "echo version $(cat /sys/class/tpm/tpm0/tpm_version_major) ''\n"
    assert "version 2" in type_and_read(daemon, machine, typed, "version 2 \r")


def test_a_tpm(daemon: Daemon, machine: str, tmp_path: Path) -> None:
    create(daemon, machine, *LINUX, "--network", "none", "--disk", "4m", "--tpm", "--start")
    wait_for_console(daemon, machine, "guest: up")
    see_tpm(daemon, machine)
    (pid,) = swtpms(daemon, machine)
    status = Path(f"/proc/{pid}/status").read_text()
    qemu = Path(f"/proc/{inspect(daemon, machine)['Pid']}")
    assert Path(f"/proc/{pid}").stat().st_uid not in (0, qemu.stat().st_uid)
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()

    daemon.proa("vm", "snapshot", "create", machine, "s")
    daemon.proa("vm", "snapshot", "restore", machine, "s")
    daemon.restart(signal.SIGKILL)
    see_tpm(daemon, machine)
    archive = tmp_path / "machine.tar"
    daemon.proa("vm", "export", "-o", str(archive), machine)
    daemon.proa("vm", "fork", machine, f"{machine}-f")
    os.kill(inspect(daemon, machine)["Pid"], signal.SIGKILL)
    wait_for(lambda: inspect(daemon, machine)["State"] == "crashed", "its end is seen")
    wait_for(lambda: not swtpms(daemon, machine), "its TPM ends with it")

    folder = daemon.data_root / "machines"
    kept = (folder / inspect(daemon, machine)["Id"] / "tpm" / STATE).read_bytes()
    daemon.proa("vm", "import", "--name", f"{machine}-i", str(archive))
    assert (folder / inspect(daemon, f"{machine}-i")["Id"] / "tpm" / STATE).read_bytes() == kept
    daemon.proa("vm", "start", f"{machine}-i", f"{machine}-f")
    for one in (f"{machine}-i", f"{machine}-f"):
        wait_for_console(daemon, one, "guest: up")
        see_tpm(daemon, one)
    assert (folder / inspect(daemon, f"{machine}-f")["Id"] / "tpm" / STATE).read_bytes() != kept
    daemon.proa("vm", "rm", "-f", f"{machine}-i", f"{machine}-f")


def test_a_tpm_that_cannot_be(daemon: Daemon, machine: str, tmp_path: Path) -> None:
    done = daemon.proa("vm", "create", *LINUX, "--arch", "riscv64", "--tpm", check=False)
    assert "riscv64 machines have no TPM" in done.err
    create(daemon, machine, *LINUX, "--network", "none", "--tpm")
    folder = daemon.data_root / "machines" / inspect(daemon, machine)["Id"] / "tpm"
    folder.mkdir()
    archive = tmp_path / "machine.tar"
    (folder / STATE).symlink_to("/etc/shadow")  # as a TPM could leave it that was broken into
    assert "cannot be read" in daemon.proa("vm", "export", "-o", str(archive), machine, check=False).err
    (folder / STATE).unlink()
    (folder / STATE).write_bytes(b"nonsense" * 100)
    (folder / STATE).chmod(0o644)
    done = daemon.proa("vm", "start", machine, check=False)
    assert done.status == 1
    assert "swtpm" in done.err
    assert not swtpms(daemon, machine)
    daemon.proa("vm", "export", "-o", str(archive), machine)
    with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as tar:
        assert STATE in tar.getnames()

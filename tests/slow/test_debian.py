# SPDX-License-Identifier: Apache-2.0
"""A whole Debian, from its disk image to ssh: cloud-init, DHCP, the guest agent, a fork, the power button.

Takes minutes under emulation: ``make test-slow``, not part of ``make test``.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.daemon import LIB, Daemon

DISK = LIB / "test-debian.qcow2"
BOOT_S = 900.0  # two minutes on an idle host of two processors, without KVM

pytestmark = pytest.mark.skipif(not DISK.exists(), reason="make test-slow makes the disk")


def test_from_disk_to_ssh(tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    daemon = Daemon()
    daemon.start()
    try:
        daemon.proa(
            *("vm", "create", "--name", "deb", "--disk", f"{DISK}:4g", "-m", "768m"),
            *("--user", "me", "--ssh-key", f"{key}.pub", "--start"),
        )
        ask = "hostname; sudo id -u; cat /etc/ssh/ssh_host_ed25519_key.pub; test -e note && cat note"
        name, uid, *host_key = log_in(daemon, "deb", key, f"{ask} || echo kept >note")
        assert (name, uid) == ("deb", "0")
        assert "Debian" in daemon.proa("vm", "exec", "deb", "/bin/uname", "-v").out

        # The note has not been written out by anybody when the file systems are put at rest.
        since = time.time()
        daemon.proa("vm", "fork", "deb", "twin", timeout_s=300)
        froze = ("/usr/bin/journalctl", "-q", f"--since=@{since - 1:.0f}", "--grep=freeze", "--no-pager")
        assert "freeze" in daemon.proa("vm", "exec", "deb", *froze).out
        daemon.proa("vm", "start", "twin")
        name, uid, *other_key, note = log_in(daemon, "twin", key, ask)
        assert (name, uid, note) == ("twin", "0", "kept")
        assert other_key[1] != host_key[1]
        daemon.proa("vm", "rm", "-f", "twin")
        daemon.proa("vm", "stop", "-t", "300", "deb", timeout_s=320)
        found = json.loads(daemon.proa("vm", "inspect", "deb").out)[0]
        assert found["Reason"] == "the guest powered off"
    finally:
        daemon.clean()


def log_in(daemon: Daemon, machine: str, key: Path, command: str) -> list[str]:
    """Run a command by ssh as soon as the machine lets us in; return its words."""
    address = json.loads(daemon.proa("vm", "inspect", machine).out)[0]["Networks"][0]["Address"]
    words = ["ssh", "-i", str(key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    words += ["-o", "ConnectTimeout=10", "-o", "BatchMode=yes", f"me@{address.partition('/')[0]}", command]
    deadline = time.monotonic() + BOOT_S
    while True:
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.split()
        assert time.monotonic() < deadline, daemon.proa("vm", "logs", machine).out[-4000:]
        time.sleep(2)

# SPDX-License-Identifier: Apache-2.0
"""A whole Debian, from its disk image to ssh: cloud-init, DHCP, the guest agent, the power button.

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
        address = json.loads(daemon.proa("vm", "inspect", "deb").out)[0]["Networks"][0]["Address"]
        command = [
            "ssh",
            "-i",
            str(key),
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ]
        command += ["-o", "ConnectTimeout=10", "-o", "BatchMode=yes", f"me@{address.partition('/')[0]}"]
        deadline = time.monotonic() + BOOT_S
        while True:
            done = subprocess.run([*command, "hostname; sudo id -u"], capture_output=True, text=True)
            if done.returncode == 0:
                break
            assert time.monotonic() < deadline, daemon.proa("vm", "logs", "deb").out[-4000:]
            time.sleep(2)
        assert done.stdout.split() == ["deb", "0"]
        assert "Debian" in daemon.proa("vm", "exec", "deb", "/bin/uname", "-v").out
        daemon.proa("vm", "stop", "-t", "300", "deb", timeout_s=320)
        found = json.loads(daemon.proa("vm", "inspect", "deb").out)[0]
        assert found["Reason"] == "the guest powered off"
    finally:
        daemon.clean()

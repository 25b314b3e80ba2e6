# SPDX-License-Identifier: Apache-2.0
"""Capabilities, filters, devices, namespaces: what a container may do, and to whom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.parity.plugin import HULL
from tests.support.daemon import LIB, Daemon

DEFAULT_CAPABILITIES = "00000000a80425fb"


def shell(daemon: Daemon, *arguments: str) -> list[str]:
    *options, script = arguments
    return daemon.docker("run", "--rm", *options, "busybox", "sh", "-c", script).out.splitlines()


def status(daemon: Daemon, word: str, *options: str) -> str:
    return shell(daemon, *options, f"grep {word}: /proc/self/status")[0].split()[1]


@pytest.mark.sample
def test_capabilities(daemon: Daemon) -> None:
    """capabilities: Docker's default, --cap-add, --cap-drop"""
    assert status(daemon, "CapEff") == DEFAULT_CAPABILITIES
    assert (
        status(daemon, "CapBnd", "--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE") == "0000000000000400"
    )
    assert status(daemon, "CapEff", "-u", "nobody") == "0000000000000000"


def test_privileged(daemon: Daemon) -> None:
    """--privileged: all capabilities, mounts, devices, a writable /sys"""
    out = shell(
        daemon,
        "--privileged",
        "mount -t tmpfs none /mnt && echo mounted; mknod /x b 7 0 && echo made; "
        "test -w /sys/kernel && echo writable",
    )
    assert out == ["mounted", "made", "writable"]


def test_not_privileged(daemon: Daemon) -> None:
    """without it: no mounts, no new devices, /sys and /proc/sys read-only, masked paths"""
    script = (
        "mount -t tmpfs none /mnt 2>/dev/null || echo no; "
        "echo 1 2>/dev/null >/proc/sys/vm/swappiness || echo no; "
        "mkdir /sys/x 2>/dev/null || echo no; mknod /x b 254 0 && cat /x 2>/dev/null || echo no; "
        "wc -c </proc/interrupts"
    )
    assert shell(daemon, script) == ["no", "no", "no", "no", "0"]


def test_no_new_privileges(daemon: Daemon) -> None:
    """no-new-privileges"""
    assert status(daemon, "NoNewPrivs") == "0"
    assert status(daemon, "NoNewPrivs", "--security-opt", "no-new-privileges") == "1"


def test_seccomp_default(daemon: Daemon) -> None:
    """the default seccomp filter"""
    assert status(daemon, "Seccomp") == "2"


def test_seccomp_unconfined(daemon: Daemon) -> None:
    """seccomp=unconfined"""
    assert status(daemon, "Seccomp", "--security-opt", "seccomp=unconfined") == "0"


def test_seccomp_profile(daemon: Daemon, tmp_path: Path) -> None:
    """a seccomp profile of one's own"""
    file = tmp_path / "profile.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    file.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    options = ("--security-opt", f"seccomp={file}")
    assert shell(daemon, *options, "mkdir /x 2>&1; touch /y && echo fine") == [
        "mkdir: can't create directory '/x': Operation not permitted",
        "fine",
    ]


def test_sysctls(daemon: Daemon) -> None:
    """--sysctl"""
    out = shell(daemon, "--sysctl", "net.ipv4.ip_forward=1", "--sysctl", "kernel.msgmax=9000",
                "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax")  # fmt: skip
    assert out == ["1", "9000"]


def test_devices(daemon: Daemon) -> None:
    """/dev: what is in it by default"""
    out = shell(daemon, "ls /dev")
    assert {
        "null",
        "zero",
        "full",
        "random",
        "urandom",
        "tty",
        "ptmx",
        "pts",
        "shm",
        "mqueue",
        "fd",
        "stdin",
    } <= set(out)
    assert shell(daemon, "readlink /dev/fd; readlink /dev/ptmx") == ["/proc/self/fd", "pts/ptmx"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--device", "/dev/zero:/dev/toy"), id="--device"),
        pytest.param(("--device-cgroup-rule", "c 1:5 r"), id="--device-cgroup-rule"),
        pytest.param(("--pid", "host"), id="--pid host"),
        pytest.param(("--ipc", "host"), id="--ipc host"),
        pytest.param(("--ipc", "none"), id="--ipc none"),
        pytest.param(("--ipc", "private"), id="--ipc private"),
        pytest.param(("--ipc", "shareable"), id="--ipc shareable"),
        pytest.param(("--uts", "host"), id="--uts host"),
        pytest.param(("--userns", "host"), id="--userns host"),
        pytest.param(("--cgroupns", "host"), id="--cgroupns host"),
        pytest.param(("--cgroupns", "private"), id="--cgroupns private"),
        pytest.param(("--network", "host"), id="--network host"),
        pytest.param(("--network", "none"), id="--network none"),
        pytest.param(("--storage-opt", "size=1g"), id="--storage-opt"),
        pytest.param(("--security-opt", "label=disable"), id="label=disable"),
        pytest.param(("--security-opt", "apparmor=unconfined"), id="apparmor=unconfined"),
        pytest.param(("--security-opt", "systempaths=unconfined"), id="systempaths=unconfined"),
    ],
)
def test_modes(daemon: Daemon, options: tuple[str, ...]) -> None:
    """modes and devices"""
    daemon.docker("run", "--rm", *options, "busybox", "true")


@pytest.mark.parametrize("space", ["network", "pid", "ipc"])
def test_namespace_of_another(daemon: Daemon, sleeper: str, space: str) -> None:
    """a namespace of another container"""
    daemon.docker("run", "--rm", f"--{space}", f"container:{sleeper}", "busybox", "true")


@pytest.mark.sample
@pytest.mark.skipif(HULL == "container", reason="its kernel is the host's, and so are the modules")
def test_modprobe(daemon: Daemon) -> None:
    """modprobe in a privileged container: modules of the guest's kernel"""
    assert shell(daemon, "--privileged", "modprobe dummy && grep -c '^dummy ' /proc/modules") == ["1"]


@pytest.mark.skipif(HULL == "container", reason="its kernel is the host's")
def test_kernel(daemon: Daemon, tmp_path: Path) -> None:
    """a kernel of one's own, and words for its command line"""
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes((LIB / "kernel" / "vmlinuz").read_bytes())
    run = ("run", "--rm", "--kernel", str(kernel), "--kernel-args", "parity.word=7")
    assert "parity.word=7" in daemon.proa(*run, "busybox", "cat", "/proc/cmdline").out
    missing = daemon.proa("run", "--rm", "--kernel", "/nonesuch", "busybox", "true", check=False)
    assert "there is no such file on the daemon's host" in missing.err
    kernel.write_bytes(b"no kernel at all")
    bad = daemon.proa("run", "--rm", "--kernel", str(kernel), "busybox", "true", check=False)
    assert "could not be booted as a guest" in bad.err


def test_kernel_of_a_container(daemon: Daemon) -> None:
    """a kernel of one's own is refused where there is none"""
    annotation = ("--annotation", "proa.vm.kernel=/etc/passwd", "--isolation", "container")
    done = daemon.docker("run", "--rm", *annotation, "busybox", "true", check=False)
    assert "a container runs on the host's kernel" in done.err

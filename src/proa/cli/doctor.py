# SPDX-License-Identifier: Apache-2.0
"""``proa doctor``: what this host can do, what is missing, and the command that mends it.

Looks at the host directly, so that it works when the daemon does not; what only the daemon knows (whether a
guest really boots under KVM) is asked of it when it answers.
"""

from __future__ import annotations

import ctypes.util
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from proa.cli.context import get_client
from proa.cli.system import vm_acceleration
from proa.client.errors import ClientError
from proa.wire import routes
from proa.wire.system import Info

_MARKS = {"ok": "ok      ", "warn": "limited ", "fail": "missing "}
_LIB = Path(sys.prefix) / "lib" / "proa"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report: ``level`` is ok, warn or fail; ``mend`` a command, "" when none is needed."""

    level: str
    what: str
    detail: str
    mend: str = ""


@click.command()
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Say what this host can do, what is missing, and the command that mends it."""
    findings: list[Finding] = []
    for check in _CHECKS:
        findings += check()
    findings.append(_daemon(ctx))
    for finding in findings:
        click.echo(f"{_MARKS[finding.level]}{finding.what}: {finding.detail}")
        if finding.mend:
            click.echo(f"        mend it with: {finding.mend}")
    broken = [finding for finding in findings if finding.level == "fail"]
    click.echo(f"\n{len(broken)} missing" if broken else "\nNothing is missing.")
    if broken:
        raise click.exceptions.Exit(1)


def _programs() -> list[Finding]:
    needed = (
        ("crun", "crun", "runs containers"),
        ("conmon", "conmon", "keeps containers' output and exit status"),
        ("qemu-system-x86_64", "qemu-system-x86", "runs virtual machines"),
        ("qemu-img", "qemu-utils", "makes the disks of full machines"),
        ("dnsmasq", "dnsmasq-base", "tells full machines their addresses"),
        ("mke2fs", "e2fsprogs", "makes the writable disks of virtual machines"),
        ("ps", "procps", "answers docker top"),
        ("tini-static", "tini", "is the init of --init"),
    )
    findings = []
    for program, package, purpose in needed:
        found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if found:
            findings.append(Finding(level="ok", what=program, detail=found))
        else:
            findings.append(
                Finding(level="fail", what=program, detail=purpose, mend=f"apt install {package}")
            )
    return findings


def _machines() -> list[Finding]:
    """What only some full machines need: each is named when it is wanted and missing."""
    optional = (
        ("xorriso", "xorriso", "cloud-init in full machines"),
        ("qemu-system-aarch64", "qemu-system-arm", "aarch64 machines"),
        ("qemu-system-riscv64", "qemu-system-misc", "riscv64 machines"),
        ("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf", "machines with UEFI"),
    )
    findings = []
    for name, package, purpose in optional:
        if shutil.which(name) or Path(name).exists():
            findings.append(Finding(level="ok", what=purpose, detail=name))
        else:
            mend = f"apt install {package}"
            findings.append(Finding(level="warn", what=purpose, detail="not installed", mend=mend))
    return findings


def _libraries() -> list[Finding]:
    if ctypes.util.find_library("nftables"):
        return [Finding(level="ok", what="libnftables", detail="found")]
    detail = "publishes ports and isolates networks"
    return [Finding(level="fail", what="libnftables", detail=detail, mend="apt install nftables")]


def _own_files() -> list[Finding]:
    missing = [
        name
        for name in ("kernel/vmlinuz", "initramfs.cpio", "fs-server", "probe")
        if not (_LIB / name).exists()
    ]
    if not missing:
        return [Finding(level="ok", what="guest kernel and programs", detail=str(_LIB))]
    detail = f"not in {_LIB}: {', '.join(missing)}"
    return [Finding(level="fail", what="guest kernel and programs", detail=detail, mend="make setup")]


def _kernel() -> list[Finding]:
    release = platform.release()
    version = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    file_systems = Path("/proc/filesystems").read_text().split()
    findings = []
    for name in ("overlay", "erofs"):
        if name in file_systems:
            findings.append(Finding(level="ok", what=f"kernel: {name}", detail=release))
        else:
            findings.append(
                Finding(level="fail", what=f"kernel: {name}", detail="holds images", mend=f"modprobe {name}")
            )
    if version < (6, 12):
        detail = "before 6.12 each layer takes a loop device"
        findings.append(Finding(level="warn", what="kernel: EROFS from files", detail=detail))
    return findings


def _cgroups() -> list[Finding]:
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return [Finding(level="ok", what="cgroups", detail="v2")]
    if Path("/sys/fs/cgroup/memory").is_dir():
        return [Finding(level="ok", what="cgroups", detail="v1 or hybrid")]
    mend = "mount -t cgroup2 none /sys/fs/cgroup"
    return [Finding(level="fail", what="cgroups", detail="not mounted: no limits, no containers", mend=mend)]


def _devices() -> list[Finding]:
    findings = []
    tun = Path("/dev/net/tun")
    if tun.exists():
        findings.append(Finding(level="ok", what="/dev/net/tun", detail="virtual machines get a network"))
    else:
        findings.append(
            Finding(level="fail", what="/dev/net/tun", detail="no network for VMs", mend="modprobe tun")
        )
    if Path("/dev/kvm").exists():
        detail = "present; the daemon finds out whether a guest boots with it"
        findings.append(Finding(level="ok", what="/dev/kvm", detail=detail))
    else:
        detail = "virtual machines run under emulation (TCG), many times slower"
        findings.append(
            Finding(
                level="warn", what="/dev/kvm", detail=detail, mend="modprobe kvm_intel || modprobe kvm_amd"
            )
        )
    return findings


def _privilege() -> list[Finding]:
    if os.geteuid() == 0:
        return [Finding(level="ok", what="root", detail="the daemon can run here")]
    return [
        Finding(
            level="warn", what="root", detail="the daemon must be started by root", mend="sudo proa daemon"
        )
    ]


def _daemon(ctx: click.Context) -> Finding:
    try:
        info = get_client(ctx).call(routes.INFO, returns=Info)
    except ClientError as error:
        return Finding(level="warn", what="daemon", detail=str(error), mend="proa daemon &")
    detail = f"answers, runtimes {', '.join(sorted(info.runtimes))}"
    for text in vm_acceleration(info):
        detail += f"; virtual machines run with {text}"
    return Finding(level="ok", what="daemon", detail=detail)


_CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    _privilege,
    _programs,
    _machines,
    _libraries,
    _own_files,
    _kernel,
    _cgroups,
    _devices,
)

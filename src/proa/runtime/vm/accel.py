# SPDX-License-Identifier: Apache-2.0
"""How this host runs guests: by hardware (KVM) or by software emulation (TCG), found out by trying.

/dev/kvm may exist, even answer every question, and still not run a kernel (nested virtualisation that was
switched off half-way). So a real guest is booted with it, once, within a time limit; the verdict is kept
until the host reboots, QEMU or the guest kernel changes.

    cache dir/accelerator.json   {"key": …, "name": "tcg", "reason": …}
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from proa.host import process
from proa.model.errors import EngineError, Unavailable
from proa.runtime.vm import boot
from proa.runtime.vm.boot import Guest
from proa.runtime.vm.machine import MIB, Shape

KVM, TCG = "kvm", "tcg"
TIME_LIMIT_S = 10.0  # a guest under KVM greets within one second
_KVM_DEVICE = Path("/dev/kvm")
_CACHE = "accelerator.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """The verdict.

    :ivar name: "kvm" or "tcg".
    :ivar reason: one sentence for the user.
    :ivar qemu: the program that runs guests with it.
    :ivar qemu_version: as QEMU prints it, "7.2.22 (Debian …)".
    """

    name: str
    reason: str
    qemu: Path
    qemu_version: str


class _Verdict(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    name: str
    reason: str


async def probe_accelerator(
    cache_dir: Path, *, lib: Path, kernel: Path | None = None, time_limit_s: float = TIME_LIMIT_S
) -> Accelerator:
    """Find out how guests run here; the first time after a boot of the host this may take ``time_limit_s``.

    :raises Unavailable: QEMU or the guest kernel is missing.
    """
    qemu = find_qemu()
    version = await qemu_version(qemu)
    guest = guest_of(lib, kernel, qemu=qemu, accelerator=KVM)
    verdict = _no_device()
    if verdict is None:
        key = _key(version, guest)
        verdict = _read(cache_dir / _CACHE, key)
        if verdict is None:
            name, reason = await _try_kvm(guest, time_limit_s)
            verdict = _Verdict(key=key, name=name, reason=reason)
            _write(cache_dir / _CACHE, verdict)
    return Accelerator(name=verdict.name, reason=verdict.reason, qemu=qemu, qemu_version=version)


def find_qemu() -> Path:
    """Return the QEMU for this machine's architecture. Raises Unavailable."""
    name = f"qemu-system-{platform.machine()}"
    found = shutil.which(name)
    if found is None:
        raise Unavailable(f"{name} is not installed: apt install qemu-system-x86")
    return Path(found)


async def qemu_version(qemu: Path) -> str:
    """Return the version as QEMU prints it."""
    printed = (await process.run([qemu, "--version"], timeout_s=20)).stdout.decode(errors="replace")
    return printed.partition("\n")[0].partition("version ")[2].strip()


def guest_of(lib: Path, kernel: Path | None, *, qemu: Path, accelerator: str) -> Guest:
    """Return what is booted in a VM. Raises Unavailable when a part of it is missing."""
    guest = Guest(
        qemu=qemu,
        kernel=kernel or lib / "kernel" / "vmlinuz",
        initramfs=lib / "initramfs.cpio",
        accelerator=accelerator,
    )
    for path in (guest.kernel, guest.initramfs):
        if not path.is_file():
            raise Unavailable(f"a part of the guest is missing: {path}: run make setup")
    return guest


def _no_device() -> _Verdict | None:
    if not _KVM_DEVICE.exists():
        return _Verdict(key="", name=TCG, reason="software emulation, because this host has no /dev/kvm")
    if not os.access(_KVM_DEVICE, os.R_OK | os.W_OK):
        return _Verdict(key="", name=TCG, reason="software emulation, because /dev/kvm may not be opened")
    return None


async def _try_kvm(guest: Guest, time_limit_s: float) -> tuple[str, str]:
    shape = Shape(memory_bytes=256 * MIB, vcpus=1, nics=0)
    with tempfile.TemporaryDirectory(prefix="proa-kvm-") as home:
        try:
            async with boot.open_booted(guest, shape, Path(home), timeout_s=time_limit_s) as booted:
                return KVM, f"a test guest (Linux {booted.kernel_release}) booted with /dev/kvm"
        except EngineError as error:
            cause = " ".join(error.message.split())[:300]
            return TCG, f"software emulation, because a test guest failed with /dev/kvm: {cause}"


def _key(version: str, guest: Guest) -> str:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with guest.kernel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{boot_id} {version} {digest}"


def _read(path: Path, key: str) -> _Verdict | None:
    try:
        verdict = msgspec.json.decode(path.read_bytes(), type=_Verdict)
    except (OSError, msgspec.DecodeError):
        return None
    return verdict if verdict.key == key and verdict.name in (KVM, TCG) else None


def _write(path: Path, verdict: _Verdict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_bytes(msgspec.json.encode(verdict))
    temporary.replace(path)

# SPDX-License-Identifier: Apache-2.0
"""One guest for most tests: booted cold under software emulation (about 4 s), configured, its main process a
shell that waits. Tests of a machine's beginning and end make their own from the same template."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.agent import link as wire
from tests.integration.agent.link import Link, Pair
from tests.integration.agent.machine import LIB, Machine, entry, make_layer

_NEEDED = ("initramfs.cpio", "kernel/vmlinuz")
_APPLETS = (
    "sh cat date echo env false head hostname id ip kill ln ls mkdir mount od ping printf ps pwd rm sed "
    "seq sleep stat sync stty tail touch tr true tty umount uname wc yes dd df "
    "mknod chmod grep sysctl cut readlink"
).split()
MAIN = 1

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="needs root")


@dataclass(frozen=True)
class Disks:
    """Layers behind each other in one file, lowest first, and an ext4."""

    layers: Path
    extents: tuple[tuple[int, int], ...]
    writable: Path


@dataclass
class Guest:
    machine: Machine
    link: Link
    next_process: int = 100

    def run(self, *args: str, fields: tuple[Pair, ...] = ()) -> tuple[int, str, str]:
        """Run by EXEC to its end; return code, output and errors."""
        process = self.spawn(*args, fields=fields)
        code = self.link.wait(process)
        output = bytes(self.link.output[process, 1]).decode(), bytes(self.link.output[process, 2]).decode()
        self.link.request(wire.RELEASE, (wire.PROCESS, process))
        return code, *output

    def spawn(self, *args: str, credit: int = 1 << 20, fields: tuple[Pair, ...] = ()) -> int:
        process = self.next_process
        self.next_process += 1
        self.link.request(wire.EXEC, (wire.PROCESS, process), *description(*args, credit=credit), *fields)
        return process

    def shell(self, script: str) -> str:
        code, output, errors = self.run("sh", "-c", script)
        assert code == 0, (code, output, errors)
        return output


def description(*args: str, credit: int = 1 << 20) -> tuple[Pair, ...]:
    return (
        *((wire.ARG, arg) for arg in args),
        (wire.CAPABILITIES, wire.DEFAULT_CAPABILITIES),
        (wire.ATTACHED, 1),
        (wire.CREDIT_STDOUT, credit),
        (wire.CREDIT_STDERR, credit),
    )


def _layers(disks: Disks) -> list[Pair]:
    return [(wire.LAYER, [(wire.OFFSET, at), (wire.LENGTH, size)]) for at, size in disks.extents]


def configuration(disks: Disks, *more: Pair) -> tuple[Pair, ...]:
    return (
        (wire.ENTROPY, os.urandom(64)),
        (wire.WALL_CLOCK_NS, time.time_ns()),
        (wire.HOSTNAME, "guest"),
        (wire.DOMAINNAME, "example.org"),
        *_layers(disks),
        *more,
    )


def _base_layer() -> list[tuple[tarfile.TarInfo, bytes]]:
    busybox = Path("/bin/busybox").read_bytes()
    passwd = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"
    group = b"root:x:0:\nwheel:x:10:root\napp:x:1000:\nextra:x:2000:app\n"
    folder = tarfile.DIRTYPE
    return [
        *(entry(name, mode=0o755, kind=folder) for name in ("bin", "etc", "root", "tmp", "proc", "home")),
        entry("home/app", mode=0o755, kind=folder, owner=1000),
        entry("bin/busybox", busybox, mode=0o755),
        *(entry(f"bin/{name}", kind=tarfile.SYMTYPE, link="busybox") for name in _APPLETS),
        entry("etc/passwd", passwd),
        entry("etc/group", group),
        entry("etc/hosts", b"of the image\n"),
        entry("etc/machine-id", b""),
        entry("hidden", b"lower"),
        entry("text", b"lower"),
        entry("not-executable", b"#!/bin/sh\n"),
        entry("no-format", b"words", mode=0o755),
        entry("evil", kind=tarfile.SYMTYPE, link="../../../../run"),
    ]


@pytest.fixture(scope="session")
def disks() -> Iterator[Disks]:
    with tempfile.TemporaryDirectory(prefix="proa-agent-", dir="/tmp") as scratch:
        directory = Path(scratch)
        make_layer(directory / "0", _base_layer())
        make_layer(directory / "1", [entry(".wh.hidden"), entry("text", b"upper")])
        extents, at = [], 0
        with (directory / "layers").open("wb") as out:
            for name in ("0", "1"):
                content = (directory / name).read_bytes()
                extents.append((at, len(content)))
                at += len(content)
                out.write(content)
        writable = directory / "writable"
        with writable.open("wb") as file:
            file.truncate(1 << 30)
        for name in ("upper", "work"):
            (directory / "new" / name).mkdir(parents=True)
        subprocess.run(
            [
                "mke2fs",
                "-q",
                "-t",
                "ext4",
                "-E",
                "lazy_itable_init=1",
                "-d",
                str(directory / "new"),
                str(writable),
            ],
            check=True,
        )
        yield Disks(directory / "layers", tuple(extents), writable)


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="proa-agent-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


@dataclass(frozen=True)
class Template:
    memory: Path
    state: Path


@pytest.fixture(scope="session")
def template(scratch: Path) -> Template:
    if not all((LIB / name).exists() for name in _NEEDED) or not shutil.which("qemu-system-x86_64"):
        pytest.skip("needs QEMU and the guest's kernel: make setup")
    made = Template(scratch / "memory", scratch / "state")
    machine = Machine(scratch / "template", memory=made.memory)
    try:
        Link(scratch / "template/control", timeout_s=180).request(wire.HELLO, (wire.VERSION, 1))
        machine.save(made.state)
    finally:
        machine.stop()
    return made


def clone(
    template: Template, directory: Path, *, layers: Path | None = None, writable: Path | None = None
) -> Guest:
    machine = Machine(
        directory, memory=template.memory, incoming=template.state, layers=layers, writable=writable
    )
    try:
        machine.resume(template.state)
        link = Link(directory / "control")
        link.request(wire.HELLO, (wire.VERSION, 1))
    except BaseException:
        machine.stop()
        raise
    return Guest(machine, link)


@pytest.fixture
def fresh(template: Template, disks: Disks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A clone that has not been configured, with the layers and no writable disk."""
    directory = Path(tempfile.mkdtemp(prefix="pa-", dir="/tmp"))
    guest = clone(template, directory, layers=disks.layers)
    yield guest
    guest.machine.stop()
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def guest(template: Template, disks: Disks, scratch: Path) -> Iterator[Guest]:
    """Configured with two layers, an ext4 and two interfaces; the main process sleeps."""
    guest = clone(template, scratch / "guest", layers=disks.layers, writable=disks.writable)
    mac = bytes.fromhex("0242ac110002")
    first: list[Pair] = [
        (wire.IF_NAME, "eth0"),
        (wire.IF_MAC, mac),
        (wire.IF_MATCH_MAC, bytes.fromhex("525400000002")),
    ]
    second: list[Pair] = [(wire.IF_NAME, "eth1"), (wire.IF_ADDRESS, "10.9.0.2/24"), (wire.IF_MTU, 1400)]
    first += [(wire.IF_ADDRESS, "172.17.0.2/16"), (wire.IF_GATEWAY, "172.17.0.1")]
    try:
        guest.link.request(
            wire.CONFIGURE,
            *configuration(
                disks, (wire.WRITABLE_DISK, "vdb"), (wire.INTERFACE, first), (wire.INTERFACE, second)
            ),
            (wire.SYSCTL, [(wire.NAME, "net.ipv4.ip_forward"), (wire.VALUE, "1")]),
            (wire.FILE, [(wire.PATH, "/etc/hosts"), (wire.CONTENT, b"127.0.0.1 localhost\n")]),
            (
                wire.FILE,
                [(wire.PATH, "/etc/machine-id"), (wire.CONTENT, b"a" * 32 + b"\n"), (wire.IF_EMPTY, 1)],
            ),
            (wire.FILE, [(wire.PATH, "/etc/passwd"), (wire.CONTENT, b"no"), (wire.IF_EMPTY, 1)]),
            (wire.FILE, [(wire.PATH, "/evil/made/file"), (wire.CONTENT, b"inside")]),
            (
                wire.MOUNT,
                [(wire.KIND, 1), (wire.TARGET, "/scratch"), (wire.OPTIONS, "size=1m,mode=700,noexec")],
            ),
            (wire.PIDS_MAX, 100),
            (wire.SHM_SIZE, 1 << 20),
        )
        guest.link.request(
            wire.START,
            (wire.PROCESS, MAIN),
            *description("sh", "-c", "while read line; do echo got $line; done"),
            (wire.OPEN_STDIN, 1),
            (wire.MASKED_PATH, "/proc/kcore"),
            (wire.MASKED_PATH, "/proc/acpi"),
            (wire.READONLY_PATH, "/proc/sys"),
            (wire.CWD, "/made/for/you"),
        )
        yield guest
    finally:
        guest.machine.stop()
        print(guest.machine.read("console"))

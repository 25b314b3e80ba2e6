# SPDX-License-Identifier: Apache-2.0
"""A guest of QEMU's microvm for the tests of the agent: booted cold, or made a template and cloned."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from proa.storage.erofs import ImageWriter
from proa.storage.tar import Stream, iter_entries
from proa.storage.tree import Tree

LIB = Path(os.environ.get("PROA_TEST_LIB") or Path(sys.prefix) / "lib/proa")
MEMORY_MB = 256
PLACEHOLDER = 1 << 40
TEMPLATE_MACS = ("52:54:00:00:00:01", "52:54:00:00:00:02")
_MACHINE = "microvm,x-option-roms=off,pit=on,pic=on,rtc=on,isa-serial=on,acpi=on,memory-backend=mem"


def tsc_khz() -> int:
    match = re.search(r"cpu MHz\s*: ([0-9.]+)", Path("/proc/cpuinfo").read_text())
    assert match
    return int(float(match[1]) * 1000)


def make_layer(path: Path, entries: Iterable[tuple[tarfile.TarInfo, bytes]]) -> int:
    """Write an EROFS layer, padded to sectors; return its length."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for info, content in entries:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    stream = Stream(iter([archive.getvalue()]))
    tree = Tree(10000)
    with path.open("wb") as file:
        writer = ImageWriter(file)
        for entry in iter_entries(stream):
            node = tree.add(entry)
            if node is None:
                stream.skip(entry.stored)
                continue
            node.size = entry.size
            writer.write_content(node, stream.pass_on)
        tree.finish()
        writer.finish(tree.root, identity=bytes(16), tar_size=0)
    os.truncate(path, -(-path.stat().st_size // 4096) * 4096)
    return path.stat().st_size


def entry(
    name: str,
    content: bytes = b"",
    *,
    mode: int = 0o644,
    kind: bytes = tarfile.REGTYPE,
    link: str = "",
    owner: int = 0,
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.mode, info.type, info.linkname, info.uid, info.gid = mode, kind, link, owner, owner
    return info, content


class Machine:
    """One QEMU. Files lie in ``directory``: control, qmp, fs (sockets), log, exit, console."""

    def __init__(
        self,
        directory: Path,
        *,
        layers: Path | None = None,
        writable: Path | None = None,
        memory: Path | None = None,
        template: bool = False,
        incoming: Path | None = None,
    ) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        memory = memory or directory / "memory"
        share = "off" if incoming else "on"
        command = [
            *("qemu-system-x86_64", "-M", _MACHINE, "-nodefaults", "-no-user-config", "-no-reboot"),
            *("-display", "none", "-accel", "tcg,thread=multi,tb-size=32", "-cpu", "max", "-smp", "1"),
            *("-m", f"{MEMORY_MB}M"),
            *("-object", f"memory-backend-file,id=mem,size={MEMORY_MB}M,mem-path={memory},share={share}"),
            *(
                "-chardev",
                f"socket,id=qmp,path={directory}/qmp,server=on,wait=off",
                "-mon",
                "qmp,mode=control",
            ),
            *("-chardev", f"file,id=console,path={directory}/console", "-serial", "chardev:console"),
            *("-device", "virtio-serial-device,id=serial,max_ports=5"),
            *self._port(1, "control", f"socket,id=control,path={directory}/control,server=on,wait=off"),
            *self._port(2, "log", f"file,id=log,path={directory}/log,append=on"),
            *self._port(3, "exit", f"file,id=exit,path={directory}/exit,append=on"),
            *self._port(4, "fs", f"socket,id=fs,path={directory}/fs,server=on,wait=off"),
            *self._disk("layers", layers, "on"),
            *self._disk("writable", writable, "off"),
        ]
        for index, mac in enumerate(TEMPLATE_MACS):
            command += ["-netdev", f"user,id=net{index},restrict=on"]
            command += ["-device", f"virtio-net-device,id=nic{index},netdev=net{index},mac={mac}"]
        if incoming:
            command += ["-incoming", "defer"]
        else:
            arguments = (
                "console=ttyS0 quiet panic=-1 reboot=t mitigations=off init_on_alloc=0 no5lvl "
                f"tsc_early_khz={tsc_khz()} tsc=reliable no_timer_check"
            )
            command += ["-kernel", str(LIB / "kernel/vmlinuz"), "-initrd", str(LIB / "initramfs.cpio")]
            command += ["-append", arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self._wait_for_sockets()

    @staticmethod
    def _port(number: int, name: str, chardev: str) -> list[str]:
        device = f"virtserialport,bus=serial.0,nr={number},chardev={name},name=proa.{name}"
        return ["-chardev", chardev, "-device", device]

    @staticmethod
    def _disk(name: str, path: Path | None, read_only: str) -> list[str]:
        if path is None:
            node = f"driver=null-co,node-name={name}-node,size={PLACEHOLDER},read-zeroes=on"
        else:
            node = f"driver=raw,node-name={name}-node,read-only={read_only}"
            node += f",file.driver=file,file.filename={path}"
        return ["-blockdev", node, "-device", f"virtio-blk-device,id={name},drive={name}-node"]

    def _wait_for_sockets(self) -> None:
        for _ in range(500):
            if (self.directory / "fs").exists() and (self.directory / "qmp").exists():
                return
            assert self.process.poll() is None, "QEMU did not start"
            time.sleep(0.01)
        raise TimeoutError("QEMU opened no sockets")

    # --- template and clone ---

    def qmp(self, *commands: tuple[str, Mapping[str, object]]) -> None:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(20)
            link.connect(str(self.directory / "qmp"))
            file = link.makefile("rw")
            file.readline()
            for name, arguments in (("qmp_capabilities", {}), *commands):
                file.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
                file.flush()
                while "return" not in (answer := json.loads(file.readline())):
                    assert "error" not in answer, answer

    def wait_migrated(self) -> None:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(20)
            link.connect(str(self.directory / "qmp"))
            file = link.makefile("rw")
            file.readline()
            file.write('{"execute":"qmp_capabilities"}\n')
            file.flush()
            file.readline()
            for _ in range(400):
                file.write('{"execute":"query-migrate"}\n')
                file.flush()
                while "return" not in (answer := json.loads(file.readline())):
                    pass
                status = answer["return"].get("status")
                if status == "completed":
                    return
                assert status not in ("failed", "cancelled"), answer
                time.sleep(0.01)
        raise TimeoutError("migration")

    def save(self, state: Path) -> None:
        """Turn into a template: memory stays in its file, the devices go to ``state``."""
        ignore = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}
        self.qmp(
            ("stop", {}), ("migrate-set-capabilities", ignore), ("migrate", {"uri": f"exec:cat>{state}"})
        )
        self.wait_migrated()
        self.stop()

    def resume(self, state: Path) -> None:
        ignore = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}
        self.qmp(
            ("migrate-set-capabilities", ignore),
            ("migrate-set-parameters", {"announce-rounds": 0}),
            ("migrate-incoming", {"uri": f"exec:cat {state}"}),
        )
        self.wait_migrated()
        self.qmp(("cont", {}))

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def read(self, name: str) -> str:
        path = self.directory / name
        return path.read_text(errors="replace") if path.exists() else ""

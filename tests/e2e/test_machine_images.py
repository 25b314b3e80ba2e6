# SPDX-License-Identifier: Apache-2.0
"""Images as full machines: made into a disk, booted, and a disk made an image again."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import tarfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon

UP_S = 90.0
SCRIPT = """#!/bin/sh
id
pwd
echo "name $NAME"
for one in /odd/*; do stat -c "%n %F %a %u:%g %h %t,%T %s" "$one"; done
[ $(du -k /odd/holes | cut -f1) -lt 100 ] && echo sparse
[ "$1" = serve ] || exit 7
trap 'echo bye; sync; exit 0' USR1
echo kept >/odd/written
echo ready
while true; do sleep 0.1; done
"""
DOCKERFILE = """FROM busybox
ADD odd.tar /
COPY --chmod=755 script /script
ENV NAME=value
WORKDIR /work
STOPSIGNAL SIGUSR1
ENTRYPOINT ["/script"]
"""


@pytest.fixture
def machine(daemon: Daemon) -> Iterator[str]:
    name = f"m-{uuid.uuid4().hex[:8]}"
    yield name
    daemon.proa("vm", "rm", "-f", name, check=False)


@pytest.fixture
def image(daemon: Daemon, tmp_path: Path) -> Iterator[str]:
    """An image with every kind of file."""
    name = f"i-{uuid.uuid4().hex[:8]}"
    (tmp_path / "script").write_text(SCRIPT)
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    with tarfile.open(tmp_path / "odd.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for fields in (
            {"name": "odd/file", "mode": 0o4751, "uid": 12, "gid": 34, "content": b"content"},
            {"name": "odd/hard", "type": tarfile.LNKTYPE, "linkname": "odd/file"},
            {"name": "odd/device", "type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3, "mode": 0o666},
            {"name": "odd/fifo", "type": tarfile.FIFOTYPE, "mode": 0o600},
            {"name": "odd/link", "type": tarfile.SYMTYPE, "linkname": "nowhere", "mode": 0o777},
            {"name": "odd/holes", "content": bytes(4 << 20), "mode": 0o600},
        ):
            content = fields.pop("content", b"")
            info = tarfile.TarInfo()
            info.size = len(content)  # type: ignore[arg-type]
            for key, value in fields.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))  # type: ignore[arg-type]
    daemon.docker("build", "-q", "-t", name, str(tmp_path))
    yield name
    daemon.docker("rmi", "-f", name, check=False)


def wait_for(daemon: Daemon, machine: str, text: str) -> str:
    deadline = time.monotonic() + UP_S
    while text not in (printed := daemon.proa("vm", "logs", machine).out):
        assert time.monotonic() < deadline, printed
        time.sleep(0.2)
    return printed


def inspect(daemon: Daemon, machine: str) -> dict[str, Any]:  # Any: JSON
    found: dict[str, Any] = json.loads(daemon.proa("vm", "inspect", machine).out)[0]
    return found


def wait_for_end(daemon: Daemon, machine: str) -> None:
    deadline = time.monotonic() + UP_S
    while (found := inspect(daemon, machine))["State"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert found["Reason"] == "the guest powered off"


def create(daemon: Daemon, machine: str, image: str, *options: str) -> None:
    words = ("vm", "create", "--name", machine, "--headless", "-m", "192m", "--from-image", image)
    daemon.proa(*words, "--start", *options)


def test_an_image_boots(daemon: Daemon, machine: str, image: str) -> None:
    """Its program runs as in a container, on files that are as they were; its end is the machine's."""
    create(daemon, machine, image, "--network", "none", "--root-size", "64m", "--", "once")
    printed = wait_for(daemon, machine, "ended with exit code 7").replace("\r", "")
    assert "uid=0(root) gid=0(root)" in printed
    assert "\n/work\nname value\n" in printed
    for line in (
        "/odd/file regular file 4751 12:34 2 0,0 7",
        "/odd/hard regular file 4751 12:34 2 0,0 7",
        "/odd/device character special file 666 0:0 1 1,3 0",
        "/odd/fifo fifo 600 0:0 1 0,0 0",
        "/odd/link symbolic link 777 0:0 1 0,0 7",
        "sparse",
    ):
        assert line in printed
    wait_for_end(daemon, machine)
    assert inspect(daemon, machine)["Disks"][0]["Size"] == 64 << 20


def test_the_power_button_stops_the_program(daemon: Daemon, machine: str, image: str) -> None:
    create(daemon, machine, image, "--", "serve")
    printed = wait_for(daemon, machine, "ready")
    assert "got no address" not in printed
    daemon.proa("vm", "stop", machine)
    assert "bye" in daemon.proa("vm", "logs", machine).out
    assert inspect(daemon, machine)["Reason"] == "the guest powered off"


def test_what_cannot_be_made_of_an_image(daemon: Daemon, machine: str, image: str, tmp_path: Path) -> None:
    empty = f"e-{uuid.uuid4().hex[:8]}"
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        tar.add(__file__, "file")
    daemon.docker("import", str(tmp_path / "one.tar"), empty)
    large = f"l-{uuid.uuid4().hex[:8]}"
    (tmp_path / "large").write_bytes(b"x" * (40 << 20))
    (tmp_path / "Dockerfile").write_text("FROM busybox\nCOPY large /\n")
    daemon.docker("build", "-q", "-t", large, str(tmp_path))
    for options, why in (
        (("--from-image", "nothere"), "No such image"),
        (("--from-image", empty), "nothing to boot"),
        (("--from-image", large, "--root-size", "32m"), "does not fit its disk"),
        (("--from-image", image, "--root-size", "1m"), "are needed"),
        (("--from-image", image, "--cdrom", "/x"), "leave out an ISO image"),
        (("--from-image", image, "--arch", "riscv64"), "is for x86_64"),
        (("--from-image", image, "--disk", "root=1m"), "two disks are called root"),
        (("--disk", "1m", "--root-size", "1g"), "need an image"),
    ):
        done = daemon.proa("vm", "create", "--name", machine, *options, check=False)
        assert done.status == 1, options
        assert why in done.err
        assert daemon.proa("vm", "inspect", machine, check=False).status == 1
    daemon.docker("rmi", empty, large)


def test_what_a_machine_wrote_becomes_an_image(daemon: Daemon, machine: str, image: str) -> None:
    create(daemon, machine, image, "--network", "none", "--root-size", "64m", "--", "serve")
    wait_for(daemon, machine, "ready")
    refused = daemon.proa("image", "from-vm", machine, check=False)
    assert "stop it to make an image" in refused.err
    daemon.proa("vm", "stop", machine)
    back = f"{image}-back"
    words = ("image", "from-vm", "-t", f"{back}:2", "-c", 'CMD ["/script"]', "-c", "ENV NAME=other", machine)
    assert daemon.proa(*words).out.startswith("sha256:")
    printed = daemon.docker("run", "--rm", "--entrypoint", "/script", f"{back}:2", check=False)
    assert printed.status == 7
    for line in (
        "name other",
        "/odd/file regular file 4751 12:34 2 0,0 7",
        "/odd/device character special file 666 0:0 1 1,3 0",
        "/odd/fifo fifo 600 0:0 1 0,0 0",
        "/odd/written regular file 644 0:0 1 0,0 5",
    ):
        assert line in printed.out
    config = json.loads(daemon.docker("image", "inspect", f"{back}:2").out)[0]
    assert (config["Architecture"], config["Config"]["Cmd"]) == ("amd64", ["/script"])
    assert len(config["RootFS"]["Layers"]) == 1
    daemon.docker("rmi", f"{back}:2")


def test_the_root_partition_is_found(daemon: Daemon, machine: str, tmp_path: Path) -> None:
    """The largest file system that has an /etc; what has none is told."""
    blank = f"b-{machine}"
    daemon.proa("vm", "create", "--name", blank, "--disk", "1m")
    refused = daemon.proa("image", "from-vm", blank, check=False)
    assert "none of its disks has a root file system" in refused.err
    daemon.proa("vm", "rm", blank)

    (tmp_path / "root" / "etc").mkdir(parents=True)
    (tmp_path / "root" / "etc" / "motd").write_text("found\n")
    (tmp_path / "data").mkdir()
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
        for number, (start, sectors) in enumerate(((2048, 16384), (20480, 32768))):
            file.seek(446 + 16 * number)
            file.write(struct.pack("<B3xB3xII", 0, 0x83, start, sectors))
        file.seek(510)
        file.write(b"\x55\xaa")
    for directory, start, size in (("root", 2048, "8m"), ("data", 20480, "16m")):
        words = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tmp_path / directory)]
        words += ["-E", f"offset={start * 512}"]
        subprocess.run([*words, disk, size], check=True)
    daemon.proa("vm", "create", "--name", machine, "--disk", str(disk))
    image = daemon.proa("image", "from-vm", machine).out.strip()
    name = f"c-{machine}"
    daemon.docker("create", "--name", name, image, "/none")
    try:
        assert daemon.docker("cp", f"{name}:/etc/motd", "-").out.count("found")
    finally:
        daemon.docker("rm", name)
        daemon.docker("rmi", image)

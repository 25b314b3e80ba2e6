# SPDX-License-Identifier: Apache-2.0
"""Full machines copied: forks, archives, and what they take on disk."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import subprocess
import tarfile
import threading
import uuid
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_machines import (
    LINUX,
    create,
    inspect,
    is_alive,
    type_and_read,
    wait_for_console,
)
from tests.support.daemon import PROA, Daemon


@pytest.fixture
def machine(daemon: Daemon) -> Iterator[str]:
    """The name of a machine that is taken away after the test, with those whose name begins with it."""
    name = f"m-{uuid.uuid4().hex[:8]}"
    yield name
    for one in daemon.proa("vm", "ls", "-q", "--filter", f"name={name}").out.split():
        daemon.proa("vm", "rm", "-f", one, check=False)


def nothing_left(daemon: Daemon) -> bool:
    """Whether every directory of machines is accounted for."""
    known = {vm["Id"] for vm in (inspect(daemon, name) for name in daemon.proa("vm", "ls", "-q").out.split())}
    return {path.name for path in (daemon.data_root / "machines").iterdir()} <= known


def test_a_running_machine_is_copied_as_it_is(daemon: Daemon, machine: str, tmp_path: Path) -> None:
    """Disks of one moment, while it goes on: as a fork, and as an archive that becomes a machine again."""
    create(daemon, machine, *LINUX, "--disk", "8m", "--disk", "data=4m", "--user", "me", "--start")
    wait_for_console(daemon, machine, "guest: up")
    type_and_read(
        daemon, machine, "echo one >/dev/vda; echo two >/dev/vdb; sync; echo written ''\n", "written \r"
    )
    daemon.proa("vm", "fork", "--start", machine, f"{machine}-f")
    archive = tmp_path / "machine.tar"
    daemon.proa("vm", "export", "-o", str(archive), machine)
    assert archive.stat().st_mode & 0o777 == 0o600
    assert inspect(daemon, machine)["State"] == "running"
    type_and_read(daemon, machine, "echo changed >/dev/vda; sync; echo goes on ''\n", "goes on \r")

    daemon.proa("vm", "import", "--name", f"{machine}-i", str(archive))
    daemon.proa("vm", "start", f"{machine}-i")
    for copy in (f"{machine}-f", f"{machine}-i"):
        wait_for_console(daemon, copy, "guest: up")
        type_and_read(
            daemon, copy, "echo has $(head -n1 /dev/vda) $(head -n1 /dev/vdb) ''\n", "has one two \r"
        )
    original, fork, imported = (inspect(daemon, one) for one in (machine, f"{machine}-f", f"{machine}-i"))
    macs = {one["Config"]["Nics"][0]["Mac"] for one in (original, fork, imported)}
    addresses = {one["Networks"][0]["Address"] for one in (original, fork, imported)}
    assert (len(macs), len(addresses)) == (3, 3)
    assert nothing_left(daemon)


def test_a_stopped_machine_is_copied(daemon: Daemon, machine: str, tmp_path: Path) -> None:
    """Without snapshots, which are the original's; it may be carried away and come back as it was."""
    create(daemon, machine, *LINUX, "--network", "none", "--disk", "8m", "-p", "127.0.0.1:0:80")
    daemon.proa("vm", "snapshot", "create", machine, "s")
    usage = daemon.proa("system", "df", "-v").out
    assert "Virtual Machines" in usage
    assert f"{machine}  " in usage
    assert "created  snapshots 1" in usage
    daemon.docker("system", "df", "-v")

    daemon.proa("vm", "fork", machine, f"{machine}-f")
    assert "s" not in daemon.proa("vm", "snapshot", "ls", f"{machine}-f").out.split()
    assert inspect(daemon, f"{machine}-f")["Config"]["PortBindings"] is None
    assert daemon.proa("vm", "fork", machine, f"{machine}-f", check=False).status == 1

    archive = tmp_path / "machine.tar"
    daemon.proa("vm", "export", "-o", str(archive), machine)
    assert "already in use" in daemon.proa("vm", "import", str(archive), check=False).err
    before = inspect(daemon, machine)["Config"]
    daemon.proa("vm", "rm", machine)
    assert daemon.proa("vm", "import", str(archive)).out.strip() == machine
    after = inspect(daemon, machine)["Config"]
    assert after["Nics"] == before["Nics"]
    assert after["PortBindings"] == before["PortBindings"]
    assert [disk["Size"] for disk in inspect(daemon, machine)["Disks"]] == [8 << 20]


def test_an_archive_of_a_stranger_is_not_trusted(daemon: Daemon, machine: str, tmp_path: Path) -> None:
    create(daemon, machine, *LINUX, "--network", "none", "--disk", "4m")
    archive = tmp_path / "machine.tar"
    daemon.proa("vm", "export", "-o", str(archive), machine)
    members = _members(archive)
    manifest = json.loads(members["machine.json"])
    backed = tmp_path / "backed.qcow2"
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/shadow", "-F", "raw", str(backed), "4m"]
    subprocess.run(words, check=True)
    changed = dict(members, **{"disk0.qcow2": members["disk0.qcow2"][:-1] + b"x"})
    missing = {name: data for name, data in members.items() if name != "kernel"}
    for content, why in (
        (archive.read_bytes()[:-4096], "unexpected EOF"),
        (b"", "not the archive"),
        (b"nonsense" * 1000, "invalid"),
        (_tar({"x": b"1"}), "has no machine.json"),
        (_tar(changed), "'disk0.qcow2' is not what it was"),
        (_tar(missing), "'kernel' is missing"),
        (_tar({**members, "machine.json": b"{}"}), "cannot be read"),
        (_tar({**members, "machine.json": json.dumps({**manifest, "Version": 9}).encode()}), "version 9"),
        (_with(members, manifest, "disk0.qcow2", backed.read_bytes()), "has a backing file"),
        (_with(members, manifest, "machine.json", b"", name="../x"), "Invalid virtual machine name"),
        (_with(members, manifest, "machine.json", b"", instance="a\nb: c"), "invalid instance id"),
    ):
        archive.write_bytes(content)
        name = () if "machine name" in why else ("--name", f"{machine}-i")
        done = daemon.proa("vm", "import", *name, str(archive), check=False)
        assert (done.status, done.out) == (1, ""), why
        assert why in done.err
        assert nothing_left(daemon)
    manifest["Config"] |= {"Cdrom": "/etc/shadow", "Autostart": True}
    archive.write_bytes(_tar({**members, "machine.json": json.dumps(manifest).encode()}))
    daemon.proa("vm", "import", "--name", f"{machine}-i", str(archive))
    config = inspect(daemon, f"{machine}-i")["Config"]
    assert (config["Cdrom"], config["Autostart"]) == ("", False)


def test_a_disk_that_its_qemu_has_forged_is_not_opened(daemon: Daemon, machine: str, tmp_path: Path) -> None:
    """A guest that has taken over its QEMU can write the header: QEMU would open what it names, as root."""
    create(daemon, machine, *LINUX, "--network", "none", "--disk", "4m")
    disk = daemon.data_root / "machines" / inspect(daemon, machine)["Id"] / "disk0.qcow2"
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/shadow", "-F", "raw", str(disk), "4m"]
    subprocess.run(words, check=True)
    for command in (("start", machine), ("snapshot", "ls", machine), ("fork", machine, f"{machine}-f")):
        done = daemon.proa("vm", *command, check=False)
        assert done.status == 1
        assert "has a backing file" in done.err
    assert inspect(daemon, machine)["State"] == "created"
    assert nothing_left(daemon)


def test_images_by_address(daemon: Daemon, machine: str, tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "8m"], check=True)
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/image.qcow2"
        for source, why in (
            (address, "a checksum is needed"),
            (f"{address}#sha256:{'0' * 64}", f"its checksum is sha256:{digest}"),
            (f"{address}x#sha256:{digest}", "invalid response status 404"),
        ):
            done = daemon.proa("vm", "create", "--name", machine, "--disk", source, check=False)
            assert done.status == 1
            assert why in done.err
            assert nothing_left(daemon)
        create(daemon, machine, "--network", "none", "--disk", f"{address}#sha256:{digest}:16m")
        server.shutdown()
    assert inspect(daemon, machine)["Disks"][0]["Size"] == 16 << 20
    disc = f"{address}#sha256:{digest}"  # which is kept: the server has gone
    create(daemon, f"{machine}-c", *LINUX, "--network", "none", "--cdrom", disc)
    assert "reclaimed space: 0B" not in daemon.proa("vm", "prune").out
    daemon.proa("vm", "start", f"{machine}-c")
    daemon.proa("vm", "fork", f"{machine}-c", f"{machine}-d")
    daemon.proa("vm", "start", f"{machine}-d")


def test_what_a_killed_daemon_was_copying_is_cleared(daemon: Daemon, machine: str) -> None:
    create(daemon, machine, *LINUX, "--network", "none", "--disk", "4m", "--start")
    (daemon.data_root / "machines" / ".work-x").mkdir()
    words = [str(PROA), "vm", "fork", machine, f"{machine}-f"]
    with subprocess.Popen(
        words, env=daemon.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as fork:
        daemon.restart(signal.SIGKILL)
        fork.wait(60)
    assert nothing_left(daemon)
    found = inspect(daemon, machine)
    assert found["State"] == "running"
    assert is_alive(found["Pid"])
    daemon.proa("vm", "fork", machine, f"{machine}-g")


def _members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {one.name: file.read() for one in tar if (file := tar.extractfile(one))}


def _tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _with(
    members: dict[str, bytes],
    manifest: dict[str, Any],  # Any: JSON
    changed: str,
    data: bytes,
    *,
    name: str = "",
    instance: str = "",
) -> bytes:
    """An archive that tells the truth about a member that is another one."""
    manifest = json.loads(json.dumps(manifest))
    for file in manifest["Files"]:
        if file["Name"] == changed:
            file |= {"Digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "Size": len(data)}
    manifest["Name"] = name or manifest["Name"]
    manifest["InstanceId"] = instance or manifest["InstanceId"]
    members = {**members, **({} if changed == "machine.json" else {changed: data})}
    return _tar({**members, "machine.json": json.dumps(manifest).encode()})

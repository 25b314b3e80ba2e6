# SPDX-License-Identifier: Apache-2.0
"""Full machines as a user has them: ``proa vm``, guests that are Linux and guests that are not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import LIB, PROA, Daemon

GUEST = LIB / "test-guest"
UP_S = 90.0  # a guest of ours needs ten seconds under emulation on a busy host
LINUX = (
    "--kernel",
    str(GUEST / "vmlinuz"),
    "--initrd",
    str(GUEST / "initrd"),
    "--append",
    "console=ttyS0 quiet",
)


@pytest.fixture
def machine(daemon: Daemon) -> Iterator[str]:
    """The name of a machine that is taken away after the test."""
    name = f"m-{uuid.uuid4().hex[:8]}"
    yield name
    daemon.proa("vm", "rm", "-f", name, check=False)


@pytest.fixture
def network(daemon: Daemon) -> Iterator[str]:
    name = f"n-{uuid.uuid4().hex[:8]}"
    daemon.docker("network", "create", name)
    yield name
    daemon.docker("network", "rm", name, check=False)


def wait_for(what: Callable[[], bool], why: str) -> None:
    deadline = time.monotonic() + UP_S
    while not what():
        assert time.monotonic() < deadline, why
        time.sleep(0.1)


def wait_for_console(daemon: Daemon, machine: str, text: str) -> str:
    wait_for(
        lambda: text in daemon.proa("vm", "logs", machine).out,
        f"{text!r} on the console of {machine}",
    )
    return daemon.proa("vm", "logs", machine).out


def inspect(daemon: Daemon, machine: str) -> dict[str, Any]:  # Any: JSON
    found: dict[str, Any] = json.loads(daemon.proa("vm", "inspect", machine).out)[0]
    return found


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def create(daemon: Daemon, machine: str, *options: str) -> None:
    daemon.proa("vm", "create", "--name", machine, "--headless", "--memory", "192m", *options)


def test_a_linux_guest(daemon: Daemon, machine: str, network: str, tmp_path: Path) -> None:
    """From a disk image to a neighbour of containers: names, ports, console, seed, disks, shutdown."""
    image = tmp_path / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "8m"], check=True)
    create(
        daemon,
        machine,
        *LINUX,
        *("--network", f"{network},alias=www", "-p", "127.0.0.1:0:80", "--user", "me"),
        *("--disk", f"{image}:16m", "--disk", "data=4m", "--label", "a=b", "--start"),
    )
    printed = wait_for_console(daemon, machine, "guest: up")
    found = inspect(daemon, machine)
    address = found["Networks"][0]["Address"].partition("/")[0]
    gateway = found["Networks"][0]["Gateway"]
    assert f"guest: {machine} has {address}, router {gateway}, names from {gateway}, mtu 1500" in printed
    assert f"guest: disk disk0 of {(16 << 20) // 512} sectors" in printed
    assert "guest: disk seed of" in printed

    for name in (machine, "www"):
        page = daemon.docker(
            "run", "--rm", "--network", network, "busybox", "wget", "-qO-", f"http://{name}/"
        )
        assert page.out.strip() == machine
    port = found["Ports"]["80/tcp"][0]["HostPort"]
    assert f"80/tcp -> 127.0.0.1:{port}" in daemon.proa("vm", "port", machine).out
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
        assert answer.read().decode().strip() == machine

    server = f"c-{machine}"
    daemon.docker("run", "-d", "--name", server, "--network", network, "busybox", "httpd", "-f", "-h", "/etc")
    try:
        assert "root:" in type_and_read(daemon, machine, f"wget -qO- http://{server}/passwd\n", "root:")
    finally:
        daemon.docker("rm", "-f", server)

    daemon.proa("vm", "disk", "resize", machine, "data", "8m")
    expected = f"{(8 << 20) // 512}"
    assert expected in type_and_read(daemon, machine, "cat /sys/block/vdb/size\n", expected)
    assert daemon.proa("vm", "disk", "resize", machine, "data", "1m", check=False).status == 1
    assert machine in daemon.proa("vm", "stats", machine).out

    daemon.proa("vm", "stop", machine)
    found = inspect(daemon, machine)
    assert (found["State"], found["Reason"]) == ("stopped", "the guest powered off")
    assert found["Networks"] == []
    assert daemon.proa("vm", "stop", machine).out.strip() == machine  # as it is already


def test_a_guest_agent_runs_commands(daemon: Daemon, machine: str) -> None:
    create(daemon, machine, *LINUX, "--network", "none", "--start")
    wait_for_console(daemon, machine, "guest: up")
    wait_for(
        lambda: daemon.proa("vm", "exec", machine, "/bin/busybox", "true", check=False).status == 0,
        "the agent answers",
    )
    script = "read line; echo got $line $WORD; echo bad >&2; exit 3"
    words = ("vm", "exec", "-i", "-e", "WORD=you", machine, "/bin/sh", "-c", script)
    done = daemon.proa(*words, stdin="me\n", check=False)
    assert (done.status, done.out, done.err) == (3, "got me you\n", "bad\n")
    big = daemon.proa("vm", "exec", machine, "/bin/busybox", "seq", "200000").out
    assert big.endswith("\n200000\n")
    missing = daemon.proa("vm", "exec", machine, "/nowhere", check=False)
    assert missing.status == 1
    assert "No such file" in missing.err
    late = daemon.proa("vm", "exec", "--timeout", "1", machine, "/bin/sleep", "60", check=False)
    assert "did not end within 1 s" in late.err
    tty = daemon.proa("vm", "exec", "-it", machine, "/bin/sh", check=False)
    assert f"proa vm ssh {machine}" in tty.err


def test_files_go_in_and_out(daemon: Daemon, machine: str, tmp_path: Path) -> None:
    """With the rules of docker cp, by the agent and the tar of the guest."""
    create(daemon, machine, *LINUX, "--network", "none", "--start")
    wait_for_console(daemon, machine, "guest: up")
    tree = tmp_path / "tree"
    deep = tree / ("d" * 90) / ("e" * 90)
    deep.mkdir(parents=True)
    (deep / "file").write_text("deep")
    (tree / "big").write_bytes(os.urandom(3 << 20))
    (tree / "link").symlink_to("big")
    (tree / "big").chmod(0o640)
    cp = ("vm", "cp", "-q")
    wait_for(
        lambda: daemon.proa(*cp, str(tree), f"{machine}:/", check=False).status == 0,
        "the agent answers",
    )
    daemon.proa(*cp, str(tree / "big"), f"{machine}:/tree/big2")
    back = tmp_path / "back"
    daemon.proa(*cp, f"{machine}:/tree", str(back))
    assert (back / deep.relative_to(tree) / "file").read_text() == "deep"
    assert (back / "big").read_bytes() == (back / "big2").read_bytes() == (tree / "big").read_bytes()
    assert (back / "big").stat().st_mode & 0o777 == 0o640
    assert (back / "link").readlink() == Path("big")
    daemon.proa(*cp, "-L", f"{machine}:/tree/link", str(tmp_path / "followed"))
    assert (tmp_path / "followed").read_bytes() == (tree / "big").read_bytes()
    daemon.proa(*cp, f"{machine}:/tree/.", str(tmp_path / "inside"))
    assert (tmp_path / "inside" / "link").is_symlink()
    for words, why in (
        ((f"{machine}:/nowhere", str(tmp_path)), "Could not find the file /nowhere"),
        ((str(tree), f"{machine}:/no/where/"), "Could not find the file /no/"),
        ((str(tree), f"{machine}:/tree/big"), "cannot copy directory"),
        ((f"{machine}:/a", f"{machine}:/b"), "copying between virtual machines"),
        ((str(tree), "nobody:/"), "nobody"),
    ):
        done = daemon.proa(*cp, *words, check=False)
        assert done.status == 1
        assert why in done.err
    left = daemon.proa("vm", "exec", machine, "/bin/ls", "/tmp")
    assert left.out == ""
    daemon.proa("vm", "kill", machine)
    assert "not running" in daemon.proa(*cp, f"{machine}:/tree", str(tmp_path), check=False).err


def test_snapshots(daemon: Daemon, machine: str) -> None:
    create(daemon, machine, *LINUX, "--network", "none", "--disk", "4m", "--disk", "4m")
    daemon.proa("vm", "snapshot", "create", machine, "empty")
    assert daemon.proa("vm", "snapshot", "create", machine, "empty", check=False).status == 1
    daemon.proa("vm", "start", machine)
    wait_for_console(daemon, machine, "guest: up")
    write = "echo {0} >/dev/vda; sync; X={0}; echo done {0}\n"
    read = "echo is $X in $(grep -c {} /dev/vda)\n"
    type_and_read(daemon, machine, write.format("first"), "done first")
    daemon.proa("vm", "snapshot", "create", machine, "running")
    type_and_read(daemon, machine, write.format("other"), "done other")
    daemon.proa("vm", "snapshot", "restore", machine, "running")
    type_and_read(daemon, machine, read.format("first"), "is first in 1")
    listed = daemon.proa("vm", "snapshot", "ls", machine).out.splitlines()
    assert [line.split()[0] for line in listed[1:]] == ["empty", "running"]
    assert "stop" in daemon.proa("vm", "snapshot", "restore", machine, "empty", check=False).err
    daemon.proa("vm", "snapshot", "rm", machine, "running")
    daemon.proa("vm", "kill", machine)
    daemon.proa("vm", "snapshot", "restore", machine, "empty")
    daemon.proa("vm", "snapshot", "rm", machine, "empty")
    assert "no snapshot" in daemon.proa("vm", "snapshot", "rm", machine, "empty", check=False).err
    daemon.proa("vm", "start", machine)
    wait_for(lambda: daemon.proa("vm", "logs", machine).out.count("guest: up") == 2, "it is up again")
    type_and_read(daemon, machine, "echo has $(grep -c first /dev/vda)\n", "has 0")


def type_and_read(daemon: Daemon, machine: str, typed: str, wanted: str) -> str:
    """Type at the console until an answer comes; leave it with the keys."""
    command = [str(PROA), "vm", "console", machine]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=daemon.env
    ) as console:
        assert console.stdin is not None
        assert console.stdout is not None
        console.stdin.write(typed.encode())
        console.stdin.flush()
        seen = ""
        deadline = time.monotonic() + UP_S
        while wanted not in seen.replace(typed.strip(), "") and time.monotonic() < deadline:
            seen += os.read(console.stdout.fileno(), 4096).decode(errors="replace")
        console.stdin.write(b"\x1d")  # ctrl-]
        console.stdin.flush()
        assert console.wait(20) == 0
    return seen


def test_it_outlives_the_daemon(daemon: Daemon, machine: str, network: str) -> None:
    create(daemon, machine, *LINUX, "--network", network, "--start")
    wait_for_console(daemon, machine, "guest: up")
    pid = inspect(daemon, machine)["Pid"]
    daemon.proa("vm", "pause", machine)
    daemon.restart(signal.SIGKILL)
    found = inspect(daemon, machine)
    assert (found["State"], found["Pid"]) == ("paused", pid)
    daemon.proa("vm", "resume", machine)
    assert "hi there" in type_and_read(daemon, machine, "echo hi '' there\n", "hi  there").replace("  ", " ")
    page = daemon.docker("run", "--rm", "--network", network, "busybox", "wget", "-qO-", f"http://{machine}/")
    assert page.out.strip() == machine
    daemon.proa("vm", "reboot", machine)  # its address is told anew, by a responder of the new daemon
    assert inspect(daemon, machine)["Pid"] != pid
    wait_for(lambda: daemon.proa("vm", "logs", machine).out.count("guest: up") == 2, "the guest is up again")
    daemon.proa("vm", "rm", "-f", machine)


def test_a_qemu_that_dies_is_told_of(daemon: Daemon, machine: str) -> None:
    create(daemon, machine, *LINUX, "--network", "none", "--start")
    since = str(time.time())
    pid = inspect(daemon, machine)["Pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: inspect(daemon, machine)["State"] == "crashed", "the end is noticed")
    reason = "QEMU was ended by signal 9 (SIGKILL)"
    assert inspect(daemon, machine)["Reason"] == reason
    told = daemon.docker("events", "--since", since, "--until", str(time.time()), "--filter", "type=vm").out
    assert "crash" in told
    assert reason in told
    # And while no daemon looks.
    daemon.proa("vm", "start", machine)
    pid = inspect(daemon, machine)["Pid"]
    daemon.stop(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    daemon.start()
    found = inspect(daemon, machine)
    assert (found["State"], found["Reason"]) == ("stopped", "it ended while no daemon watched it")


def test_grub_without_a_system_is_a_guest_too(daemon: Daemon, machine: str, tmp_path: Path) -> None:
    disk = tmp_path / "grub.img"
    make_grub_disk(disk)
    daemon.proa(
        "vm", "create", "--name", machine, "-m", "64m", "--network", "none", "--disk", f"{disk}:8m", "--start"
    )
    wait_for_console(daemon, machine, "grub rescue>")
    assert "unknown command" in type_and_read(daemon, machine, "nonsense\r", "nknown command").lower()
    picture = tmp_path / "screen.png"
    daemon.proa("vm", "screenshot", machine, str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    access = daemon.proa("vm", "vnc", machine).out
    assert access.startswith("127.0.0.1:59")
    # It has no system that would obey the power button.
    daemon.proa("vm", "stop", "-t", "1", machine)
    assert inspect(daemon, machine)["Reason"] == "stopped by force"


def make_grub_disk(disk: Path) -> None:
    """A disk with nothing but GRUB, which finds no files and speaks on the serial line."""
    folder = Path("/usr/lib/grub/i386-pc")
    config = disk.with_suffix(".cfg")
    config.write_text("serial --unit=0\nterminal_output serial\nterminal_input serial\n")
    core = disk.with_suffix(".core")
    modules = ["biosdisk", "serial", "terminal", "minicmd"]
    words = ["grub-mkimage", "-O", "i386-pc", "-p", "/none", "-c", str(config), "-o", str(core), *modules]
    subprocess.run(words, check=True)
    disk.write_bytes((folder / "boot.img").read_bytes() + core.read_bytes())


@pytest.mark.parametrize(
    ("architecture", "firmware"),
    [
        ("aarch64", "/usr/lib/u-boot/qemu_arm64/u-boot.bin"),
        ("riscv64", "/usr/lib/u-boot/qemu-riscv64/u-boot.bin"),
    ],
)
def test_other_processors(daemon: Daemon, machine: str, architecture: str, firmware: str) -> None:
    if shutil.which(f"qemu-system-{architecture}") is None:
        pytest.skip("its QEMU is not installed")
    create(daemon, machine, "--arch", architecture, "--firmware", firmware, "--network", "none", "--start")
    wait_for_console(daemon, machine, "U-Boot 20")
    daemon.proa("vm", "kill", machine)
    assert inspect(daemon, machine)["Reason"] == "killed"


def test_what_cannot_be(daemon: Daemon, machine: str, tmp_path: Path) -> None:
    """Wrong input leaves a sentence and nothing else."""
    backed = tmp_path / "backed.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/shadow", "-F", "raw", backed, "8m"],
        check=True,
    )
    data = tmp_path / "data.qcow2"
    options = f"data_file={tmp_path / 'x'},data_file_raw=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, data, "8m"], check=True)
    huge = tmp_path / "huge.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", huge, str(1 << 50)], check=True)
    torn = tmp_path / "torn.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", torn, "8m"], check=True)
    torn.write_bytes(torn.read_bytes()[:200].ljust(70000, b"\xff"))
    for disk, why in (
        (str(backed), "has a backing file"),
        (str(data), "keeps its data in another file"),
        (str(huge), "are possible"),
        (str(torn), "cannot be read"),
        (f"{tmp_path}/missing.img", "no such file"),
        (f"{backed.parent}/huge.qcow2:1m", "are possible"),
        ("9999t", "are possible"),
    ):
        done = daemon.proa("vm", "create", "--name", machine, "--disk", disk, check=False)
        assert (done.status, done.out) == (1, "")
        assert why in done.err
    for options_, why in (
        (("--kernel", "/nowhere"), "no such file"),
        ((*LINUX, "--network", "nowhere"), "network nowhere not found"),
        ((*LINUX, "--arch", "vax"), "unknown architecture"),
        ((*LINUX, "--firmware", "open"), "unknown firmware"),
        ((*LINUX, "-m", "99999g"), "are possible"),
        ((), "nothing to boot"),
    ):
        done = daemon.proa("vm", "create", "--name", machine, *options_, check=False)
        assert done.status == 1
        assert why in done.err
    assert daemon.proa("vm", "inspect", machine, check=False).status == 1
    left = list((daemon.data_root / "machines").iterdir())
    assert not any(machine in path.name for path in left)
    assert not list((daemon.data_root / "machines").glob("*/*.import"))


def test_a_start_that_fails_leaves_it_as_it_was(
    daemon: Daemon, machine: str, network: str, tmp_path: Path
) -> None:
    cdrom = tmp_path / "disc.iso"
    cdrom.write_bytes(bytes(4096))
    create(daemon, machine, "--cdrom", str(cdrom), "--network", network)
    cdrom.unlink()
    done = daemon.proa("vm", "start", machine, check=False)
    assert done.status == 1
    assert "disc.iso" in done.err
    assert inspect(daemon, machine)["State"] == "created"
    daemon.docker("network", "rm", network)  # nothing of it is still attached
    assert daemon.proa("vm", "start", machine, check=False).err.endswith(f"network {network} not found\n")


def test_a_stopped_machine_can_be_changed(daemon: Daemon, machine: str, network: str) -> None:
    create(daemon, machine, *LINUX, "--network", "none")
    daemon.proa("vm", "set", "--cpus", "2", "-m", "256m", machine)
    assert daemon.proa("vm", "disk", "add", machine, "4m").out.strip() == "disk0"
    daemon.proa("vm", "network", "connect", machine, network)
    assert daemon.proa("vm", "network", "connect", machine, network, check=False).status == 1
    daemon.proa("vm", "autostart", machine)
    daemon.proa("vm", "rename", machine, f"{machine}-x")
    daemon.proa("vm", "rename", f"{machine}-x", machine)
    config = inspect(daemon, machine)["Config"]
    assert (config["Cpus"], config["Memory"], config["Autostart"]) == (2, 256 << 20, True)
    assert config["Nics"][0]["Network"] == network
    assert [disk["Size"] for disk in inspect(daemon, machine)["Disks"]] == [4 << 20]
    daemon.proa("vm", "start", machine)
    wait_for_console(daemon, machine, "guest: up with 2 processors")
    for words in (("set", "--cpus", "1", machine), ("disk", "rm", machine, "disk0"), ("rm", machine)):
        assert daemon.proa("vm", *words, check=False).status == 1
    daemon.proa("vm", "kill", machine)
    daemon.proa("vm", "disk", "rm", machine, "disk0")
    daemon.proa("vm", "network", "disconnect", machine, network)
    listed = daemon.proa("vm", "ls", "--filter", f"name={machine}", "--format", "{{.Name}} {{.State}}").out
    assert listed == f"{machine} stopped\n"

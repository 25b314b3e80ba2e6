# SPDX-License-Identifier: Apache-2.0
"""What a process finds in a configured guest. Source: agent-protocol.md, CONFIGURE and START."""

from __future__ import annotations

import time

from tests.integration.agent import link as wire
from tests.integration.agent.conftest import Guest


def test_layers_are_stacked_and_writable(guest: Guest) -> None:
    script = "cat /text; ls /hidden 2>&1 || true; echo new >/text; cat /text"
    assert guest.shell(script) == "upperls: /hidden: No such file or directory\nnew\n"


def test_writes_go_to_the_disk(guest: Guest) -> None:
    assert " / overlay rw," in guest.shell("cat /proc/mounts").replace("overlay /", " /")
    # The null placeholder was a terabyte; the file system knows its own size.
    size = int(guest.shell("stat -f -c %b /").strip()) * 4096
    assert 0.8e9 < size < 1.1e9


def test_names(guest: Guest) -> None:
    assert guest.shell("hostname; cat /proc/sys/kernel/domainname") == "guest\nexample.org\n"


def test_the_clock_is_right(guest: Guest) -> None:
    begin = time.time()
    seen = int(guest.run("date", "+%s")[1])
    assert abs(seen - begin) < 5


def test_interfaces(guest: Guest) -> None:
    text = guest.shell("ip addr; ip route")
    assert "inet 127.0.0.1/8" in text
    first, second = text.split("eth0:")[1].split("eth1:")[0], text.split("eth1:")[1]
    assert "02:42:ac:11:00:02" in first
    assert "inet 172.17.0.2/16 brd 172.17.255.255 scope global eth0" in first
    assert "mtu 1400" in second
    assert "52:54:00:00:00:01" in second
    assert "inet 10.9.0.2/24" in second
    assert "default via 172.17.0.1 dev eth0" in text
    assert "inet6" not in first.replace("inet6 ::1", "")


def test_sysctls(guest: Guest) -> None:
    assert guest.shell("cat /proc/sys/net/ipv4/ip_forward") == "1\n"


def test_files_of_the_engine(guest: Guest) -> None:
    assert guest.shell("cat /etc/hosts") == "127.0.0.1 localhost\n"
    assert guest.shell("cat /etc/machine-id") == "a" * 32 + "\n"
    assert guest.shell("head -n 1 /etc/passwd").startswith("root:")  # IF_EMPTY leaves the image's
    guest.shell("echo mine >>/etc/hosts && grep mine /etc/hosts")
    # A symbolic link of the image leads nowhere outside of the root.
    assert guest.shell("cat /run/made/file") == "inside"


def test_tmpfs(guest: Guest) -> None:
    line = guest.shell("grep ' /scratch ' /proc/mounts")
    assert "tmpfs" in line and "noexec" in line and "size=1024k" in line and "mode=700" in line


def test_devices(guest: Guest) -> None:
    assert guest.shell("ls /dev").split() == (
        "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero".split()
    )
    assert "size=1024k" in guest.shell("grep ' /dev/shm ' /proc/mounts")
    assert guest.shell("echo x >/dev/null; head -c 4 /dev/zero | od -An -c").split() == ["\\0"] * 4
    assert guest.shell("echo out >/dev/stdout") == "out\n"


def test_only_harmless_devices_open(guest: Guest) -> None:
    script = "mknod /disk b 254 0 && mknod /port c 244 1 && mknod /null c 1 3 && echo x >/null; head -c 1 "
    for node in ("/disk", "/port"):
        code, _, errors = guest.run(
            "sh", "-c", script.replace("mknod", "rm -f /disk /port /null; mknod", 1) + node
        )
        assert code == 1
        assert "Operation not permitted" in errors


def test_main_is_process_one(guest: Guest) -> None:
    assert guest.shell("readlink /proc/1/exe; cat /proc/1/cmdline").startswith("/bin/busybox\nsh\0-c\0while")
    assert guest.shell("readlink /proc/1/cwd") == "/made/for/you\n"


def test_masked_and_read_only_paths(guest: Guest) -> None:
    assert guest.shell("stat -c %t:%T /proc/kcore; ls /proc/acpi 2>/dev/null | wc -l") == "1:3\n0\n"
    code, _, errors = guest.run("sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward")
    assert code == 1
    assert "Read-only file system" in errors
    assert guest.run("sh", "-c", "echo 1 >/sys/kernel/profiling")[0] != 0


def test_the_control_group(guest: Guest) -> None:
    assert guest.shell("cat /proc/self/cgroup") == "0::/\n"
    assert guest.shell("cat /sys/fs/cgroup/pids.max") == "100\n"
    assert guest.run("mkdir", "/sys/fs/cgroup/x")[0] == 1


def test_the_agent_is_out_of_sight(guest: Guest) -> None:
    assert "init" not in guest.shell("ps")
    assert "/run/layers" not in guest.shell("cut -d' ' -f2 /proc/mounts 2>/dev/null || cat /proc/mounts")


def test_nothing_of_the_agent_stays_open(guest: Guest) -> None:
    assert guest.shell("ls /proc/self/fd").split() == ["0", "1", "2", "3"]  # 3 is the directory
    assert guest.run("grep", "-E", "Sig(Blk|Ign)", "/proc/self/status")[1].split()[1::2] == ["0" * 16] * 2
    assert guest.shell("umask") == "0022\n"


def test_statistics(guest: Guest) -> None:
    guest.shell(
        "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/big bs=64k count=32 2>&1; sync"
    )
    stats = guest.link.request(wire.STATS)
    assert stats.number(wire.CPU_TOTAL_NS) > 10_000_000
    assert stats.number(wire.SYSTEM_CPU_NS) > stats.number(wire.CPU_TOTAL_NS)
    assert stats.number(wire.ONLINE_CPUS) == 1
    assert 100_000 < stats.number(wire.MEMORY_USAGE) < stats.number(wire.MEMORY_LIMIT) < 256 << 20
    assert stats.number(wire.PIDS) >= 1
    assert stats.number(wire.PIDS_LIMIT) == 100
    assert stats.number(wire.READ_BYTES) > 100_000
    assert stats.number(wire.WRITE_BYTES) > 1 << 20
    assert {network.text(wire.NAME) for network in stats.nested(wire.NETWORK)} == {"eth0", "eth1"}
    memory = {entry.text(wire.NAME): entry.number(wire.COUNT) for entry in stats.nested(wire.MEMORY_STAT)}
    assert memory["inactive_file"] > 0
    guest.link.request(wire.UPDATE, (wire.PIDS_MAX, 50))
    assert guest.link.request(wire.STATS).number(wire.PIDS_LIMIT) == 50


def test_the_process_table(guest: Guest) -> None:
    process = guest.spawn("sleep", "1000", fields=((wire.USER, "app"),))
    rows = {row.bytes(wire.ROW_CMDLINE): row for row in guest.link.request(wire.PROCESSES).nested(wire.ROW)}
    row = rows[b"sleep\x001000\0"]
    assert row.number(wire.ROW_UID) == 1000
    assert row.number(wire.ROW_PID) > row.number(wire.ROW_NSPID) > 1
    main = next(row for command, row in rows.items() if command.startswith(b"sh\0-c\0while"))
    assert main.number(wire.ROW_NSPID) == 1
    assert main.text(wire.ROW_COMM) == "sh"
    guest.link.request(wire.SIGNAL, (wire.PROCESS, process), (wire.SIGNAL_NUMBER, 9))
    assert guest.link.wait(process) == 137

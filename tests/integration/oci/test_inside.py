# SPDX-License-Identifier: Apache-2.0
"""What a process finds inside: file systems, identity, privileges, namespaces."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from proa.model.errors import InvalidParameter, StartFailed
from proa.model.ids import ExecId, new_id
from proa.model.task import (
    Device,
    Mount,
    MountKind,
    Namespaces,
    NetworkAttachment,
    ProcessSpec,
    Rlimit,
    Security,
)
from tests.integration.oci.conftest import Hull, read_all

pytestmark = pytest.mark.anyio


async def test_file_systems(hull: Hull, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("bound\n")
    script = """
        cat /etc/hosts /mnt/file; hostname
        touch /mnt/no 2>/dev/null || echo mnt is read-only
        echo x > /rw/new && echo wrote; df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d' ' -f2
        touch /scratch/x && echo scratch
        touch /x 2>/dev/null || echo root is read-only
        cat /proc/kcore | wc -c; echo 1 > /proc/sys/vm/swappiness || echo sys is read-only
    """
    code, text = await hull.run(
        "sh",
        "-c",
        script,
        read_only_rootfs=True,
        files={"/etc/hosts": b"127.0.0.1 me\n"},
        shm_size_bytes=3 << 20,
        mounts=(
            Mount(kind=MountKind.BIND, target="/mnt", source=source, read_only=True),
            Mount(kind=MountKind.BIND, target="/rw", source=source),
            Mount(kind=MountKind.TMPFS, target="/scratch", options=("size=64k",)),
        ),
    )
    assert text.splitlines()[:6] == ["127.0.0.1 me", "bound", "box", "mnt is read-only", "wrote", "3072"]
    assert "scratch" in text
    assert "root is read-only" in text
    assert "\n0\n" in text
    assert "sys is read-only" in text
    assert (source / "new").read_text() == "x\n"
    assert code == 0


async def test_user_and_environment(hull: Hull) -> None:
    process = ProcessSpec(
        args=("sh", "-c", "id; pwd; echo $HOME:$PATH:$WORD"),
        user="joe",
        env=("WORD=w",),
        cwd="/made/anew",
        group_add=("29",),
    )
    code, text = await hull.output_of(hull.spec(process=process))
    assert "uid=1000(joe) gid=100(users)" in text
    assert "29(audio)" in text
    assert text.splitlines()[1] == "/made/anew"
    assert text.splitlines()[2].startswith("/home/joe:/usr/local/sbin:")
    assert text.endswith(":w\n")
    assert code == 0


async def status_of(hull: Hull, **changes: object) -> dict[str, str]:
    _, text = await hull.run("cat", "/proc/self/status", **changes)
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


async def test_privileges(hull: Hull) -> None:
    for _ in range(2):  # the second time with a kept filter
        status = await status_of(hull)
        assert (status["CapEff"], status["Seccomp"], status["NoNewPrivs"]) == ("00000000a80425fb", "2", "0")
    hardened = Security(cap_drop=("ALL",), cap_add=("CHOWN",), no_new_privileges=True, seccomp="unconfined")
    status = await status_of(hull, security=hardened)
    assert (status["CapEff"], status["Seccomp"], status["NoNewPrivs"]) == ("0000000000000001", "0", "1")
    status = await status_of(hull, security=Security(privileged=True))
    assert int(status["CapEff"], 16) > 0xA80425FB
    assert status["Seccomp"] == "0"


async def test_the_filter_bites_also_in_exec(hull: Hull) -> None:
    for _ in range(2):
        task = await hull.start(hull.spec("sleep", "100"))
        process = await task.exec(
            ExecId(new_id()), ProcessSpec(args=("cat", "/proc/self/status")), attached=True
        )
        assert process.stdio is not None
        assert "Seccomp:\t2" in await read_all(process.stdio)
        await process.stdio.aclose()
    profile = (
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": '
        '[{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}'
    )
    code, text = await hull.run("mkdir", "/tmp/x", security=Security(seccomp=profile))
    assert code == 1
    assert "not permitted" in text


async def test_limits_of_processes_and_kernel_settings(hull: Hull) -> None:
    _, text = await hull.run(
        "sh",
        "-c",
        "ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj /proc/sys/kernel/msgmax",
        rlimits=(Rlimit(name="nofile", soft=77, hard=1 << 40),),
        oom_score_adj=300,
        sysctls={"kernel.msgmax": "9000"},
    )
    soft, hard, adjustment, msgmax = text.split()
    assert (soft, adjustment, msgmax) == ("77", "300", "9000")
    assert int(hard) > 77


async def test_namespaces_of_its_own_and_of_the_host(hull: Hull) -> None:
    script = "for name in pid ipc uts net; do readlink /proc/self/ns/$name; done; hostname"
    host = [str(Path(f"/proc/self/ns/{name}").readlink()) for name in ("pid", "ipc", "uts", "net")]
    _, text = await hull.run("sh", "-c", script)
    assert not set(host) & set(text.split())
    shared = Namespaces(pid="host", ipc="host", uts="host", cgroup="host")
    _, text = await hull.run("sh", "-c", script, namespaces=shared, network=NetworkAttachment(host=True))
    assert text.split()[:4] == host
    assert text.split()[4] == os.uname().nodename


async def test_joins_namespaces_of_another(hull: Hull) -> None:
    first = await hull.start(hull.spec("sleep", "100"))
    _, text = await hull.run(
        "sh",
        "-c",
        "readlink /proc/self/ns/ipc; readlink /proc/self/ns/net; cat /proc/1/comm",
        namespaces=Namespaces(pid=f"/proc/{first.pid}/ns/pid", ipc=f"/proc/{first.pid}/ns/ipc"),
        network=NetworkAttachment(namespace=Path(f"/proc/{first.pid}/ns/net")),
    )
    assert text.split() == [
        str(Path(f"/proc/{first.pid}/ns/ipc").readlink()),
        str(Path(f"/proc/{first.pid}/ns/net").readlink()),
        "sleep",
    ]


async def test_a_network_of_its_own_has_a_loopback_that_is_up(hull: Hull) -> None:
    _, text = await hull.run("ip", "addr", "show", "lo")
    assert "LOOPBACK,UP" in text


async def test_devices(hull: Hull) -> None:
    zero = Device(host_path=Path("/dev/zero"), container_path="/dev/mine", permissions="r")
    code, text = await hull.run(
        "sh", "-c", "head -c 3 /dev/mine | wc -c; ls /dev", security=Security(devices=(zero,))
    )
    assert code == 0
    assert text.startswith("3\n")
    assert {"null", "urandom", "tty", "mine", "pts", "shm", "mqueue"} <= set(text.split())
    with pytest.raises(InvalidParameter, match="no such file or directory"):
        await hull.create(
            hull.spec("true", security=Security(devices=(replace(zero, host_path=Path("/dev/absent")),)))
        )


async def test_a_mount_that_fails_leaves_nothing(hull: Hull) -> None:
    with pytest.raises(StartFailed):
        await hull.create(
            hull.spec("true", mounts=(Mount(kind=MountKind.BIND, target="/x", source=Path("/no/such")),))
        )

# SPDX-License-Identifier: Apache-2.0
"""Programs in a VM: output, input, exit codes, logs."""

from __future__ import annotations

from dataclasses import replace

import anyio
import pytest

from proa.model.errors import StartFailed
from proa.model.task import BlockRootfs, Mount, MountKind, Resources
from proa.runtime.seam import StreamId
from tests.integration.vm.conftest import MIB, Stage, end_of, read_all, read_until

pytestmark = pytest.mark.anyio


async def test_output_exit_code_and_log(stage: Stage) -> None:
    task = await stage.create("sh", "-c", "echo out; echo err >&2; printf part; exit 3")
    stdio = await task.attach()
    await task.start()
    assert await read_all(stdio) == (b"out\npart", b"err\n")
    await stdio.aclose()
    status = await end_of(task)
    assert status.code == 3
    assert not status.oom_killed
    assert await task.wait() == status
    log = [line.split(" ", 1)[1] for line in stage.log(task).splitlines()]
    assert sorted(log) == ["stderr F err", "stdout F out", "stdout P part"]
    await task.delete()
    await task.delete()


@pytest.mark.parametrize(("program", "code"), [("/nonexistent", 127), ("/etc/passwd", 126)])
async def test_program_that_cannot_be_started(stage: Stage, program: str, code: int) -> None:
    task = await stage.create(program)
    with pytest.raises(StartFailed) as caught:
        await task.start()
    assert caught.value.exit_code == code
    await task.delete()


async def test_standard_input_until_its_end(stage: Stage) -> None:
    task = await stage.create(
        "sh", "-c", "wc -c; echo done", process={"open_stdin": True, "stdin_once": True}
    )
    stdio = await task.attach()
    async with anyio.create_task_group() as group:
        group.start_soon(stdio.send, b"x" * 300_000)  # begun before the program, more than the first credit
        await task.start()
    await stdio.send_eof()
    await stdio.send_eof()
    assert await read_all(stdio) == (b"300000\ndone\n", b"")
    with pytest.raises(anyio.BrokenResourceError):
        await stdio.send(b"more")
    await stdio.aclose()
    assert (await end_of(task)).code == 0
    await task.delete()


async def test_terminal(stage: Stage) -> None:
    task = await stage.create("sh", process={"tty": True, "open_stdin": True, "console_size": (30, 90)})
    stdio = await task.attach()
    await task.start()
    await stdio.send(b"stty size\n")
    assert b"30 90" in await read_until(stdio, b"30 90\r\n")
    await task.resize(rows=40, columns=100)
    await stdio.send(b"stty size; tty\n")
    assert b"40 100" in await read_until(stdio, b"/dev/")
    await stdio.send(b"exit 5\n")
    _, err = await read_all(stdio)
    assert err == b""
    await stdio.aclose()
    assert (await end_of(task)).code == 5
    await task.resize(rows=1, columns=1)  # ignored
    await task.delete()


async def test_every_client_gets_all_output_and_a_slow_one_loses_none(stage: Stage) -> None:
    task = await stage.create("sh", "-c", "dd if=/dev/zero bs=64k count=32 2>/dev/null")
    quick, slow = await task.attach(), await task.attach()
    await task.start()
    counted = 0
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            sizes: list[int] = []

            async def read_quickly() -> None:
                sizes.append(len((await read_all(quick))[0]))

            group.start_soon(read_quickly)
            with pytest.raises(anyio.EndOfStream):
                while True:
                    stream, data = await slow.receive()
                    assert stream is StreamId.STDOUT
                    counted += len(data)
                    await anyio.sleep(0.002)
    assert [counted] == sizes == [2 * MIB]
    await quick.aclose()
    await slow.aclose()
    assert (await end_of(task)).code == 0
    await task.delete()


async def test_a_client_that_leaves_does_not_hold_up_the_program(stage: Stage) -> None:
    task = await stage.create("sh", "-c", "dd if=/dev/zero bs=64k count=32 2>/dev/null; exit 4")
    stdio = await task.attach()
    await task.start()
    await stdio.receive()
    await stdio.aclose()
    assert (await end_of(task)).code == 4
    await task.delete()


async def test_who_it_is_and_what_it_sees(stage: Stage) -> None:
    script = (
        "hostname; id -u; pwd; echo $A; cat /etc/hosts; cat /etc/machine-id; grep -c . /proc/net/dev;"
        "df -k /scratch | tail -1 | awk '{print $2}'; echo x > /new && cat /new;"
        "cat /sys/fs/cgroup/memory.max; cat /sys/fs/cgroup/pids.max"
    )
    task = await stage.create(
        "sh",
        "-c",
        script,
        process={"env": ("A=b c",), "cwd": "/var/tmp/made", "user": "0"},
        files={"/etc/hosts": b"127.0.0.1 localhost\n"},
        mounts=(Mount(kind=MountKind.TMPFS, target="/scratch", options=("size=4m",)),),
        resources=Resources(memory_bytes=64 * MIB, pids=50),
    )
    stdio = await task.attach()
    await task.start()
    out, err = await read_all(stdio)
    await stdio.aclose()
    lines = out.decode().splitlines()
    assert lines[:6] == [task.id[:12], "0", "/var/tmp/made", "b c", "127.0.0.1 localhost", task.id[:32]]
    assert lines[6:] == ["3", "4096", "x", str(64 * MIB), "50"], err
    await end_of(task)
    await task.delete()


@pytest.mark.parametrize("count", [5, 40], ids=["in-slots", "more-than-slots"])
async def test_several_layers(stage: Stage, count: int) -> None:
    spec = await stage.spec("sh", "-c", "ls /bin/sh; mount | grep -c erofs")
    layers = (stage.layer,) * count
    assert isinstance(spec.rootfs, BlockRootfs)
    rootfs = replace(spec.rootfs, layers=layers)
    code, out, _ = await stage.run("sh", "-c", "ls /bin/sh", rootfs=rootfs)
    assert (code, out) == (0, b"/bin/sh\n")


async def test_what_is_written_stays_for_the_next_start(stage: Stage) -> None:
    spec = await stage.spec("sh", "-c", "cat /kept 2>/dev/null || { echo precious > /kept; exit 9; }")
    for code, output in ((9, b""), (0, b"precious\n")):
        task = await stage.runtime.create(spec)
        stdio = await task.attach()
        await task.start()
        assert (await read_all(stdio))[0] == output
        await stdio.aclose()
        assert (await end_of(task)).code == code
        await task.delete()
        assert isinstance(spec.rootfs, BlockRootfs)
        spec = replace(spec, rootfs=replace(spec.rootfs, is_new=False))


async def test_binds_of_directories_and_files(stage: Stage) -> None:
    shared = stage.base / "shared"
    shared.mkdir()
    (shared / "from-host").write_text("hello\n")
    single = stage.base / "single,file"
    single.write_text("one\n")
    mounts = (
        Mount(kind=MountKind.BIND, target="/data", source=shared),
        Mount(kind=MountKind.TMPFS, target="/t"),
        Mount(kind=MountKind.BIND, target="/etc/one", source=single, read_only=True),
    )
    code, out, err = await stage.run(
        "sh",
        "-c",
        "cat /data/from-host /etc/one; echo back > /data/from-guest; echo no > /etc/one",
        mounts=mounts,
    )
    assert out == b"hello\none\n"
    assert code == 1
    assert b"Read-only" in err
    assert (shared / "from-guest").read_text() == "back\n"
    assert single.read_text() == "one\n"

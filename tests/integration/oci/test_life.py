# SPDX-License-Identifier: Apache-2.0
"""The life of a container: made, started, watched, ended, removed; and what cannot be started."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import anyio
import pytest

from proa.model.errors import InvalidParameter, StartFailed, WrongState
from proa.model.task import ProcessSpec, Rlimit
from proa.runtime.oci.runtime import find_runtimes
from proa.runtime.seam import StreamId
from tests.integration.oci.conftest import Hull, read_all

pytestmark = pytest.mark.anyio


async def test_runs_to_its_exit_code_with_its_output_in_the_log(hull: Hull) -> None:
    spec = hull.spec("sh", "-c", "echo out; echo err >&2; exit 3")
    began = time.time_ns()
    code, text = await hull.output_of(spec)
    assert code == 3
    assert sorted(text.split()) == ["err", "out"]
    lines = [line.split(" ", 3)[1:] for line in spec.log_path.read_text().splitlines()]
    assert sorted(lines) == [["stderr", "F", "err"], ["stdout", "F", "out"]]
    assert time.time_ns() > began


async def test_streams_are_told_apart(hull: Hull) -> None:
    task = await hull.create(hull.spec("sh", "-c", "echo out; echo err >&2"))
    stdio = await task.attach()
    await task.start()
    assert await read_all(stdio, only=StreamId.STDERR) == "err\n"
    await stdio.aclose()
    await stdio.aclose()


async def test_large_output_comes_whole_and_in_order(hull: Hull) -> None:
    _, text = await hull.run("seq", "1", "50000")
    assert text.split() == [str(number) for number in range(1, 50001)]


async def test_nothing_runs_before_start(hull: Hull, tmp_path: Path) -> None:
    task = await hull.create(hull.spec("sh", "-c", "echo ran"))
    await anyio.sleep(0.1)
    assert task.pid > 0
    await task.delete()
    assert (tmp_path / f"{task.id}.log").read_text() == ""
    await task.delete()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, 137), (signal.SIGTERM, 7)], ids=["kill", "term"]
)
async def test_signals_reach_the_first_process(hull: Hull, number: int, code: int) -> None:
    task = await hull.create(
        hull.spec("sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done")
    )
    stdio = await task.attach()
    await task.start()
    await stdio.receive()
    await task.kill(number)
    with anyio.fail_after(5):
        assert (await task.wait()).code == code
    with pytest.raises(WrongState, match="is not running"):
        await task.kill(number)
    with pytest.raises(WrongState):
        await task.attach()
    with pytest.raises(WrongState):
        await task.stats()


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        ("nothere", 127, 'exec: "nothere": executable file not found in $PATH'),
        ("/no/such", 127, 'exec: "/no/such": stat /no/such: no such file or directory'),
        ("/bin/notexec", 126, 'exec: "/bin/notexec": permission denied'),
        ("/etc", 126, 'exec: "/etc": '),
    ],
)
async def test_what_cannot_run_says_so_as_docker_does(
    hull: Hull, program: str, code: int, words: str
) -> None:
    with pytest.raises(StartFailed) as failure:
        await hull.start(hull.spec(program))
    assert words in failure.value.message
    assert failure.value.exit_code == code
    await hull.made[0].delete() if hull.made else None


async def test_unknown_user_leaves_nothing(hull: Hull) -> None:
    with pytest.raises(StartFailed, match="unable to find user nobody: no matching entries in passwd file"):
        await hull.create(hull.spec(process=ProcessSpec(args=("true",), user="nobody")))


async def test_bad_limit_leaves_nothing(hull: Hull) -> None:
    with pytest.raises(InvalidParameter, match="invalid ulimit type: wrong"):
        await hull.create(hull.spec("true", rlimits=(Rlimit(name="wrong", soft=1, hard=1),)))


async def test_cancelled_create_leaves_nothing(hull: Hull) -> None:
    with anyio.move_on_after(0.01) as scope:
        await hull.create(hull.spec("sleep", "100"))
    assert scope.cancelled_caught


async def test_init_is_process_one(hull: Hull) -> None:
    code, text = await hull.run("sh", "-c", "echo $$; cat /proc/1/comm; exit 5", init=True)
    assert code == 5
    assert text.split()[0] != "1"
    assert text.split()[1] in ("docker-init", "tini-static", "tini")


async def test_the_runtimes_of_this_host_are_found() -> None:
    found, missing = await find_runtimes(("crun", "runc", "no-such-runtime"))
    assert set(found) == {"crun", "runc"}
    assert missing == {"no-such-runtime": "no-such-runtime is not installed: apt install no-such-runtime"}

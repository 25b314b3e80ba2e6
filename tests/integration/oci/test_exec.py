# SPDX-License-Identifier: Apache-2.0
"""More processes inside a running container."""

from __future__ import annotations

import anyio
import pytest

from proa.model.errors import StartFailed, WrongState
from proa.model.ids import ExecId, new_id
from proa.model.task import ProcessSpec
from proa.runtime.oci.exec import OciProcess
from proa.runtime.oci.task import OciTask
from proa.runtime.seam import StreamId
from tests.integration.oci.conftest import Hull, read_all, read_until

pytestmark = pytest.mark.anyio


async def execute(task: OciTask, *args: str, attached: bool = True, **more: object) -> OciProcess:
    spec = ProcessSpec(args=args, **more)  # type: ignore[arg-type]  # named by the tests
    return await task.exec(ExecId(new_id()), spec, attached=attached)


async def output_of(process: OciProcess) -> str:
    assert process.stdio is not None
    text = await read_all(process.stdio)
    await process.stdio.aclose()
    return text


async def test_output_code_user_environment_and_directory(hull: Hull) -> None:
    task = await hull.start(hull.spec("sleep", "100"))
    process = await execute(
        task,
        "sh",
        "-c",
        "id; echo $WORD $HOME; pwd; exit 4",
        user="joe",
        env=("WORD=hello",),
        cwd="/tmp",
        group_add=("audio",),
    )
    text = await output_of(process)
    assert "uid=1000(joe) gid=100(users)" in text
    assert "55(extra)" in text
    assert "29(audio)" in text
    assert text.splitlines()[1:] == ["hello /home/joe", "/tmp"]
    assert (await process.wait()).code == 4
    assert (await process.wait()).code == 4


async def test_streams_and_input(hull: Hull) -> None:
    task = await hull.start(hull.spec("sleep", "100"))
    process = await execute(task, "sh", "-c", "cat; echo err >&2", open_stdin=True, stdin_once=True)
    assert process.stdio is not None
    await process.stdio.send(b"fed")
    await process.stdio.send_eof()
    found: dict[StreamId, bytes] = {StreamId.STDOUT: b"", StreamId.STDERR: b""}
    with pytest.raises(anyio.EndOfStream):
        while True:
            stream, data = await process.stdio.receive()
            found[stream] += data
    assert found == {StreamId.STDOUT: b"fed", StreamId.STDERR: b"err\n"}
    await process.stdio.aclose()
    assert (await process.wait()).code == 0


async def test_terminal(hull: Hull) -> None:
    task = await hull.start(hull.spec("sleep", "100"))
    process = await execute(
        task, "sh", "-c", "stty size; read x; stty size", tty=True, open_stdin=True, console_size=(20, 70)
    )
    assert process.stdio is not None
    await process.resize(rows=21, columns=71)
    await process.stdio.send(b"\n")
    assert "21 71" in await read_until(process.stdio, "21 71")
    await process.stdio.aclose()
    assert (await process.wait()).code == 0


async def test_detached(hull: Hull) -> None:
    task = await hull.start(
        hull.spec("sh", "-c", "while ! test -e /tmp/there; do sleep 0.05; done; rm /tmp/there")
    )
    process = await execute(task, "touch", "/tmp/there", attached=False)
    assert process.stdio is None
    assert (await process.wait()).code == 0
    with anyio.fail_after(5):
        assert (await task.wait()).code == 0


async def test_privileged_has_more_capabilities(hull: Hull) -> None:
    task = await hull.start(hull.spec("sleep", "100"))
    masks = []
    for privileged in (False, True):
        process = await execute(task, "grep", "CapEff", "/proc/self/status", privileged=privileged)
        masks.append(int((await output_of(process)).split()[1], 16))
    assert masks[0] == 0xA80425FB  # Docker's default set
    assert masks[1] & masks[0] == masks[0]
    assert masks[1] > masks[0]


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        ("nothere", 127, 'exec: "nothere": executable file not found in $PATH'),
        ("/no/such", 127, "no such file or directory"),
        ("/bin/notexec", 126, "permission denied"),
    ],
)
@pytest.mark.parametrize("attached", [True, False], ids=["attached", "detached"])
async def test_what_cannot_run(hull: Hull, program: str, code: int, words: str, *, attached: bool) -> None:
    task = await hull.start(hull.spec("sleep", "100"))
    with pytest.raises(StartFailed) as failure:
        await execute(task, program, attached=attached)
    assert failure.value.message.startswith("OCI runtime exec failed: exec failed: ")
    assert words in failure.value.message
    assert failure.value.exit_code == code
    assert list((hull.exec_root / task.id / "exec").iterdir()) == []


async def test_unknown_user(hull: Hull) -> None:
    task = await hull.start(hull.spec("sleep", "100"))
    with pytest.raises(StartFailed, match="unable to find user nobody: no matching entries in passwd file"):
        await execute(task, "true", user="nobody")


async def test_ends_with_its_container(hull: Hull) -> None:
    task = await hull.start(hull.spec("sleep", "100"))
    process = await execute(task, "sleep", "100")
    await task.kill(9)
    with anyio.fail_after(5):
        assert (await process.wait()).code == 137
    with pytest.raises(WrongState):
        await execute(task, "true")

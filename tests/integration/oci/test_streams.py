# SPDX-License-Identifier: Apache-2.0
"""Standard input, terminals, several clients, slow clients."""

from __future__ import annotations

import anyio
import pytest

from proa.model.task import ProcessSpec
from tests.integration.oci.conftest import Hull, read_all, read_until

pytestmark = pytest.mark.anyio


def shell(command: str, *, tty: bool = False, stdin_once: bool = True, size: bool = False) -> ProcessSpec:
    return ProcessSpec(
        args=("sh", "-c", command),
        open_stdin=True,
        stdin_once=stdin_once,
        tty=tty,
        console_size=(33, 101) if size else None,
    )


async def test_input_and_its_end_reach_the_process(hull: Hull) -> None:
    task = await hull.create(hull.spec(process=shell("wc -c; echo done")))
    stdio = await task.attach()
    await task.start()
    await stdio.send(b"x" * 100_000)
    await stdio.send_eof()
    await stdio.send_eof()
    assert (await read_all(stdio)).split() == ["100000", "done"]
    with pytest.raises(anyio.BrokenResourceError):
        await stdio.send(b"x")
    await stdio.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        await stdio.receive()


async def test_input_stays_open_when_it_is_not_for_once(hull: Hull) -> None:
    task = await hull.create(hull.spec(process=shell("cat", stdin_once=False)))
    await task.start()
    for word in ("one", "two"):
        stdio = await task.attach()
        await stdio.send(word.encode())
        await read_until(stdio, word)
        await stdio.send_eof()
        await stdio.aclose()
    assert task.pid


async def test_a_client_that_only_listens_does_not_end_the_input(hull: Hull) -> None:
    task = await hull.create(hull.spec(process=shell("read a; echo got $a; read b; echo got $b")))
    listener, feeder = await task.attach(), await task.attach()
    await task.start()
    await feeder.send(b"one\n")
    await read_until(listener, "got one")
    await listener.aclose()
    await feeder.send(b"two\n")
    assert "got two" in await read_until(feeder, "got two")
    await feeder.aclose()
    assert (await task.wait()).code == 0


async def test_every_client_gets_all_output(hull: Hull) -> None:
    task = await hull.create(hull.spec("seq", "1", "3000"))
    first, second = await task.attach(), await task.attach()
    await task.start()
    texts: list[str] = []

    async def read(index: int) -> None:
        texts.append(await read_all((first, second)[index]))

    async with anyio.create_task_group() as group:
        group.start_soon(read, 0)
        group.start_soon(read, 1)
    assert texts[0] == texts[1]
    assert len(texts[0].split()) == 3000


async def test_a_slow_client_holds_back_the_process_and_loses_nothing(hull: Hull) -> None:
    task = await hull.create(hull.spec("sh", "-c", "seq 1 100000"))
    stdio = await task.attach()
    await task.start()
    with anyio.move_on_after(0.3) as scope:
        await task.wait()
    assert scope.cancelled_caught  # it waits for its reader
    assert len((await read_all(stdio)).split()) == 100_000


async def test_a_client_that_does_not_read_cannot_hide_the_end(hull: Hull) -> None:
    task = await hull.create(hull.spec("sh", "-c", "seq 1 100000"))
    stdio = await task.attach()
    await task.start()
    await stdio.receive()
    await anyio.sleep(0.2)
    await task.kill(9)
    with anyio.fail_after(5):
        assert (await task.wait()).code == 137
    await read_all(stdio)  # what had been written is still to be had, to its end
    await stdio.aclose()


async def test_terminal_and_its_size(hull: Hull) -> None:
    task = await hull.create(
        hull.spec(process=shell("tty; stty size; read x; stty size", tty=True, size=True))
    )
    stdio = await task.attach()
    await task.start()
    text = await read_until(stdio, "33 101")
    assert "/dev/" in text
    await task.resize(rows=40, columns=120)
    await stdio.send(b"\n")
    assert "40 120" in await read_until(stdio, "40 120")
    assert (await task.wait()).code == 0


async def test_without_a_terminal_a_size_is_ignored(hull: Hull) -> None:
    task = await hull.start(hull.spec("sleep", "100"))
    await task.resize(rows=40, columns=120)

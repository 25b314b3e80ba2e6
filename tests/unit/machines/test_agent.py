# SPDX-License-Identifier: Apache-2.0
"""The guest agent's line, with an agent that is played: what it says is believed to be output at most."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from pathlib import Path

import anyio
import msgspec
import pytest

from proa.machines import agent
from proa.machines.agent import run_in_guest
from proa.model.errors import Conflict, EngineError, InvalidParameter, Unavailable

pytestmark = pytest.mark.anyio


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as link:
        link.bind(str(tmp_path / "agent"))
        link.listen()
        link.setblocking(False)
        yield link


async def play(listener: socket.socket, answers: list[bytes]) -> None:
    """Synchronise, with rubbish of an earlier client before, then give the answers, one for each line."""
    await anyio.wait_readable(listener)
    link, _ = listener.accept()
    with link:
        number = msgspec.json.decode((await line(link)).lstrip(b"\xff"))["arguments"]["id"]
        link.sendall(b'{"return": {"half' + b'\xff{"return": 1}\n' + b'\xff{"return": %d}\n' % number)
        for answer in answers:
            await line(link)
            link.sendall(answer)


async def line(link: socket.socket) -> bytes:
    await anyio.wait_readable(link)
    return link.recv(1 << 16)


async def converse(
    listener: socket.socket, answers: list[bytes], *, timeout_s: float = 5
) -> agent.GuestResult:
    path = Path(listener.getsockname())
    async with anyio.create_task_group() as group:
        group.start_soon(play, listener, answers)
        try:
            return await run_in_guest(path, ["x"], timeout_s=timeout_s)
        finally:
            group.cancel_scope.cancel()
    raise AssertionError("the group swallowed the end")


async def test_a_command(listener: socket.socket) -> None:
    out = base64.b64encode(b"hi\n").decode()
    done = await converse(
        listener,
        [
            b'{"return": {"pid": 7}}\n',
            b'{"return": {"exited": true, "exitcode": 3, "out-data": "%s"}}\n' % out.encode(),
        ],
    )
    assert (done.exit_code, done.stdout, done.stderr) == (3, b"hi\n", b"")


async def test_a_signal(listener: socket.socket) -> None:
    done = await converse(
        listener, [b'{"return": {"pid": 7}}\n', b'{"return": {"exited": true, "signal": 9}}\n']
    )
    assert done.exit_code == 137


async def test_a_refusal(listener: socket.socket) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await converse(listener, [b'{"error": {"desc": "no such file"}}\n'])
    assert caught.group_contains(InvalidParameter, match="the guest: no such file")


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\n",
        b"[]\n",
        b'{"return": {"exited": true, "exitcode": "x"}}\n',
        b'{"return": {"exited": true, "exitcode": 0, "out-data": "%%%"}}\n',
        b'{"return": {"exited": true, "exitcode": 0, "out-data": 5}}\n',
        b'{"error": 5}\n',
    ],
)
async def test_nonsense_is_an_error_of_ours(listener: socket.socket, answer: bytes) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await converse(listener, [b'{"return": {"pid": 7}}\n', answer])
    assert caught.group_contains(EngineError)


async def test_nobody_answers(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "GREETING_TIMEOUT_S", 0.02)
    with pytest.raises(Conflict, match="no guest agent answers"):
        await run_in_guest(Path(listener.getsockname()), ["x"], timeout_s=1)
    with pytest.raises(Unavailable, match="cannot reach"):
        await run_in_guest(Path("/nowhere/agent"), ["x"], timeout_s=1)

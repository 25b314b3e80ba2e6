# SPDX-License-Identifier: Apache-2.0
"""What a guest whose agent was replaced can do to the engine: end its own link, and no more."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from proa.model.errors import EngineError, Internal, OutcomeUnknown, TaskLost
from proa.model.task import ProcessSpec
from proa.runtime.output import MAX_PIECES, OutputQueue
from proa.runtime.seam import StreamId
from proa.runtime.vm import messages, protocol
from proa.runtime.vm.channel import AgentError
from proa.runtime.vm.guest import Guest
from proa.runtime.vm.process import WINDOW_BYTES
from proa.runtime.vm.protocol import FrameType, Key, data, u32, u64
from tests.support.fake_agent import FakeAgent, fake_agent, raw

pytestmark = pytest.mark.anyio

PATIENCE_S = 10.0
CREDIT = struct.Struct("<BI")
EXITED = raw(FrameType.EXITED, 1, u32(Key.CODE, 3) + u64(Key.FINISHED_NS, 1))
MIB = 1024 * 1024


@asynccontextmanager
async def linked(*, open_stdin: bool = False) -> AsyncIterator[tuple[FakeAgent, Guest]]:
    with anyio.fail_after(PATIENCE_S):
        async with fake_agent() as agent:
            guest = Guest(agent.path, tty=False, open_stdin=open_stdin, stdin_once=True)
            channel = await guest.connect()
            await channel.request(FrameType.HELLO, messages.hello(protocol.VERSION))
            try:
                yield agent, guest
            finally:
                guest.close()


@pytest.mark.parametrize(
    "answer",
    [
        raw(FrameType.OK, 2, length=protocol.MAX_CONTROL_BYTES + 1),
        raw(FrameType.OK, 2, length=2**32 - 1),
        raw(FrameType.STDOUT, 1, b"x"),  # before anybody attached
        raw(FrameType.STDOUT, 9, b"x"),  # of a process that is not there
        raw(FrameType.STDOUT, 1),
        raw(FrameType.OUT_EOF, 1, b"\x07"),
        raw(FrameType.OUT_EOF, 1, b""),
        raw(FrameType.CREDIT, 1, CREDIT.pack(0, 2**32 - 1)),
        raw(FrameType.CREDIT, 1, CREDIT.pack(1, 1)),
        raw(FrameType.CREDIT, 1, b"\0"),
        raw(FrameType.EXITED, 1, b"\x07"),
        raw(FrameType.EXITED, 1, data(Key.CODE, b"123")),
        raw(FrameType.START, 1),  # what only the host says
        raw(0xFF, 1),
        raw(FrameType.OK, 2) * 2,  # one answer too many
        raw(FrameType.OK, 77) * 2,  # to nothing that was asked
        b"\xff" * 4096,
    ],
)
async def test_an_answer_against_the_rules_ends_the_link(answer: bytes) -> None:
    async with linked() as (agent, guest):
        agent.answer = lambda _: answer
        with contextlib.suppress(OutcomeUnknown):  # a right answer may come before the wrong one
            await guest.channel.request(FrameType.STATS)
        await agent.is_lost.wait()
        assert not guest.is_linked
        with pytest.raises(EngineError):
            await guest.channel.request(FrameType.STATS)
        with pytest.raises(TaskLost):
            await guest.main.wait()


@pytest.mark.parametrize(
    "fields",
    [b"\1", b"\7\0\xff\xff\xff\xff", data(Key.CODE, b"12345")],
    ids=["a field cut short", "a field longer than all", "a number of five bytes"],
)
async def test_an_error_that_cannot_be_read_is_an_error(fields: bytes) -> None:
    async with linked() as (agent, guest):
        agent.answer = lambda number: raw(FrameType.ERROR, number, fields)
        with pytest.raises(Internal, match="nonsense"):
            await guest.channel.request(FrameType.STATS)
        await agent.is_lost.wait()


async def test_a_frame_cut_short_and_then_nothing() -> None:
    async with linked() as (agent, guest):
        agent.answer = lambda number: raw(FrameType.OK, number, b"x" * 10, length=1000)
        with pytest.raises(EngineError, match="did not answer STATS within"):
            await guest.channel.request(FrameType.STATS, timeout_s=0.05)
        agent.leave()
        with pytest.raises(TaskLost):
            await guest.main.wait()


async def test_words_of_a_guest_do_not_command_a_terminal() -> None:
    async with linked() as (agent, guest):
        words = data(Key.MESSAGE, b"a\x1b]0;owned\x07\x9b2J\r\nb\t\xff" + b"x" * 10_000)
        agent.answer = lambda number: raw(FrameType.ERROR, number, words)
        with pytest.raises(AgentError) as caught:
            await guest.channel.request(FrameType.STATS)
    assert caught.value.message.startswith("a\ufffd]0;owned\ufffd\ufffd2J\ufffd\nb\t\ufffdx")
    assert len(caught.value.message) == 4096
    row = u32(Key.ROW_PID, 1) + data(Key.ROW_COMM, b"\x1b[2J") + data(Key.ROW_CMDLINE, b"sh\0-c\nx\0")
    (process,) = messages.processes(protocol.Fields(data(Key.ROW, row)))
    assert (process.comm, process.cmdline) == ("?[2J", "sh -c?x")


async def test_one_that_ends_twice_ends_once() -> None:
    async with linked() as (agent, guest):
        agent.say(EXITED + EXITED.replace(u32(Key.CODE, 3), u32(Key.CODE, 4)))
        assert (await guest.main.wait()).code == 3
        agent.answer = lambda number: raw(FrameType.OK, number)
        await guest.channel.request(FrameType.STATS)
        assert guest.main.status is not None
        assert guest.main.status.code == 3


async def test_more_output_than_was_allowed_ends_the_link() -> None:
    async with linked() as (agent, guest):
        client = await guest.main.open()
        guest.main.prepare_start()
        await guest.main.begun(1)
        piece = raw(FrameType.STDOUT, 1, b"x" * 65_536)
        agent.say(piece * (WINDOW_BYTES // 65_536 + 1))
        await agent.is_lost.wait()
        assert client.waiting_bytes(StreamId.STDOUT) == WINDOW_BYTES


async def test_input_is_not_kept_for_a_guest_that_takes_none() -> None:
    """It gives all the credit there is and reads nothing: its client waits, as for a full pipe."""
    async with linked(open_stdin=True) as (agent, guest):
        client = await guest.main.open()
        guest.main.prepare_start()
        await guest.main.begun(1)
        agent.stop_reading()
        agent.say(raw(FrameType.CREDIT, 1, CREDIT.pack(0, 2**30)))
        while guest.main.stdin_credit < 2**30:
            await anyio.lowlevel.checkpoint()
        chunk = bytes(MIB)
        sent = 0
        with anyio.move_on_after(0.1) as limit:
            while sent < 64:
                await client.send(chunk)
                sent += 1
        assert limit.cancelled_caught
        assert sent < 16
        agent.leave()
        with pytest.raises(anyio.BrokenResourceError):
            await client.send(chunk)


async def test_answers_without_end_are_not_kept() -> None:
    async with linked() as (agent, guest):
        agent.say(raw(FrameType.OK, 5) * 100_000)
        await agent.is_lost.wait()
        assert not guest.is_linked
        guest.add_process(ProcessSpec(args=("true",)))


async def test_output_by_the_byte_costs_what_it_holds() -> None:
    """Of both streams in turn, so that no two pieces are neighbours."""
    queue = OutputQueue()
    count = 10_000
    tracemalloc.start()
    try:
        for _ in range(count):
            queue.put(StreamId.STDOUT, b"o")
            queue.put(StreamId.STDERR, b"e")
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < MAX_PIECES * 256 + 4 * count
    queue.finish()
    read = {StreamId.STDOUT: b"", StreamId.STDERR: b""}
    with pytest.raises(anyio.EndOfStream):
        while True:
            stream, piece = await queue.receive()
            read[stream] += piece
    assert read == {StreamId.STDOUT: b"o" * count, StreamId.STDERR: b"e" * count}
    assert queue.waiting_bytes() == 0

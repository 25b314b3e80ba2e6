# SPDX-License-Identifier: Apache-2.0
"""Speaks with qemu-guest-agent in a guest: runs a command and returns what it wrote.

The agent sits behind a serial port that QEMU offers as a socket, one client at a time. Nobody knows whether
it is there until it answers, and it may have half an answer for an earlier client in the line; so each
conversation begins with a synchronisation. What it says is a guest's word: bounded, and no more than output.

Source: QEMU docs/interop/qemu-ga-ref, guest-sync-delimited, guest-exec, guest-exec-status.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import msgspec

from proa.model.errors import Conflict, EngineError, Internal, InvalidParameter, Unavailable

GREETING_TIMEOUT_S = 5.0  # an agent answers at once, but may be starved under emulation
ANSWER_TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 48 * 1024 * 1024  # the agent's limit of 16 MiB for each of two outputs, in base64
MAX_INPUT_BYTES = 8 * 1024 * 1024
_POLL_S = (0.02, 0.05, 0.1, 0.2, 0.5)  # between questions whether a command has ended; the last repeats
_SENTINEL = b"\xff"  # no byte of JSON: where answers begin anew

Answer = dict[str, Any]  # Any: JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestResult:
    """How a command ended. ``truncated``: it wrote more than the agent keeps."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False


async def run_in_guest(
    path: Path, command: Sequence[str], *, env: Sequence[str] = (), stdin: bytes = b"", timeout_s: float
) -> GuestResult:
    """Run a command in the guest behind the agent's socket, without a terminal and without a shell.

    :raises InvalidParameter: the guest cannot run it.
    :raises Conflict: no agent answers, or another conversation is under way.
    :raises Unavailable: the command has not ended in time; it goes on.
    """
    if not command or len(stdin) > MAX_INPUT_BYTES:
        raise InvalidParameter(f"a command, and at most {MAX_INPUT_BYTES} bytes of input, are needed")
    async with conversation(path) as agent:
        return await agent.run(command, env=env, stdin=stdin, timeout_s=timeout_s)


@asynccontextmanager
async def frozen(path: Path) -> AsyncIterator[None]:
    """Hold the guest's file systems at rest for the span of the block, which is to be short.

    A guest without an agent, or with one that refuses, is not held: what is copied then is as after a power
    cut, which file systems are made for.
    """
    async with AsyncExitStack() as stack:
        with contextlib.suppress(EngineError):
            agent = await stack.enter_async_context(conversation(path))
            stack.push_async_callback(_thaw, agent)
            await agent.ask("guest-fsfreeze-freeze", {})
        yield


async def _thaw(agent: Agent) -> None:
    with anyio.CancelScope(shield=True), contextlib.suppress(EngineError):
        await agent.ask("guest-fsfreeze-thaw", {})


def _result_of(status: Answer) -> GuestResult:
    try:
        code = int(status.get("exitcode", 128 + int(status.get("signal", 0))))
        return GuestResult(
            exit_code=code & 0xFF,
            stdout=base64.b64decode(status.get("out-data", ""), validate=True),
            stderr=base64.b64decode(status.get("err-data", ""), validate=True),
            truncated=bool(status.get("out-truncated") or status.get("err-truncated")),
        )
    except (TypeError, ValueError, binascii.Error) as error:
        raise Internal(f"the guest agent answers nonsense: {error}") from error


class Agent:
    """One conversation."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._buffer = bytearray()

    async def synchronise(self) -> None:
        """Find the beginning of a line that answers us. Raises Conflict."""
        number = secrets.randbits(31)
        message = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        try:
            with anyio.fail_after(GREETING_TIMEOUT_S):
                await self._send(_SENTINEL + msgspec.json.encode(message) + b"\n")
                while True:
                    await self._read_past(_SENTINEL)
                    if (await self._answer()).get("return") == number:
                        return
        except TimeoutError:
            raise Conflict(
                "no guest agent answers: it is not running in the guest (apt install qemu-guest-agent there)"
            ) from None

    async def run(
        self, command: Sequence[str], *, env: Sequence[str] = (), stdin: bytes = b"", timeout_s: float
    ) -> GuestResult:
        """Run a command in the guest and wait for its end. Raises InvalidParameter, Unavailable."""
        wanted: Answer = {
            "path": command[0],
            "arg": list(command[1:]),
            "env": list(env),
            "capture-output": True,
        }
        if stdin:
            wanted["input-data"] = base64.b64encode(stdin).decode()
        pid = (await self.ask("guest-exec", wanted)).get("pid")
        with anyio.move_on_after(timeout_s):
            for round_ in range(1 << 62):
                status = await self.ask("guest-exec-status", {"pid": pid})
                if status.get("exited"):
                    return _result_of(status)
                await anyio.sleep(_POLL_S[min(round_, len(_POLL_S) - 1)])
        raise Unavailable(f"the command did not end within {timeout_s:g} s; it goes on in the guest")

    async def ask(self, command: str, arguments: Answer) -> Answer:
        """Run one of the agent's commands; an answer that is no object counts as an empty one.

        :raises InvalidParameter: the agent refuses.
        :raises Unavailable: it does not answer, or has gone.
        """
        found = await self.call(command, arguments)
        return found if isinstance(found, dict) else {}

    async def call(self, command: str, arguments: Answer) -> object:
        """As ``ask``, for commands whose answer is something else."""
        try:
            with anyio.fail_after(ANSWER_TIMEOUT_S):
                await self._send(msgspec.json.encode({"execute": command, "arguments": arguments}) + b"\n")
                answer = await self._answer()
        except TimeoutError:
            raise Unavailable(f"the guest agent did not answer {command}") from None
        if "error" in answer:
            error = answer["error"]
            said = error.get("desc") if isinstance(error, dict) else None
            raise InvalidParameter(f"the guest: {said or 'refused'}")
        return answer.get("return")

    async def _answer(self) -> Answer:
        line = await self._read_past(b"\n")
        try:
            return msgspec.json.decode(line, type=Answer)
        except msgspec.DecodeError as error:
            raise Internal(f"the guest agent answers nonsense: {error}") from error

    async def _read_past(self, mark: bytes) -> bytes:
        start = 0
        while (end := self._buffer.find(mark, start)) < 0:
            start = len(self._buffer)
            if start > MAX_ANSWER_BYTES:
                raise Internal("the guest agent answers without end")
            await anyio.wait_readable(self._link)
            try:
                data = self._link.recv(1 << 18)
            except OSError as error:
                raise Unavailable(f"the guest agent's line broke: {error}") from error
            if not data:
                raise Unavailable("the machine has ended")
            self._buffer += data
        found = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return found

    async def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._link.send(view) :]
            except BlockingIOError:
                await anyio.wait_writable(self._link)
            except OSError as error:
                raise Unavailable(f"the guest agent's line broke: {error}") from error


@asynccontextmanager
async def conversation(path: Path) -> AsyncIterator[Agent]:
    """Speak with the agent behind a socket. Raises Conflict when none answers, Unavailable."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        try:
            link.connect(os.fspath(path))
        except OSError as error:
            raise Unavailable(f"cannot reach the guest agent's line: {error}") from error
        link.setblocking(False)
        agent = Agent(link)
        await agent.synchronise()
        yield agent
    finally:
        link.close()

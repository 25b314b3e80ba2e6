# SPDX-License-Identifier: Apache-2.0
"""What runs inside the tasks of the contract's tests: a shell command, and its double for the fake."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio

from proa.runtime.seam import StreamId
from tests.support.fake_runtime import FakeProcess

TICK_S = 0.05


@dataclass(frozen=True, slots=True)
class Program:
    args: tuple[str, ...]
    double: Callable[[FakeProcess], Awaitable[int]]


def _shell(script: str) -> Callable[[Callable[[FakeProcess], Awaitable[int]]], Program]:
    return lambda double: Program(("sh", "-c", script), double)


@_shell("echo out; echo err >&2; exit 7")
async def SPEAK(process: FakeProcess) -> int:
    process.write(b"out\n")
    process.write(b"err\n", StreamId.STDERR)
    return 7


@_shell("seq 1 4000")
async def COUNT(process: FakeProcess) -> int:
    process.write(b"".join(b"%d\n" % number for number in range(1, 4001)))
    return 0


@_shell("cat; exit 3")
async def CAT(process: FakeProcess) -> int:
    while data := await process.read():
        process.write(data)
    return 3


@_shell("stty raw -echo; stty size; read line; stty size")
async def TERMINAL(process: FakeProcess) -> int:
    for last in (False, True):
        rows, columns = process.size or (0, 0)
        process.write(b"%d %d\n" % (rows, columns))
        if not last:
            await process.read()
    return 0


@_shell("trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.05; done")
async def TRAP(process: FakeProcess) -> int:
    def caught() -> None:
        process.write(b"caught\n")
        process.end(5)

    process.traps[signal.SIGUSR1] = caught
    process.write(b"ready\n")
    await anyio.sleep_forever()
    return 0


@_shell(f"while :; do echo tick; sleep {TICK_S}; done")
async def TICK(process: FakeProcess) -> int:
    while True:
        await process.go_on()
        process.write(b"tick\n")
        await anyio.sleep(TICK_S)


@_shell("echo ready; exec sleep 1000")
async def SLEEP(process: FakeProcess) -> int:
    process.write(b"ready\n")
    await anyio.sleep_forever()
    return 0


@_shell("sleep 0.3; exit 6")
async def SOON(process: FakeProcess) -> int:
    await anyio.sleep(0.05)
    return 6


@_shell('echo "$A $(pwd) $(id -u)"')
async def TELL(process: FakeProcess) -> int:
    value = next(entry[2:] for entry in process.spec.env if entry.startswith("A="))
    process.write(f"{value} {process.spec.cwd} {process.spec.user or 0}\n".encode())
    return 0


async def _never(process: FakeProcess) -> int:
    raise AssertionError("it cannot be started")


MISSING = Program(("no-such-program",), _never)
NOT_EXECUTABLE = Program(("/etc/passwd",), _never)

PROGRAMS = (SPEAK, COUNT, CAT, TERMINAL, TRAP, TICK, SLEEP, SOON, TELL)
UNKNOWN = {MISSING.args[0]: 127, NOT_EXECUTABLE.args[0]: 126}

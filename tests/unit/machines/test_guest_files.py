# SPDX-License-Identifier: Apache-2.0
"""Files by the guest's agent, with an agent that is played: nothing it says does more than fail."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from proa.machines import guest_files
from proa.machines.agent import Agent, GuestResult
from proa.model.errors import EngineError, Internal, InvalidParameter, NotFound

pytestmark = pytest.mark.anyio

TEMPORARY = GuestResult(exit_code=0, stdout=b"/tmp/proa-cp.x\n", stderr=b"")
DIRECTORY = GuestResult(exit_code=0, stdout=b"41ed 4096 5\n", stderr=b"")
WELL = GuestResult(exit_code=0, stdout=b"", stderr=b"")


class PlayedAgent(Agent):
    """Answers commands from a list, and calls with one value or from what was written."""

    def __init__(self, results: Sequence[GuestResult], **answers: object) -> None:
        self.results = list(results)
        self.answers = {name.replace("_", "-"): answer for name, answer in answers.items()}
        self.commands: list[Sequence[str]] = []
        self.written = b""

    async def run(self, command: Sequence[str], **_: Any) -> GuestResult:  # Any: what is not looked at
        self.commands.append(command)
        return self.results.pop(0) if self.results else WELL

    async def call(self, command: str, arguments: dict[str, Any]) -> object:  # Any: JSON
        if command == "guest-file-write" and command not in self.answers:
            data = base64.b64decode(arguments["buf-b64"])[:4]  # it may take less than it was given
            self.written += data
            return {"count": len(data)}
        return self.answers.get(command, 3 if command == "guest-file-open" else {})


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def failed(code: int, words: str) -> GuestResult:
    return GuestResult(exit_code=code, stdout=b"", stderr=words.encode())


async def test_what_is_at_a_path() -> None:
    said = GuestResult(exit_code=0, stdout=b"a1ff 7 1700000000\n/etc/os\n", stderr=b"")
    found = await guest_files.look(PlayedAgent([said]), "etc/x")
    assert (found.name, found.size, found.target) == ("x", 7, "/etc/os")
    assert found.mode == 1 << 27 | 0o777


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (failed(1, "stat: cannot statx '/x': No such file or directory\n"), NotFound),
        (failed(1, "stat: Permission denied\x1b[2J\n"), InvalidParameter),
        (failed(127, ""), InvalidParameter),
        (GuestResult(exit_code=0, stdout=b"nonsense", stderr=b""), Internal),
        (GuestResult(exit_code=0, stdout=b"zz 1 1\n", stderr=b""), Internal),
    ],
)
async def test_nothing_at_a_path(said: GuestResult, error: type[EngineError]) -> None:
    with pytest.raises(error) as caught:
        await guest_files.look(PlayedAgent([said]), "/x")
    assert "\x1b" not in caught.value.message


async def test_in() -> None:
    agent = PlayedAgent([DIRECTORY, TEMPORARY])
    await guest_files.unpack(agent, "/to", pieces(b"abcdef", b"gh"), keep_owner=False)
    assert agent.written == b"abcdefgh"
    tar = ["tar", "-C", "/to", "-x", "-p", "-o", "-f", "/tmp/proa-cp.x"]
    assert agent.commands[2:] == [tar, ["rm", "-f", "/tmp/proa-cp.x"]]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/etc/x", ["-C", "/etc", "-c", "-f", "/tmp/proa-cp.x", "--", "x"]),
        ("etc/", ["-C", "/", "-c", "-f", "/tmp/proa-cp.x", "--", "etc"]),
        ("/etc/.", ["-C", "/etc/.", "-c", "-f", "/tmp/proa-cp.x", "--", "."]),
        ("/", ["-C", "/", "-c", "-f", "/tmp/proa-cp.x", "--", "."]),
    ],
)
async def test_out(path: str, words: list[str]) -> None:
    data = base64.b64encode(b"tar").decode()
    changed = failed(1, "tar: x: file changed as we read it\n")
    agent = PlayedAgent([TEMPORARY, changed], guest_file_read={"buf-b64": data, "eof": True})
    async with guest_files.packed(agent, path) as found:
        assert [piece async for piece in found] == [b"tar"]
    assert agent.commands[1:] == [["tar", *words], ["rm", "-f", "/tmp/proa-cp.x"]]


@pytest.mark.parametrize(
    "answers",
    [
        {"guest_file_open": {}},
        {"guest_file_write": {"count": 9}},
        {"guest_file_write": {"count": 0}},
        {"guest_file_write": []},
    ],
)
async def test_nonsense_ends_a_copy(answers: dict[str, object]) -> None:
    agent = PlayedAgent([DIRECTORY, TEMPORARY], **answers)
    with pytest.raises(Internal, match="nonsense"):
        await guest_files.unpack(agent, "/to", pieces(b"abc"), keep_owner=True)
    assert agent.commands[-1] == ["rm", "-f", "/tmp/proa-cp.x"]


async def test_a_tar_that_fails() -> None:
    agent = PlayedAgent([TEMPORARY, failed(2, "tar: no space\n")])
    with pytest.raises(InvalidParameter, match="the guest: tar: no space"):
        async with guest_files.packed(agent, "/x"):
            raise AssertionError("it did not fail")
    assert agent.commands[-1][0] == "rm"

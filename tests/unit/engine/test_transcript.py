# SPDX-License-Identifier: Apache-2.0
"""Stages that are built at the same time speak one after the other."""

from __future__ import annotations

from collections.abc import Mapping

import anyio
import pytest

from proa.engine.building.transcript import WAITING_MAX, Transcript

pytestmark = pytest.mark.anyio


async def test_voices_speak_in_order() -> None:
    told: list[Mapping[str, object]] = []
    asked: list[str] = []

    async def room() -> None:
        asked.append("room")

    transcript = Transcript(told.append, room, quiet=False)
    first, second, third = (transcript.open_voice() for _ in range(3))
    transcript.advance()
    second.say("2a")
    first.say("1")
    await first.room()
    assert [message["stream"] for message in told] == ["1"]
    third.say("3")
    third.close()
    first.close()
    second.say("2b")
    second.close()
    assert [message["stream"] for message in told] == ["1", "2a", "2b", "3"]
    assert asked == ["room"]


async def test_a_voice_waits_when_much_waits() -> None:
    async def room() -> None:
        return

    transcript = Transcript(lambda _: None, room, quiet=False)
    first, second = transcript.open_voice(), transcript.open_voice()
    transcript.advance()
    second.say("x" * (WAITING_MAX + 1))
    with anyio.move_on_after(0.01) as scope:
        await second.room()
    assert scope.cancelled_caught
    first.close()
    await second.room()


async def test_quiet_keeps_the_text() -> None:
    told: list[Mapping[str, object]] = []

    async def room() -> None:
        return

    transcript = Transcript(told.append, room, quiet=True)
    voice = transcript.open_voice()
    transcript.advance()
    voice.say("step\n")
    assert (told, transcript.kept) == ([], "step\n")

# SPDX-License-Identifier: Apache-2.0
"""The messages of a build in the order of the Dockerfile, though stages are built at the same time.

The first stage that has not ended speaks at once; what later ones say waits, up to a bound beyond which they
wait themselves. No stage waits for a later one, so this ends.
"""

from __future__ import annotations

from collections.abc import Mapping

import anyio

from proa.engine.building.request import Room, Tell

WAITING_MAX = 4 << 20  # characters of one stage's output


class Transcript:
    """All voices of one build. With ``quiet`` the text is kept for a failure and not told."""

    def __init__(self, tell: Tell, room: Room, *, quiet: bool) -> None:
        self._tell = tell
        self.room = room
        self._quiet = quiet
        self._voices: list[Voice] = []
        self.kept = ""

    def open_voice(self) -> Voice:
        """Return the voice that comes after all that were opened before."""
        voice = Voice(self)
        self._voices.append(voice)
        return voice

    def advance(self) -> None:
        """Let the first voice that has not ended speak."""
        while self._voices:
            first = self._voices[0]
            first.let_speak()
            if not first.is_closed:
                return
            self._voices.pop(0)

    def tell(self, message: Mapping[str, object]) -> None:
        if self._quiet:
            self.kept = (self.kept + str(message.get("stream", "")))[-WAITING_MAX:]
        else:
            self._tell(message)


class Voice:
    """One stage's way to the client."""

    def __init__(self, transcript: Transcript) -> None:
        self._transcript = transcript
        self._waiting: list[Mapping[str, object]] = []
        self._size = 0
        self._speaks = anyio.Event()
        self.is_closed = False
        self.listener: Tell | None = None  # of what is told beside text, at once

    def say(self, text: str) -> None:
        """Tell a piece of text."""
        self.tell({"stream": text})

    def tell(self, message: Mapping[str, object]) -> None:
        """Tell a message, in its turn."""
        if self.listener is not None and "stream" not in message:
            self.listener(message)
        if self._speaks.is_set():
            self._transcript.tell(message)
            return
        self._waiting.append(message)
        self._size += len(str(message.get("stream", ""))) + 100

    async def room(self) -> None:
        """Wait while too much waits to be told."""
        if self._size > WAITING_MAX:
            await self._speaks.wait()
        if self._speaks.is_set():
            await self._transcript.room()

    def close(self) -> None:
        """Say that nothing follows. Idempotent."""
        self.is_closed = True
        self._transcript.advance()

    def let_speak(self) -> None:
        """Tell what waited; from now on everything is told at once."""
        self._speaks.set()
        waiting, self._waiting = self._waiting, []
        self._size = 0
        for message in waiting:
            self._transcript.tell(message)

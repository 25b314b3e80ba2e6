# SPDX-License-Identifier: Apache-2.0
"""What is shipped, of whom, and where to: the seam between the reader of a log and the protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of output, or a piece of a long one.

    :ivar at_ns: when it was written, Unix nanoseconds.
    :ivar text: without its newline.
    :ivar is_partial: the line goes on in the next one.
    """

    at_ns: int
    text: bytes
    is_error: bool = False
    is_partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Whose lines they are.

    :ivar tag: what the option ``tag`` makes of the container; its short id unless told otherwise.
    :ivar extra: the labels and variables asked for by options.
    """

    container_id: str
    container_name: str
    image_name: str
    tag: str
    extra: Mapping[str, str] = field(default_factory=dict)


class Destination(Protocol):
    """A connection to where lines go. Every method raises OSError, also when it takes too long."""

    async def open(self) -> None:
        """Connect."""

    async def send(self, lines: Sequence[Line]) -> None:
        """Hand the lines over. After an error it is not known which of them arrived."""

    async def aclose(self) -> None:
        """Disconnect. Idempotent."""

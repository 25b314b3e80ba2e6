# SPDX-License-Identifier: Apache-2.0
"""Signals as users write them: KILL, SIGKILL, 9, RTMIN+3. Source: signal(7); docker kill reference."""

from __future__ import annotations

import re
import signal

from proa.model.errors import InvalidParameter

_RTMIN, _RTMAX = 34, 64  # as glibc counts them; the numbers cross into containers with any libc
_REALTIME = re.compile(r"RT(MIN|MAX)(?:([+-])(\d{1,2}))?")


def parse_signal(text: str) -> int:
    """Return the number of a signal. Raises InvalidParameter."""
    name = text.strip().upper().removeprefix("SIG")
    number: int | None = None
    if name.isascii() and name.isdecimal():
        number = int(name)
    elif match := _REALTIME.fullmatch(name):
        base = _RTMIN if match[1] == "MIN" else _RTMAX
        offset = int(match[3] or 0)
        number = base - offset if match[2] == "-" else base + offset
    else:
        found = signal.Signals.__members__.get(f"SIG{name}")
        number = None if found is None else int(found)
    if number is None or not 0 < number <= _RTMAX:
        raise InvalidParameter(f"invalid signal: {text}")
    return number

# SPDX-License-Identifier: Apache-2.0
"""Times as the Engine API writes them.

Bodies carry RFC 3339 with up to nine digits of a second and the trailing zeros removed (Go's RFC3339Nano),
log lines carry all nine, and queries carry either that or Unix seconds with a fraction
(``1136073600.000000001``). Inside proa a time is an integer of nanoseconds since the Unix epoch, and 0 is
"never".

Source: Engine API, ContainerLogs (since, until), SystemEvents; Go, package time, RFC3339Nano.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

ZERO_TIME = "0001-01-01T00:00:00Z"  # Go's zero time: it has not happened
NS = 1_000_000_000

_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[Tt ](\d\d:\d\d(?::\d\d)?)(?:\.(\d{1,9})\d*)?)?([Zz]|[+-]\d\d:\d\d)?"
)
_UNIX = re.compile(r"(-?\d{1,12})(?:\.(\d{1,9})\d*)?")


def format_time(time_ns: int) -> str:
    """Return RFC 3339 in UTC with the digits needed; 0 gives Go's zero time."""
    if time_ns == 0:
        return ZERO_TIME
    fraction = f"{time_ns % NS:09d}".rstrip("0")
    return f"{_seconds(time_ns)}.{fraction}Z" if fraction else f"{_seconds(time_ns)}Z"


def format_time_fixed(time_ns: int) -> str:
    """Return RFC 3339 in UTC with nine digits always, so that lines of a log align."""
    return f"{_seconds(time_ns)}.{time_ns % NS:09d}Z"


def parse_time(text: str) -> int:
    """Read RFC 3339, a date, or Unix seconds with a fraction. "" is 0 and Go's zero time is 0.

    A time without a zone is UTC. Raises ValueError, with a sentence for the user.
    """
    if text in ("", ZERO_TIME):
        return 0
    if unix := _UNIX.fullmatch(text):
        seconds = int(unix[1]) * NS
        fraction = _fraction(unix[2])
        return seconds - fraction if text.startswith("-") else seconds + fraction
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"invalid time: {text!r} is neither RFC 3339 nor Unix seconds")
    date, clock, fraction_text, zone = match.groups()
    try:
        moment = datetime.fromisoformat(f"{date}T{clock or '00:00:00'}{(zone or 'Z').upper()}")
    except ValueError as error:
        raise ValueError(f"invalid time: {text!r}: {error}") from error
    return int(moment.timestamp()) * NS + _fraction(fraction_text)


def _seconds(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // NS, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _fraction(digits: str | None) -> int:
    return int((digits or "0").ljust(9, "0"))

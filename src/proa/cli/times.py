# SPDX-License-Identifier: Apache-2.0
"""Times and sizes as docker prints and reads them. Pure."""

from __future__ import annotations

import re
import time

import click

from proa.wire.times import parse_time

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")


def parse_moment(text: str, now_s: float) -> str:
    """Return Unix seconds, as text, of a time or of a duration before now ("10m"); "" stays "".

    Raises click.BadParameter.
    """
    if not text:
        return ""
    match = _DURATION.fullmatch(text)
    if match and any(match.groups()):
        hours, minutes, seconds = (float(group or 0) for group in match.groups())
        return f"{now_s - hours * 3600 - minutes * 60 - seconds:.9f}"
    try:
        return f"{parse_time(text) / 1e9:.9f}"
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def format_ago(then_s: float, now_s: float | None = None) -> str:
    """Return "3 minutes ago"."""
    return f"{format_duration((time.time() if now_s is None else now_s) - then_s)} ago"


def format_since(moment: str) -> str:
    """``format_ago`` of a time as the API writes it. Raises ValueError."""
    return format_ago(parse_time(moment) / 1e9)


def format_duration(seconds: float) -> str:
    """Return a duration in the largest unit that fits, in docker's words."""
    minutes, hours = int(seconds / 60), int(seconds / 3600 + 0.5)  # hours are rounded, as docker does
    if seconds < 1:
        return "Less than a second"
    if seconds < 2:
        return "1 second"
    if minutes < 1:
        return f"{int(seconds)} seconds"
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    if hours == 1:
        return "About an hour"
    for limit, size, unit in (
        (48, 1, "hours"),
        (24 * 14, 24, "days"),
        (24 * 60, 168, "weeks"),
        (17520, 720, "months"),
    ):
        if hours < limit:
            return f"{hours // size} {unit}"
    return f"{hours // 8760} years"


def format_size(size: float, *, base: int = 1000, digits: int = 3) -> str:
    """Return bytes in docker's short form: 1.23MB, or with base 1024 1.2MiB."""
    units = ("B", "kB", "MB", "GB", "TB", "PB") if base == 1000 else ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    value, position = float(size), 0
    while value >= base and position < len(units) - 1:
        value /= base
        position += 1
    return f"{value:.{digits}g}{units[position]}" if value < 1000 else f"{value:.0f}{units[position]}"

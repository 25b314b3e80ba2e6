# SPDX-License-Identifier: Apache-2.0
"""Filters of lists and prunes: a map from a filter's name to the values it accepts.

Source: Engine API, the ``filters`` parameter of ContainerList, ContainerPrune, VolumeList, NetworkList.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal

from proa.model.errors import InvalidParameter

Filters = Mapping[str, Sequence[str]]
"""Values of one name are alternatives; names must all match (labels: every one of them)."""

_UNIX_TIME = re.compile(r"[+-]?\d{1,15}(\.\d{1,30})?", re.ASCII)  # "nan" and 1e400 are floats too
_DURATION = re.compile(r"(?:(\d{1,15}(?:\.\d{1,30})?)(ns|us|µs|ms|s|m|h))", re.ASCII)
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def check_filters(filters: Filters, accepted: Collection[str]) -> None:
    """Raise InvalidParameter for a filter that this list does not have."""
    for name in filters:
        if name not in accepted:
            raise InvalidParameter(f"invalid filter '{name}'")


def match_labels(labels: Mapping[str, str], filters: Filters) -> bool:
    """Tell whether ``label`` (all of them) and ``label!`` (none of them) accept these labels."""
    return all(_has_label(labels, wanted) for wanted in filters.get("label", ())) and not any(
        _has_label(labels, unwanted) for unwanted in filters.get("label!", ())
    )


def match_text(value: str, patterns: Sequence[str]) -> bool:
    """Tell whether the value fits one of the patterns: equal, or found as a regular expression."""
    if not patterns:
        return True
    for pattern in patterns:
        if value == pattern:
            return True
        try:
            if re.search(pattern, value):
                return True
        except re.error as error:
            raise InvalidParameter(f"invalid filter pattern {pattern!r}: {error}") from error
    return False


def parse_bool(filters: Filters, name: str, default: bool | None = None) -> bool | None:
    """Return a filter's one boolean. Raises InvalidParameter."""
    values = filters.get(name)
    if not values:
        return default
    value = values[0].lower()
    if len(values) > 1 or value not in ("1", "true", "t", "0", "false", "f"):
        raise InvalidParameter(f"invalid filter '{name}={list(values)}'")
    return value in ("1", "true", "t")


def parse_until_ns(filters: Filters, now_ns: int) -> int | None:
    """Return the time of the ``until`` filter in Unix nanoseconds. Raises InvalidParameter."""
    values = filters.get("until")
    if not values:
        return None
    if len(values) > 1:
        raise InvalidParameter("more than one until filter specified")
    return parse_time_filter_ns(values[0], now_ns)


def parse_time_filter_ns(text: str, now_ns: int) -> int:
    """Return Unix nanoseconds of a time, a Unix time or a duration before now. Raises InvalidParameter."""
    if _UNIX_TIME.fullmatch(text):
        return int(Decimal(text) * 1_000_000_000)
    pieces = _DURATION.findall(text)
    if pieces and "".join(number + unit for number, unit in pieces) == text:
        seconds = sum(float(number) * _UNITS_S[unit] for number, unit in pieces)
        return now_ns - int(seconds * 1e9)
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return int(moment.timestamp() * 1e9)
    except (ValueError, OverflowError) as error:
        raise InvalidParameter(f"failed to parse value as time or duration: {text!r}") from error


def _has_label(labels: Mapping[str, str], wanted: str) -> bool:
    key, separator, value = wanted.partition("=")
    return key in labels and (not separator or labels[key] == value)

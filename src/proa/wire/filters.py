# SPDX-License-Identifier: Apache-2.0
"""Filters of list, prune and event requests: a JSON map in the query.

Written as ``{"label": ["a=b"]}``; clients older than API 1.22 wrote ``{"label": {"a=b": true}}``, and Go's
client still does. Both are read; the second is written, because every daemon reads it.

Source: Engine API, ContainerList, filters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec


def parse_filters(text: str) -> dict[str, tuple[str, ...]]:
    """Return the values of each filter, in order. "" is no filter. Raises ValueError."""
    if not text:
        return {}
    try:
        raw = msgspec.json.decode(text, type=dict[str, list[str] | dict[str, bool] | None])
    except msgspec.DecodeError as error:
        raise ValueError(f"invalid filter: {error}") from error
    found: dict[str, tuple[str, ...]] = {}
    for key, values in raw.items():
        if isinstance(values, dict):
            chosen = tuple(value for value, wanted in values.items() if wanted)
        else:
            chosen = tuple(values or ())
        if chosen:
            found[key] = chosen
    return found


def format_filters(filters: Mapping[str, Sequence[str]]) -> str:
    """Return the query value; "" when there is nothing to filter by."""
    if not any(filters.values()):
        return ""
    return msgspec.json.encode(
        {key: dict.fromkeys(values, True) for key, values in filters.items() if values}
    ).decode()

# SPDX-License-Identifier: Apache-2.0
"""Filters of image lists and of image prune. Pure, given the catalog.

Values of one filter are alternatives, filters must all fit; of ``label`` and ``label!`` every value counts.

Source: Engine API, ImageList and ImagePrune, parameter filters; Go, path.Match (patterns of ``reference``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from proa.image.catalog import Catalog, Entry
from proa.image.config import created_ns
from proa.image.reference import Reference
from proa.model.errors import InvalidParameter
from proa.model.image import Image

LIST_FILTERS = frozenset({"dangling", "label", "label!", "before", "since", "reference", "until"})
PRUNE_FILTERS = frozenset({"dangling", "label", "label!", "until"})

Filters = Mapping[str, Sequence[str]]

_TRUE, _FALSE = ("1", "t", "true"), ("0", "f", "false")
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNIT_NS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_UNIX_TIME = re.compile(r"(\d{1,12})(?:\.(\d{1,9}))?")


def check_filters(filters: Filters, accepted: Collection[str]) -> None:
    """Raise InvalidParameter (``invalid filter 'x'``) for a filter that is not accepted here."""
    for name in filters:
        if name not in accepted:
            raise InvalidParameter(f"invalid filter '{name}'")


def parse_dangling(filters: Filters) -> bool | None:
    """Return what ``dangling`` asks for; None when it is not there. Raises InvalidParameter."""
    values = filters.get("dangling", ())
    if not values:
        return None
    wanted = {True if value in _TRUE else False if value in _FALSE else None for value in values}
    if len(wanted) != 1 or None in wanted:
        raise InvalidParameter(f"invalid filter 'dangling=[{' '.join(values)}]'")
    return wanted.pop()


def select(catalog: Catalog, filters: Filters, now_ns: int) -> list[Image]:
    """Return the images that fit. With ``reference``, an image shows only the names that fit.

    Raises InvalidParameter; NoSuchImage when ``before`` or ``since`` names none.
    """
    check_filters(filters, LIST_FILTERS)
    tests = [fits_label(filters), *_time_tests(catalog, filters, now_ns)]
    dangling = parse_dangling(filters)
    patterns = [compile_pattern(pattern) for pattern in filters.get("reference", ())]
    selected: list[Image] = []
    for entry in catalog:
        if not all(test(entry) for test in tests):
            continue
        if dangling is not None and dangling != is_dangling(entry):
            continue
        image = entry.image
        if patterns:
            names = [name for name in entry.names if matches_reference(name, patterns)]
            if not names:
                continue
            image = replace(
                image,
                references=tuple(name.familiar for name in names if not name.digest),
                repo_digests=tuple(name.familiar for name in names if name.digest),
            )
        selected.append(image)
    return selected


def is_dangling(entry: Entry) -> bool:
    """Whether the image has no name."""
    return not entry.names


def fits_label(filters: Filters) -> Callable[[Entry], bool]:
    """Return a test for ``label`` and ``label!``: each value is KEY or KEY=VALUE."""

    def has(entry: Entry, wanted: str) -> bool:
        key, equals, value = wanted.partition("=")
        labels = entry.image.config.labels or {}
        return key in labels and (not equals or labels[key] == value)

    def fits(entry: Entry) -> bool:
        return all(has(entry, wanted) for wanted in filters.get("label", ())) and not any(
            has(entry, unwanted) for unwanted in filters.get("label!", ())
        )

    return fits


def fits_until(filters: Filters, now_ns: int) -> Callable[[Entry], bool]:
    """Return a test for ``until``: made before that time. Raises InvalidParameter."""
    values = filters.get("until", ())
    if not values:
        return lambda entry: True
    if len(values) > 1:
        raise InvalidParameter("more than one until filter specified")
    limit = parse_moment(values[0], now_ns)
    return lambda entry: created_ns(entry.image.created) < limit


def parse_moment(text: str, now_ns: int) -> int:
    """Read a duration before now (Go's form: 1h30m), Unix seconds or RFC 3339 as Unix nanoseconds.

    Raises InvalidParameter.
    """
    if unix := _UNIX_TIME.fullmatch(text):
        return int(unix[1]) * 10**9 + int((unix[2] or "0").ljust(9, "0"))
    pieces = _DURATION.findall(text)
    if pieces and "".join(number + unit for number, unit in pieces) == text:
        return now_ns - int(sum(float(number) * _UNIT_NS[unit] for number, unit in pieces))
    moment = created_ns(text)
    if not moment:
        raise InvalidParameter(f"invalid filter 'until={text}': neither a time nor a duration")
    return moment


def matches_reference(name: Reference, patterns: Sequence[re.Pattern[str]]) -> bool:
    """Tell whether a pattern fits the name with or without its tag, in familiar form."""
    return any(
        pattern.fullmatch(text) for pattern in patterns for text in (name.familiar, name.familiar_name)
    )


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Turn a pattern of Go's path.Match into a regular expression: ``*`` and ``?`` stop at a slash.

    Raises InvalidParameter: ``syntax error in pattern``.
    """
    pieces: list[str] = []
    rest = pattern
    while rest:
        head, rest = rest[0], rest[1:]
        if head == "*":
            pieces.append("[^/]*" if pieces[-1:] != ["[^/]*"] else "")
            pieces = [piece for piece in pieces if piece]
        elif head == "?":
            pieces.append("[^/]")
        elif head == "[":
            piece, rest = _character_class(rest)
            pieces.append(piece)
        elif head == "\\":
            if not rest:
                raise _bad_pattern()
            pieces.append(re.escape(rest[0]))
            rest = rest[1:]
        else:
            pieces.append(re.escape(head))
    return re.compile("".join(pieces))


def _character_class(rest: str) -> tuple[str, str]:
    """Read a class after its ``[``; return it as a regular expression, and what follows."""
    negation = "^" if rest.startswith("^") else ""
    rest = rest[len(negation) :]
    ranges: list[str] = []
    while not (rest.startswith("]") and ranges):
        low, rest = _class_character(rest)
        high = low
        if rest.startswith("-"):
            high, rest = _class_character(rest[1:])
        if low <= high:  # an empty range is allowed, and matches nothing
            ranges.append(f"{re.escape(low)}-{re.escape(high)}")
        else:
            ranges.append("")
    inside = "".join(ranges)
    if not inside:
        return ("[^/]" if negation else "(?!)"), rest[1:]
    return f"(?!/)[{negation}{inside}]" if negation else f"[{inside}]", rest[1:]


def _class_character(rest: str) -> tuple[str, str]:
    if not rest or rest[0] in "-]" or (rest[0] == "\\" and len(rest) == 1):
        raise _bad_pattern()
    return (rest[1], rest[2:]) if rest[0] == "\\" else (rest[0], rest[1:])


def _bad_pattern() -> InvalidParameter:
    return InvalidParameter("syntax error in pattern")


def _time_tests(catalog: Catalog, filters: Filters, now_ns: int) -> list[Callable[[Entry], bool]]:
    tests = [fits_until(filters, now_ns)]
    for name in filters.get("before", ()):
        limit = created_ns(catalog.get(name).image.created)
        tests.append(lambda entry, limit=limit: created_ns(entry.image.created) < limit)  # type: ignore[misc]
    for name in filters.get("since", ()):
        limit = created_ns(catalog.get(name).image.created)
        tests.append(lambda entry, limit=limit: created_ns(entry.image.created) > limit)  # type: ignore[misc]
    return tests

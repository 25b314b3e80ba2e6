# SPDX-License-Identifier: Apache-2.0
"""Patterns of ``.dockerignore`` and ``--exclude``. Pure.

A later pattern overrides an earlier one; ``!`` takes an exclusion back; a pattern that fits a directory fits
all below it; ``**`` stands for any number of directories.

Source: Docker documentation, "Build context", .dockerignore files; Go, path/filepath, Match.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from proa.model.errors import InvalidParameter


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: re.Pattern[str]
    is_exception: bool


class IgnoreRules:
    """The patterns of one file, in order.

    :raises InvalidParameter: a pattern is malformed.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._rules: list[_Rule] = []
        for pattern in patterns:
            exception = pattern.startswith("!")
            text = pattern[1:].strip() if exception else pattern.strip()
            if exception and not text:
                raise InvalidParameter('illegal exclusion pattern: "!"')
            text = posixpath.normpath(text).lstrip("/") if text else ""
            if text in ("", "."):
                continue
            self._rules.append(_Rule(compile_pattern(text), exception))
        self.has_exceptions = any(rule.is_exception for rule in self._rules)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def ignores(self, path: str) -> bool:
        """Whether the path (without a leading slash), or a directory above it, is excluded in the end."""
        ignored = False
        ancestors = [path[: match.start()] for match in re.finditer("/", path)]
        for rule in self._rules:
            if rule.is_exception == (not ignored):
                continue  # it would change nothing
            if rule.pattern.fullmatch(path) or any(rule.pattern.fullmatch(above) for above in ancestors):
                ignored = not rule.is_exception
        return ignored


def read_ignore_file(text: str) -> list[str]:
    """Return the patterns of a ``.dockerignore``: no comments, no empty lines."""
    lines = text.removeprefix("\ufeff").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


@lru_cache(maxsize=1000)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Translate a pattern. Raises InvalidParameter when it is malformed."""
    out: list[str] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*":
            if not pattern.startswith("*", at):
                out.append("[^/]*")
                continue
            at += 1
            if pattern.startswith("/", at):
                at += 1
                out.append("(?:.*/)?")
            else:
                out.append(".*")
        elif char == "?":
            out.append("[^/]")
        elif char == "[":
            text, at = _class(pattern, at)
            out.append(text)
        elif char == "\\":
            if at == len(pattern):
                raise InvalidParameter(f"syntax error in pattern: {pattern}")
            out.append(re.escape(pattern[at]))
            at += 1
        else:
            out.append(re.escape(char))
    try:
        return re.compile("".join(out), re.DOTALL)
    except re.error as error:
        raise InvalidParameter(f"syntax error in pattern: {pattern}") from error


def _class(pattern: str, at: int) -> tuple[str, int]:
    negated = pattern.startswith("^", at)
    at += negated
    parts: list[str] = []
    while True:
        if at >= len(pattern):
            raise InvalidParameter(f"syntax error in pattern: {pattern}")
        char = pattern[at]
        at += 1
        if char == "]" and parts:
            break
        if char == "\\" and at < len(pattern):
            char = pattern[at]
            at += 1
        elif char == "-" and parts and pattern[at : at + 1] not in ("]", ""):
            parts.append("-")
            continue
        parts.append(re.escape(char))
    return ("[^/" if negated else "(?!/)[") + "".join(parts) + "]", at

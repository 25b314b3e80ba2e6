# SPDX-License-Identifier: Apache-2.0
"""From method and path to a handler, and the negotiation of the API version.

Source: Engine API, "Versioning"; the sentences are dockerd's, which clients show to users.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from proa.api.errors import RequestError
from proa.api.request import Handler
from proa.wire.routes import API_VERSION, MIN_API_VERSION, Route

_PREFIX = re.compile(r"/v([0-9]+)\.([0-9]+)(?=/)")
_NAME = re.compile(r"\{(\w+)(:path)?\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The handler of a request. ``watch`` means that it ends when its client goes away."""

    handler: Handler
    params: Mapping[str, str]
    watch: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    route: Route
    pattern: re.Pattern[str]
    handler: Handler
    watch: bool


class Router:
    """A table of routes. Of two that fit, the one added first is taken."""

    def __init__(self) -> None:
        self._fixed: dict[str, dict[str, _Entry]] = {}  # by path, then method
        self._patterns: list[_Entry] = []

    def add(self, route: Route, handler: Handler, *, watch: bool = False) -> None:
        """Register a handler. ``watch``: cancel it when the client disconnects.

        Only for what changes nothing: a start or a stop is carried through, as dockerd does.
        """
        entry = _Entry(route=route, pattern=_compile(route.path), handler=handler, watch=watch)
        if "{" in route.path:
            self._patterns.append(entry)
        else:
            self._fixed.setdefault(route.path, {})[route.method] = entry

    @property
    def routes(self) -> frozenset[Route]:
        """All routes that have a handler."""
        fixed = {entry.route for methods in self._fixed.values() for entry in methods.values()}
        return frozenset(fixed | {entry.route for entry in self._patterns})

    def match(self, method: str, path: str) -> Match:
        """Find the handler. Raises RequestError 404 for an unknown path, 405 for an unknown method of it."""
        methods = self._fixed.get(path, {})
        if entry := methods.get(method):
            return Match(handler=entry.handler, params={}, watch=entry.watch)
        known = set(methods)
        for entry in self._patterns:
            found = entry.pattern.fullmatch(path)
            if found is None:
                continue
            if entry.route.method == method:
                params = {name: unquote(value) for name, value in found.groupdict().items()}
                return Match(handler=entry.handler, params=params, watch=entry.watch)
            known.add(entry.route.method)
        if known:
            allowed = {"Allow": ", ".join(sorted(known))}
            raise RequestError(405, f"method {method} is not allowed on {path}", allowed)
        raise RequestError(404, "page not found")


def split_version(path: str) -> tuple[tuple[int, int], str]:
    """Return the version asked for (the newest when there is no prefix) and the rest of the path.

    Raises RequestError 400 for a version that proa does not speak.
    """
    found = _PREFIX.match(path)
    if found is None:
        return _NEWEST, path
    version = int(found[1]), int(found[2])
    text = f"{found[1]}.{found[2]}"
    if version > _NEWEST:
        raise RequestError(
            400, f"client version {text} is too new. Maximum supported API version is {API_VERSION}"
        )
    if version < _OLDEST:
        raise RequestError(
            400,
            f"client version {text} is too old. Minimum supported API version is {MIN_API_VERSION}, "
            "please upgrade your client to a newer version",
        )
    return version, path[found.end() :]


def _compile(path: str) -> re.Pattern[str]:
    """A name takes one segment, a ``:path`` name any number."""
    pattern, last = "", 0
    for name in _NAME.finditer(path):
        pattern += re.escape(path[last : name.start()])
        pattern += f"(?P<{name[1]}>.+)" if name[2] else f"(?P<{name[1]}>[^/]+)"
        last = name.end()
    return re.compile(pattern + re.escape(path[last:]))


def _numbers(version: str) -> tuple[int, int]:
    major, _, minor = version.partition(".")
    return int(major), int(minor)


_NEWEST = _numbers(API_VERSION)
_OLDEST = _numbers(MIN_API_VERSION)

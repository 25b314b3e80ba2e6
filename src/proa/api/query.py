# SPDX-License-Identifier: Apache-2.0
"""The query of a request, read as Docker reads it.

Source: Engine API, query parameters; moby's rules for them (a flag is false when it is empty, 0, no, false or
none, and true otherwise).
"""

from __future__ import annotations

from urllib.parse import parse_qs

from proa.model.errors import InvalidParameter
from proa.wire.filters import parse_filters
from proa.wire.times import parse_time

MAX_FIELDS = 1000
_FALSE = frozenset({"", "0", "no", "false", "none"})


class Query:
    """Checked getters; each raises InvalidParameter that names the key."""

    def __init__(self, text: str) -> None:
        try:
            self._values = parse_qs(text, keep_blank_values=True, max_num_fields=MAX_FIELDS) if text else {}
        except ValueError as error:
            raise InvalidParameter(f"invalid query: {error}") from error

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str, default: str = "") -> str:
        """Return the first value, or the default when there is none."""
        values = self._values.get(name)
        return values[0] if values else default

    def texts(self, name: str) -> list[str]:
        """Return all values, in order."""
        return self._values.get(name, [])

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return whether it is set; the default counts only when the key is absent."""
        if name not in self._values:
            return default
        return self.text(name).strip().lower() not in _FALSE

    def number(self, name: str) -> int | None:
        """Return the integer, None when it is absent or empty."""
        text = self.text(name)
        if not text:
            return None
        try:
            return int(text)
        except ValueError as error:
            raise InvalidParameter(f'invalid value for {name}: "{text}" is not an integer') from error

    def time_ns(self, name: str) -> int:
        """Return the time in nanoseconds since the epoch, 0 when it is absent or empty."""
        try:
            return parse_time(self.text(name))
        except ValueError as error:
            raise InvalidParameter(f"invalid value for {name}: {error}") from error

    def filters(self) -> dict[str, tuple[str, ...]]:
        """Return the ``filters`` parameter."""
        try:
            return parse_filters(self.text("filters"))
        except ValueError as error:
            raise InvalidParameter(str(error)) from error

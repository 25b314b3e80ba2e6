# SPDX-License-Identifier: Apache-2.0
"""The log drivers that ship lines, by name."""

from __future__ import annotations

from collections.abc import Mapping

from proa.model.errors import InvalidParameter
from proa.shipping import journald, syslog
from proa.shipping.lines import Destination, Source

NAMES = ("journald", "syslog")


def available() -> tuple[str, ...]:
    """Return those that this host can serve."""
    return tuple(name for name in NAMES if name != "journald" or journald.is_present())


def check(driver: str, options: Mapping[str, str]) -> None:
    """Raise InvalidParameter for options that make no sense, and for a driver that has nothing here."""
    if driver == "syslog":
        syslog.parse_settings(options)
    elif not journald.is_present():
        raise InvalidParameter("logger: journald is not enabled on this host")


def connect(driver: str, options: Mapping[str, str], source: Source) -> Destination:
    """Return the destination of one container, not yet open. Raises InvalidParameter."""
    if driver == "journald":
        return journald.Journal(source)
    return syslog.Syslog(syslog.parse_settings(options), source)

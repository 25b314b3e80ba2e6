# SPDX-License-Identifier: Apache-2.0
"""The --health flags of ``run`` and ``create``.

Source: docker run reference, "Options"; podman-run(1), --health-on-failure; Go, time.ParseDuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import click

from proa.model.config import HealthConfig

ON_FAILURE = "io.proa.health-on-failure"  # the annotation that the engine reads
_ACTIONS = ("none", "kill", "restart", "stop")
_PIECE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_TIMES = ("interval", "timeout", "start_period", "start_interval")


def parse_health(flags: Mapping[str, Any]) -> HealthConfig | None:  # Any: click's values, by flag name
    """Return the check that the flags ask for; None when there are none. Raises click.UsageError."""
    times = {name: flags[f"health_{name}"] for name in _TIMES}
    asked = flags["health_cmd"], flags["health_retries"], *times.values()
    if flags["no_healthcheck"]:
        if any(value is not None for value in asked):
            raise click.UsageError("--no-healthcheck conflicts with --health-* options")
        return HealthConfig(test=["NONE"])
    if all(value is None for value in asked):
        return None
    return HealthConfig(
        test=["CMD-SHELL", flags["health_cmd"]] if flags["health_cmd"] else None,
        retries=flags["health_retries"] or 0,
        **{name: parse_duration(text) for name, text in times.items() if text},
    )


def on_failure(flags: Mapping[str, Any]) -> dict[str, str]:  # Any: as above
    """Return the annotation of --health-on-failure. Raises click.BadParameter."""
    action = flags["health_on_failure"]
    if action is None:
        return {}
    if action not in _ACTIONS:
        raise click.BadParameter(f"invalid --health-on-failure {action!r}: use {', '.join(_ACTIONS)}")
    return {ON_FAILURE: action}


def parse_duration(text: str) -> int:
    """Return nanoseconds of 30s, 1m30s, 500ms. Raises click.BadParameter."""
    pieces = _PIECE.findall(text)
    if not pieces or "".join(map("".join, pieces)) != text:
        raise click.BadParameter(f"invalid duration {text!r}")
    return sum(int(float(number) * _UNITS_NS[unit]) for number, unit in pieces)

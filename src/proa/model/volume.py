# SPDX-License-Identifier: Apache-2.0
"""Volumes. Source: Engine API, Volume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    name: str
    mountpoint: Path
    created_at_ns: int
    driver: str = "local"
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    anonymous: bool = False

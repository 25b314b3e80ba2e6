# SPDX-License-Identifier: Apache-2.0
"""Volumes as Docker shows them. Source: Engine API, Volume."""

from __future__ import annotations

from proa.model.volume import Volume
from proa.wire import volumes as wire
from proa.wire.times import format_time


def volume(value: Volume, usage: wire.VolumeUsage | None = None) -> wire.Volume:
    """Return one volume; ``usage`` only where it was measured. Docker shows no labels as null."""
    return wire.Volume(
        created_at=format_time(value.created_at_ns),
        driver=value.driver,
        labels=dict(value.labels) or None,
        mountpoint=str(value.mountpoint),
        name=value.name,
        options=dict(value.options) or None,
        usage_data=usage,
    )

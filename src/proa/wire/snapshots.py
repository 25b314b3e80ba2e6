# SPDX-License-Identifier: Apache-2.0
"""Messages of snapshots of running containers. Source: docs/reference/containers-proa.yaml."""

from __future__ import annotations

import msgspec

from proa.model.config import ApiStruct


class SnapshotSummary(ApiStruct, frozen=True, kw_only=True):
    """One snapshot. ``size`` is in bytes, what its removal would free."""

    name: str
    container: str = ""
    container_id: str = msgspec.field(default="", name="ContainerID")
    image: str = ""
    created: str = ""
    size: int = 0

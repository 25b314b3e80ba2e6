# SPDX-License-Identifier: Apache-2.0
"""Messages about volumes. Source: Engine API, tag Volume."""

from __future__ import annotations

from proa.model.config import ApiStruct


class VolumeCreateRequest(ApiStruct, frozen=True, kw_only=True):
    """An empty name asks for an anonymous volume."""

    name: str = ""
    driver: str = ""
    driver_opts: dict[str, str] | None = None
    labels: dict[str, str] | None = None


class VolumeUsage(ApiStruct, frozen=True, kw_only=True):
    """-1 means not known."""

    size: int = -1  # bytes
    ref_count: int = -1  # containers


class Volume(ApiStruct, frozen=True, kw_only=True):
    created_at: str = ""
    driver: str = "local"
    labels: dict[str, str] | None = None
    mountpoint: str
    name: str
    options: dict[str, str] | None = None
    scope: str = "local"
    usage_data: VolumeUsage | None = None


class VolumeList(ApiStruct, frozen=True, kw_only=True):
    volumes: list[Volume] | None = None
    warnings: list[str] | None = None


class VolumesPruned(ApiStruct, frozen=True, kw_only=True):
    volumes_deleted: list[str] | None = None
    space_reclaimed: int = 0  # bytes

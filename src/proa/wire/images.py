# SPDX-License-Identifier: Apache-2.0
"""Messages about images. Source: Engine API, tag Image."""

from __future__ import annotations

import msgspec

from proa.model.config import ApiStruct, Empty, HealthConfig


class RootFs(ApiStruct, frozen=True, kw_only=True):
    type: str = "layers"
    layers: list[str] | None = None  # diff ids, lowest first


class GraphDriver(ApiStruct, frozen=True, kw_only=True):
    data: dict[str, str] | None = None
    name: str = ""


class ImageMetadata(ApiStruct, frozen=True, kw_only=True):
    last_tag_time: str = ""


class ImageConfig(ApiStruct, frozen=True, kw_only=True, omit_defaults=True):
    """What containers inherit; the rest of a container's configuration is not an image's."""

    user: str = ""
    exposed_ports: dict[str, Empty] | None = None
    env: list[str] | None = None
    cmd: list[str] | None = None
    healthcheck: HealthConfig | None = None
    args_escaped: bool = False
    volumes: dict[str, Empty] | None = None
    working_dir: str = ""
    entrypoint: list[str] | None = None
    on_build: list[str] | None = None
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    shell: list[str] | None = None


class ImageInspect(ApiStruct, frozen=True, kw_only=True):
    id: str
    repo_tags: list[str] = []
    repo_digests: list[str] = []
    parent: str = ""
    comment: str = ""
    created: str = ""
    docker_version: str = ""
    author: str = ""
    config: ImageConfig | None = None
    container_config: ImageConfig | None = None  # API 1.44 was the last with it
    architecture: str = ""
    variant: str = ""
    os: str = ""
    size: int = 0  # bytes
    graph_driver: GraphDriver = GraphDriver()
    root_fs: RootFs = msgspec.field(default=RootFs(), name="RootFS")
    metadata: ImageMetadata = ImageMetadata()


class ImageSummary(ApiStruct, frozen=True, kw_only=True):
    """``containers`` and ``shared_size`` are -1 when they were not counted."""

    id: str
    parent_id: str = ""
    repo_tags: list[str] = []
    repo_digests: list[str] = []
    created: int = 0  # Unix seconds
    size: int = 0  # bytes
    shared_size: int = -1  # bytes
    labels: dict[str, str] | None = None
    containers: int = -1


class ImageHistoryItem(ApiStruct, frozen=True, kw_only=True):
    id: str = "<missing>"
    created: int = 0  # Unix seconds
    created_by: str = ""
    tags: list[str] | None = None
    size: int = 0  # bytes
    comment: str = ""


class ImageDeleted(ApiStruct, frozen=True, kw_only=True, omit_defaults=True):
    """One of the two is given."""

    untagged: str = ""
    deleted: str = ""


class ImagesPruned(ApiStruct, frozen=True, kw_only=True):
    images_deleted: list[ImageDeleted] | None = None
    space_reclaimed: int = 0  # bytes

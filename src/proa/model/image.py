# SPDX-License-Identifier: Apache-2.0
"""Images as the engine knows them. Source: OCI image-spec, config.md; Engine API, ImageInspect."""

from __future__ import annotations

from dataclasses import dataclass, field

from proa.model.config import ContainerConfig
from proa.model.ids import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    created: str = ""  # RFC 3339, as written in the image
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image of the store.

    :ivar id: digest of the configuration blob, which is what Docker calls the image id.
    :ivar layers: diff ids (digests of the uncompressed tars), lowest first.
    :ivar config: the part of the configuration that containers inherit.
    :ivar references: names that point here, "repository:tag", normalised but in familiar form
        ("busybox:latest", not "docker.io/library/busybox:latest").
    :ivar repo_digests: "repository@sha256:…" of manifests it was pulled or pushed by.
    :ivar size: bytes of its layers uncompressed, as Docker counts.
    :ivar created: RFC 3339 time written in the image, "" when it has none.
    """

    id: Digest
    layers: tuple[Digest, ...]
    config: ContainerConfig
    architecture: str
    os: str
    size: int
    created: str = ""
    author: str = ""
    comment: str = ""
    variant: str = ""
    parent: str = ""
    history: tuple[HistoryEntry, ...] = ()
    references: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()
    last_tagged_at_ns: int = 0
    layer_sizes: dict[str, int] = field(default_factory=dict)  # by diff id, uncompressed bytes

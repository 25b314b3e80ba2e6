# SPDX-License-Identifier: Apache-2.0
"""Manifests and indexes, of OCI and of Docker's schema 2: read, bounded and checked, and written. Pure.

Source: OCI image-spec, manifest.md, image-index.md, media-types.md; distribution, manifest-v2-2.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from proa.distribution.errors import RegistryFailed
from proa.model.ids import Digest, is_digest
from proa.model.registry import Descriptor

MANIFEST_MAX_BYTES = 4 * 1024 * 1024  # what registries take at most, by the specification
MAX_LAYERS = 500  # overlayfs takes no more
MAX_ENTRIES = 1000  # of an index
MAX_SIZE = 1 << 40

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
SCHEMA_1 = (
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/vnd.docker.distribution.manifest.v1+json",
)
ACCEPT = ", ".join((DOCKER_MANIFEST, OCI_MANIFEST, DOCKER_LIST, OCI_INDEX, *SCHEMA_1))

DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_CONFIGS = frozenset({DOCKER_CONFIG, OCI_CONFIG, "application/octet-stream", ""})
_DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
_OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_LAYERS = frozenset(
    {
        DOCKER_LAYER,
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        *(f"application/vnd.oci.image.layer.v1.tar{suffix}" for suffix in ("", "+gzip", "+zstd")),
        *(f"{_OCI_FOREIGN}{suffix}" for suffix in ("", "+gzip", "+zstd")),
        _DOCKER_FOREIGN,
        f"{_DOCKER_FOREIGN}.gzip",
    }
)  # fmt: skip


class _Platform(msgspec.Struct, frozen=True):
    os: str = ""
    architecture: str = ""
    variant: str | None = None


class _Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str = ""
    digest: str = ""
    size: int = -1
    urls: list[str] | None = None
    platform: _Platform | None = None


class _Document(msgspec.Struct, frozen=True, rename="camel"):
    """A manifest or an index: the keys tell which."""

    schema_version: int = 0
    media_type: str = ""
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None
    manifests: list[_Descriptor] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One image of one platform. ``layers`` are lowest first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Images of several platforms; what says no platform, or "unknown" (attestations), is left out."""

    media_type: str
    entries: tuple[Descriptor, ...]


def parse_manifest(data: bytes, media_type: str) -> Manifest | Index:
    """Read a document; its own words about its type must not contradict the header's.

    :raises RegistryFailed: it is no manifest (the message says why), or of schema 1.
    """
    kind = media_type.partition(";")[0].strip().lower()
    try:
        document = msgspec.json.decode(data, type=_Document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RegistryFailed(f"invalid manifest: {error}") from error
    if kind in SCHEMA_1 or document.schema_version == 1:
        raise RegistryFailed(
            "[DEPRECATION NOTICE] Docker Image Format v1 and Docker Image manifest version 2, schema 1 "
            "support is disabled by default and will be removed in an upcoming release. Suggest the author "
            "of the image to upgrade it to the OCI Format or Docker Image manifest v2, schema 2. More "
            "information at https://docs.docker.com/go/deprecated-image-specs/"
        )
    own = document.media_type
    if kind in ("", "application/json", "text/plain", "application/octet-stream"):
        kind = own or (OCI_INDEX if document.manifests is not None else OCI_MANIFEST)
    if own and own != kind:
        raise RegistryFailed(f"invalid manifest: it calls itself {own!r} and was sent as {kind!r}")
    if kind in (DOCKER_LIST, OCI_INDEX) and document.config is None and document.layers is None:
        return Index(media_type=kind, entries=_entries(document.manifests or []))
    if kind in (DOCKER_MANIFEST, OCI_MANIFEST) and document.config is not None and document.manifests is None:
        return _manifest(kind, document.config, document.layers or [])
    raise RegistryFailed(f"unsupported manifest media type {kind!r}")


def _manifest(kind: str, config: _Descriptor, layers: Sequence[_Descriptor]) -> Manifest:
    if len(layers) > MAX_LAYERS:
        raise RegistryFailed(f"the image has {len(layers)} layers, more than the {MAX_LAYERS} possible")
    if config.media_type not in _CONFIGS:
        raise RegistryFailed(f"unsupported media type {config.media_type}: it is not an image")
    for layer in layers:
        if layer.media_type not in _LAYERS:
            raise RegistryFailed(f"unsupported media type {layer.media_type} of a layer")
    return Manifest(
        media_type=kind, config=_checked(config), layers=tuple(_checked(layer) for layer in layers)
    )


def _entries(manifests: Sequence[_Descriptor]) -> tuple[Descriptor, ...]:
    if len(manifests) > MAX_ENTRIES:
        raise RegistryFailed(f"the index has {len(manifests)} entries, more than {MAX_ENTRIES}")
    known = (DOCKER_MANIFEST, OCI_MANIFEST, DOCKER_LIST, OCI_INDEX)
    return tuple(
        _checked(entry)
        for entry in manifests
        if entry.media_type in known and not (entry.platform and entry.platform.os == "unknown")
    )


def _checked(raw: _Descriptor) -> Descriptor:
    if not is_digest(raw.digest):
        raise RegistryFailed(f"invalid manifest: unsupported digest {raw.digest[:200]!r}")
    if not 0 <= raw.size <= MAX_SIZE:
        raise RegistryFailed(f"invalid manifest: {raw.digest} has a size of {raw.size} bytes")
    where = raw.platform
    platform = None if where is None else (where.os, where.architecture, where.variant or "")
    return Descriptor(
        media_type=raw.media_type,
        digest=Digest(raw.digest),
        size=raw.size,
        platform=platform,
        urls=tuple(raw.urls or ()),
    )


def is_foreign(layer: Descriptor) -> bool:
    """Whether a layer's licence keeps it out of registries; it has ``urls`` then."""
    return bool(layer.urls) and layer.media_type.startswith((_DOCKER_FOREIGN, _OCI_FOREIGN))


def encode_manifest(config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    """Write a manifest of Docker's schema 2, for an image that came without one."""
    document = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": _encodable(config),
        "layers": [_encodable(layer) for layer in layers],
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=3)


def _encodable(content: Descriptor) -> dict[str, object]:
    return {"mediaType": content.media_type, "size": content.size, "digest": content.digest}

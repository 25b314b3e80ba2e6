# SPDX-License-Identifier: Apache-2.0
"""Writes images as an archive: an OCI layout that also has Docker's ``manifest.json``, as Docker 25 does.

    oci-layout  index.json  manifest.json  repositories  blobs/sha256/<digest> …

Layers are the very blobs the images came with, each once however many images share it. The same images give
the same bytes: times are zero, order is fixed.

Source: OCI image-spec, image-layout.md, manifest.md; Docker Image Specification v1.2.
"""

from __future__ import annotations

import tarfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from anyio import to_thread

from proa.image.archive_images import NAME_ANNOTATION, REF_ANNOTATION
from proa.image.catalog import Entry
from proa.image.config import CONFIG_MAX_BYTES, chain_ids
from proa.image.content import ContentStore, digest_of
from proa.image.reference import Reference
from proa.image.tarstream import BLOCK_BYTES
from proa.model.ids import Digest

PIECE_BYTES = 1024 * 1024
END_OF_ARCHIVE = bytes(2 * BLOCK_BYTES)
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_OCI_INDEX = "application/vnd.oci.image.index.v1+json"
_OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_SUFFIXES = ((b"\x1f\x8b", "+gzip"), (b"\x28\xb5\x2f\xfd", "+zstd"))

Json = dict[str, Any]  # Any: documents of several shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedImage:
    """An image to write, with the names it shall have in the archive."""

    entry: Entry
    names: tuple[Reference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One member of the archive: a directory (name with a slash at the end), bytes, or a file."""

    name: str
    data: bytes = b""
    path: Path | None = None
    size: int = 0


def plan_archive(images: Sequence[SavedImage], content: ContentStore) -> list[Part]:
    """Return the members of an archive of these images. Reads small blobs; raises DataLoss."""
    blobs: dict[Digest, Part] = {}
    index: list[Json] = []
    docker: list[Json] = []
    repositories: dict[str, dict[str, str]] = {}
    for image in images:
        entry = image.entry
        for digest in sorted(entry.blobs):
            blobs[digest] = _blob_part(content, digest)
        data, media_type = _manifest_of(entry, content)
        digest = digest_of(data)
        blobs[digest] = Part(name=_blob_name(digest), data=data, size=len(data))
        descriptor = _descriptor(media_type, digest, len(data))
        descriptor["platform"] = _platform(entry)
        annotations: list[Json] = [
            {NAME_ANNOTATION: str(name), REF_ANNOTATION: name.tag} for name in image.names
        ]
        index += [{**descriptor, "annotations": each} for each in annotations] or [descriptor]
        docker.append(_docker_item(image, content))
        for name in image.names:
            top = chain_ids(entry.image.layers)[-1:]
            tags = repositories.setdefault(name.familiar_name, {})
            tags[name.tag] = top[0].removeprefix("sha256:") if top else ""
    documents: list[tuple[str, object]] = [
        ("oci-layout", {"imageLayoutVersion": "1.0.0"}),
        ("index.json", {"schemaVersion": 2, "mediaType": _OCI_INDEX, "manifests": index}),
        ("manifest.json", docker),
    ]
    if repositories:
        documents.append(("repositories", repositories))
    parts = [_json_part(name, document) for name, document in documents]
    parts += [Part(name="blobs/"), Part(name="blobs/sha256/")]
    return parts + [blobs[digest] for digest in sorted(blobs)]


async def write_archive(parts: Sequence[Part]) -> AsyncIterator[bytes]:
    """Yield the archive, in pieces of PIECE_BYTES at most."""
    for part in parts:
        yield _header(part)
        if part.path is None:
            if part.data:
                yield part.data + bytes(-part.size % BLOCK_BYTES)
            continue
        with part.path.open("rb") as file:
            while piece := await to_thread.run_sync(file.read, PIECE_BYTES):
                yield piece
        if padding := bytes(-part.size % BLOCK_BYTES):
            yield padding
    yield END_OF_ARCHIVE


def _header(part: Part) -> bytes:
    info = tarfile.TarInfo(part.name)
    info.size = part.size
    info.mode = 0o644
    if part.name.endswith("/"):
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info.tobuf(tarfile.GNU_FORMAT)


def _manifest_of(entry: Entry, content: ContentStore) -> tuple[bytes, str]:
    """The manifest the image came with, or a new one; and its media type."""
    if entry.manifest is not None:
        data = content.read(entry.manifest, CONFIG_MAX_BYTES)
        return data, msgspec.json.decode(data).get("mediaType") or OCI_MANIFEST
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _descriptor(_OCI_CONFIG, entry.image.id, content.size(entry.image.id)),
        "layers": [_layer_descriptor(content, layer.blob) for layer in entry.layers],
    }
    return msgspec.json.encode(document), OCI_MANIFEST


def _docker_item(image: SavedImage, content: ContentStore) -> Json:
    entry = image.entry
    return {
        "Config": _blob_name(entry.image.id),
        "RepoTags": [name.familiar for name in image.names] or None,
        "Layers": [_blob_name(layer.blob) for layer in entry.layers],
        "LayerSources": {layer.diff_id: _layer_descriptor(content, layer.blob) for layer in entry.layers},
    }


def _layer_descriptor(content: ContentStore, blob: Digest) -> Json:
    with content.path(blob).open("rb") as file:
        start = file.read(4)
    suffix = next((suffix for magic, suffix in _SUFFIXES if start.startswith(magic)), "")
    return _descriptor(_OCI_LAYER + suffix, blob, content.size(blob))


def _descriptor(media_type: str, digest: Digest, size: int) -> Json:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _platform(entry: Entry) -> Json:
    image = entry.image
    platform = {"architecture": image.architecture, "os": image.os, "variant": image.variant}
    return {key: value for key, value in platform.items() if value}


def _blob_part(content: ContentStore, digest: Digest) -> Part:
    return Part(name=_blob_name(digest), path=content.path(digest), size=content.size(digest))


def _json_part(name: str, document: object) -> Part:
    data = msgspec.json.encode(document) + b"\n"
    return Part(name=name, data=data, size=len(data))


def _blob_name(digest: Digest) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"

# SPDX-License-Identifier: Apache-2.0
"""Which images an archive holds: Docker's ``manifest.json``, or else the ``index.json`` of an OCI layout.

Blobs are checked against the digests that name them; layers against their diff ids by whoever stores them.
Of an image for several platforms, the one for this host is taken.

Source: Docker Image Specification v1.2; OCI image-spec, image-layout.md, image-index.md, manifest.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from proa.image.archive_reader import SpooledArchive
from proa.image.config import CONFIG_MAX_BYTES, ImageConfig, convert, parse_config, parse_json
from proa.image.content import Spooled
from proa.image.platform import Platform, host_platform
from proa.image.reference import Reference, parse_reference
from proa.model.errors import InvalidParameter
from proa.model.ids import Digest

MANIFEST_JSON = "manifest.json"
INDEX_JSON = "index.json"
MAX_IMAGES = 1000
MAX_INDEX_DEPTH = 3  # an index of indexes is common, deeper is not
NAME_ANNOTATION = "io.containerd.image.name"
REF_ANNOTATION = "org.opencontainers.image.ref.name"
_ATTESTATION_ANNOTATION = "vnd.docker.reference.type"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedImage:
    """One image of an archive. ``layers`` belong to ``config.diff_ids``, in order.

    :ivar manifest: the digest of the OCI or Docker manifest, when the archive has it.
    :ivar parent: the id of the parent image, as builds record it; "" mostly.
    """

    config_file: Spooled
    config: ImageConfig
    layers: tuple[Spooled, ...]
    names: tuple[Reference, ...]
    manifest: Spooled | None = None
    parent: str = ""


class _DockerImage(msgspec.Struct, frozen=True, rename="pascal"):
    config: str
    repo_tags: list[str] = []
    layers: list[str] = []
    parent: str = ""


class _Platform(msgspec.Struct, frozen=True):
    architecture: str = ""
    os: str = ""
    variant: str = ""

    def to_platform(self) -> Platform:
        return Platform(os=self.os, architecture=self.architecture, variant=self.variant)


class _Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    digest: str
    size: int = -1
    media_type: str = ""
    annotations: dict[str, str] = {}
    platform: _Platform | None = None


class _Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """An image manifest (config and layers) or an index (manifests)."""

    media_type: str = ""
    config: _Descriptor | None = None
    layers: list[_Descriptor] = []
    manifests: list[_Descriptor] | None = None


def read_images(archive: SpooledArchive) -> list[ArchivedImage]:
    """Return the images of an archive.

    :raises InvalidParameter: it is not an image archive, is damaged, or has nothing for this platform.
    """
    layout = _Layout(archive) if archive.find(INDEX_JSON) is not None else None
    if archive.find(MANIFEST_JSON) is not None:
        return list(_iter_docker(archive, layout))
    if layout is None:
        raise InvalidParameter("invalid archive: does not contain a manifest.json")
    return list(layout.iter_images())


def _iter_docker(archive: SpooledArchive, layout: _Layout | None) -> Iterator[ArchivedImage]:
    raw = parse_json(archive.read(MANIFEST_JSON, CONFIG_MAX_BYTES), MANIFEST_JSON, CONFIG_MAX_BYTES)
    if raw is None:
        raise InvalidParameter("invalid manifest, manifest cannot be null (but can be [])")
    items = convert(raw, list[_DockerImage], MANIFEST_JSON)
    if len(items) > MAX_IMAGES:
        raise InvalidParameter(f"invalid manifest: more than {MAX_IMAGES} images")
    manifests = layout.manifests_by_config() if layout else {}
    for item in items:
        config_file = archive.get(item.config)
        config = parse_config(archive.read(item.config, CONFIG_MAX_BYTES))
        layers = tuple(archive.get(name) for name in item.layers)
        manifest = manifests.get(config_file.digest)
        # Only a manifest that speaks of these very layer files tells the truth about the image.
        kept = manifest[0] if manifest and manifest[1] == [layer.digest for layer in layers] else None
        yield ArchivedImage(
            config_file=config_file,
            config=_check_layers(config, len(layers)),
            layers=layers,
            names=tuple(_tagged(name) for name in item.repo_tags),
            manifest=kept,
            parent=item.parent,
        )


def _check_layers(config: ImageConfig, count: int) -> ImageConfig:
    if count != len(config.diff_ids):
        raise InvalidParameter(
            f"invalid manifest, layers length mismatch: expected {count}, got {len(config.diff_ids)}"
        )
    return config


def _tagged(name: str) -> Reference:
    reference = parse_reference(name)
    if not reference.tag:
        raise InvalidParameter(f'invalid tag "{name}"')
    return reference.with_tag(reference.tag)


class _Layout:
    """An OCI image layout inside an archive."""

    def __init__(self, archive: SpooledArchive) -> None:
        self._archive = archive
        self._host = host_platform()
        data = archive.read(INDEX_JSON, CONFIG_MAX_BYTES)
        index = convert(parse_json(data, INDEX_JSON, CONFIG_MAX_BYTES), _Manifest, INDEX_JSON)
        self._descriptors = [entry for entry in index.manifests or [] if not _is_attestation(entry)]
        if len(self._descriptors) > MAX_IMAGES:
            raise InvalidParameter(f"invalid {INDEX_JSON}: more than {MAX_IMAGES} images")

    def iter_images(self) -> Iterator[ArchivedImage]:
        """The images of the index, one for each manifest, with all names given to it."""
        names: dict[str, list[Reference]] = {}
        chosen: dict[str, tuple[Spooled, _Manifest]] = {}
        for descriptor in self._descriptors:
            if self._is_for_another_platform(descriptor):
                continue
            file, manifest = self._choose(descriptor, MAX_INDEX_DEPTH)
            chosen[file.digest] = (file, manifest)
            names.setdefault(file.digest, []).extend(_names_of(descriptor))
        for digest, (file, manifest) in chosen.items():
            yield self._image(file, manifest, tuple(dict.fromkeys(names[digest])))

    def manifests_by_config(self) -> dict[Digest, tuple[Spooled, list[str]]]:
        """Manifests directly in the index: file and layer digests, by the configuration's digest."""
        found: dict[Digest, tuple[Spooled, list[str]]] = {}
        for descriptor in self._descriptors:
            if self._archive.find(_blob_name(descriptor)) is None:
                continue  # manifest.json is what counts; this index is only asked for more
            file, manifest = self._open(descriptor)
            if manifest.config is not None:
                layers = [layer.digest for layer in manifest.layers]
                found[Digest(manifest.config.digest)] = (file, layers)
        return found

    def _image(self, file: Spooled, manifest: _Manifest, names: tuple[Reference, ...]) -> ArchivedImage:
        if manifest.config is None:
            raise InvalidParameter(f"invalid manifest {file.digest}: it has no config")
        config_file = self._blob(manifest.config)
        config = parse_config(self._archive.read(_blob_name(manifest.config), CONFIG_MAX_BYTES))
        return ArchivedImage(
            config_file=config_file,
            config=_check_layers(config, len(manifest.layers)),
            layers=tuple(self._blob(layer) for layer in manifest.layers),
            names=names,
            manifest=file,
        )

    def _is_for_another_platform(self, descriptor: _Descriptor) -> bool:
        """Whether the index has the same image, by its names, in a version for this host."""
        if descriptor.platform is None or self._rank(descriptor):
            return False
        names = _names_of(descriptor)
        return any(self._rank(other) and _names_of(other) == names for other in self._descriptors)

    def _choose(self, descriptor: _Descriptor, depth: int) -> tuple[Spooled, _Manifest]:
        """Follow indexes down to the manifest for this host."""
        file, manifest = self._open(descriptor)
        if manifest.manifests is None:
            return file, manifest
        if depth == 0:
            raise InvalidParameter("invalid archive: an index within an index within an index")
        candidates = [
            entry
            for entry in manifest.manifests
            # An archive of one platform keeps the index of all.
            if not _is_attestation(entry) and self._archive.find(_blob_name(entry)) is not None
        ]
        best = max(candidates, key=self._rank, default=None)
        if best is None or (len(candidates) > 1 and not self._rank(best)):
            raise InvalidParameter(f"no matching manifest for {self._host} in the manifest list entries")
        return self._choose(best, depth - 1)

    def _rank(self, descriptor: _Descriptor) -> int:
        if descriptor.platform is None:
            return 1
        return self._host.rank(descriptor.platform.to_platform())

    def _open(self, descriptor: _Descriptor) -> tuple[Spooled, _Manifest]:
        what = f"manifest {descriptor.digest}"
        file = self._blob(descriptor)
        data = self._archive.read(_blob_name(descriptor), CONFIG_MAX_BYTES)
        return file, convert(parse_json(data, what, CONFIG_MAX_BYTES), _Manifest, what)

    def _blob(self, descriptor: _Descriptor) -> Spooled:
        file = self._archive.get(_blob_name(descriptor))
        if file.digest != descriptor.digest or descriptor.size not in (-1, file.size):
            raise InvalidParameter(
                f"invalid archive: {_blob_name(descriptor)} is damaged: its digest is {file.digest}"
            )
        return file


def _blob_name(descriptor: _Descriptor) -> str:
    algorithm, _, digits = descriptor.digest.partition(":")
    return f"blobs/{algorithm}/{digits}"


def _is_attestation(descriptor: _Descriptor) -> bool:
    """Build provenance rides in an index as a manifest for the platform "unknown"."""
    platform = descriptor.platform
    return _ATTESTATION_ANNOTATION in descriptor.annotations or (
        platform is not None and platform.os == "unknown"
    )


def _names_of(descriptor: _Descriptor) -> list[Reference]:
    """The name given by containerd's annotation, or else by the OCI's when that is more than a tag."""
    name = descriptor.annotations.get(NAME_ANNOTATION, "")
    if name:
        reference = parse_reference(name).with_default_tag()
    else:
        name = descriptor.annotations.get(REF_ANNOTATION, "")
        if ":" not in name and "/" not in name:
            return []
        try:
            reference = parse_reference(name).with_default_tag()
        except InvalidParameter:
            return []  # the specification lets this annotation be anything
    return [reference.with_tag(reference.tag)] if reference.tag else []

# SPDX-License-Identifier: Apache-2.0
"""The image configuration blob: read, bounded and checked, and written.

An image's id is the digest of these bytes, so they are stored as they came and never rewritten; what is
written here is for images that proa makes itself (import, commit, build).

Source: OCI image-spec, config.md; Docker Image Specification v1.3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from proa.image.platform import Platform
from proa.model.config import ContainerConfig
from proa.model.errors import InvalidParameter
from proa.model.ids import Digest, is_digest
from proa.model.image import HistoryEntry, Image

CONFIG_MAX_BYTES = 8 * 1024 * 1024  # containerd's own limit for a manifest or configuration
MAX_LAYERS = 500  # overlayfs takes 500 lower directories
MAX_HISTORY = 10_000

T = TypeVar("T")

_SETS = frozenset({"ExposedPorts", "Volumes"})  # maps whose values mean nothing: null is as good as {}


class _RootFs(msgspec.Struct, frozen=True):
    type: str = "layers"
    diff_ids: list[str] = []


class _History(msgspec.Struct, frozen=True):
    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class _Config(msgspec.Struct, frozen=True):
    """The keys proa reads; others stay in the stored bytes."""

    created: str = ""
    author: str = ""
    comment: str = ""
    architecture: str = ""
    variant: str = ""
    os: str = "linux"
    config: ContainerConfig = ContainerConfig()
    rootfs: _RootFs = _RootFs()
    history: list[_History] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """A configuration as read. ``diff_ids`` are the layers, lowest first."""

    diff_ids: tuple[Digest, ...]
    config: ContainerConfig
    platform: Platform
    created: str = ""
    author: str = ""
    comment: str = ""
    history: tuple[HistoryEntry, ...] = ()


def parse_config(data: bytes) -> ImageConfig:
    """Read a configuration blob.

    :raises InvalidParameter: it is not JSON, a key has the wrong type (the message names it), it is too big,
        or is for something other than Linux.
    """
    raw = parse_json(data, "image configuration", CONFIG_MAX_BYTES)
    if not isinstance(raw, dict) or not isinstance(raw.get("rootfs"), dict):
        raise InvalidParameter("invalid image JSON, no RootFS key")
    config = convert(raw, _Config, "image configuration")
    if config.os and config.os != "linux":
        raise InvalidParameter(f"cannot load {config.os} image on linux")
    diff_ids = config.rootfs.diff_ids
    if len(diff_ids) > MAX_LAYERS:
        raise InvalidParameter(f"the image has {len(diff_ids)} layers, more than the {MAX_LAYERS} possible")
    for diff_id in diff_ids:
        if not is_digest(diff_id):
            raise InvalidParameter(
                f"invalid image configuration: rootfs.diff_ids: invalid digest {diff_id!r}"
            )
    if len(config.history) > MAX_HISTORY:
        raise InvalidParameter("invalid image configuration: history is too long")
    return ImageConfig(
        diff_ids=tuple(Digest(diff_id) for diff_id in diff_ids),
        config=config.config,
        platform=Platform(os="linux", architecture=config.architecture, variant=config.variant),
        created=config.created,
        author=config.author,
        comment=config.comment,
        history=tuple(
            HistoryEntry(**{name: getattr(entry, name) for name in _History.__struct_fields__})
            for entry in config.history
        ),
    )


def make_image(image_id: Digest, config: ImageConfig, sizes: Mapping[Digest, int], parent: str = "") -> Image:
    """Return the engine's view of a configuration. ``sizes`` are its layers' uncompressed bytes."""
    return Image(
        id=image_id,
        layers=config.diff_ids,
        config=config.config,
        architecture=config.platform.architecture,
        variant=config.platform.variant,
        os=config.platform.os,
        size=sum(sizes[diff_id] for diff_id in config.diff_ids),
        created=config.created,
        author=config.author,
        comment=config.comment,
        parent=parent,
        history=config.history,
        layer_sizes={diff_id: sizes[diff_id] for diff_id in config.diff_ids},
    )


def encode_config(image: ImageConfig) -> bytes:
    """Write a configuration blob; the same input gives the same bytes."""
    history = [_without_defaults(msgspec.to_builtins(entry)) for entry in image.history]
    document: dict[str, object] = {
        "architecture": image.platform.architecture,
        "author": image.author,
        "comment": image.comment,
        "config": _without_defaults(msgspec.to_builtins(image.config)),
        "created": image.created,
        "history": history,
        "os": image.platform.os,
        "rootfs": {"type": "layers", "diff_ids": list(image.diff_ids)},
        "variant": image.platform.variant,
    }
    needed = {"architecture", "config", "os", "rootfs"}
    kept = {key: value for key, value in document.items() if value or key in needed}
    return msgspec.json.encode(kept, order="deterministic")


def parse_json(data: bytes, what: str, max_bytes: int) -> Any:  # Any: JSON of unknown shape
    """Decode JSON from outside. Nulls are dropped from objects: Go takes a null for an absent key.

    :raises InvalidParameter: naming ``what`` was wrong.
    """
    if len(data) > max_bytes:
        raise InvalidParameter(f"invalid {what}: larger than {max_bytes} bytes")
    try:
        return _drop_nulls(msgspec.json.decode(data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidParameter(f"invalid {what}: {error}") from error


def convert(raw: object, kind: type[T], what: str) -> T:
    """Check decoded JSON against a type. Raises InvalidParameter naming the key."""
    try:
        return msgspec.convert(raw, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise InvalidParameter(f"invalid {what}: {error}") from error


def created_ns(created: str) -> int:
    """Read the time written in an image (RFC 3339); nanoseconds since the epoch, 0 when absent or odd."""
    try:
        moment = datetime.fromisoformat(created)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000
    except (ValueError, OverflowError):
        return 0


def chain_ids(diff_ids: Sequence[Digest]) -> list[Digest]:
    """Name each stack of layers, from the lowest up. Source: OCI image-spec, config.md, Layer ChainID."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        if not chain:
            chain.append(diff_id)
        else:
            text = f"{chain[-1]} {diff_id}".encode()
            chain.append(Digest(f"sha256:{hashlib.sha256(text).hexdigest()}"))
    return chain


def _drop_nulls(value: Any, *, is_set: bool = False) -> Any:  # Any: JSON of unknown shape
    if isinstance(value, dict):
        if is_set:
            return {key: {} for key in value}
        return {
            key: _drop_nulls(item, is_set=key in _SETS) for key, item in value.items() if item is not None
        }
    if isinstance(value, list):
        return [_drop_nulls(item) for item in value if item is not None]
    return value


def _without_defaults(value: dict[str, Any]) -> dict[str, Any]:  # Any: JSON of unknown shape
    return {key: item for key, item in value.items() if item or item == {}}

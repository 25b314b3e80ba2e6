# SPDX-License-Identifier: Apache-2.0
"""Image archives made by hand, and a layer store in memory."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import sys
import tarfile
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proa.image.compression import Inflater
from proa.image.layer_store import OnRead
from proa.image.platform import host_platform
from proa.model.errors import InvalidParameter
from proa.model.ids import Digest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Json = dict[str, Any]  # Any: JSON documents

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    # Without the check sum that zstd(1) writes, damage would show only in the digest.
    "zstd": lambda data: zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeLayer:
    diff_id: Digest
    size_bytes: int
    disk_bytes: int


class FakeLayers:
    """A layer store in memory, which checks tars as far as the tests need it."""

    def __init__(self) -> None:
        self.stored: dict[Digest, FakeLayer] = {}
        self.added: list[Digest] = []

    async def add(
        self, blob: Path, *, expected: Digest | None = None, on_progress: OnRead | None = None
    ) -> FakeLayer:
        data = inflate(blob.read_bytes())
        diff_id = sha256(data)
        if expected not in (None, diff_id):
            raise InvalidParameter(f"layer has diff id {diff_id}, expected {expected}")
        try:
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                tar.getmembers()
        except tarfile.TarError as error:
            raise InvalidParameter(f"Error processing tar file: {error}") from error
        self.stored[diff_id] = FakeLayer(diff_id=diff_id, size_bytes=len(data), disk_bytes=4096)
        self.added.append(diff_id)
        return self.stored[diff_id]

    def exists(self, diff_id: Digest) -> bool:
        return diff_id in self.stored

    async def remove(self, diff_ids: Collection[Digest]) -> None:
        for diff_id in diff_ids:
            self.stored.pop(diff_id, None)


def inflate(data: bytes) -> bytes:
    inflater = Inflater()
    return b"".join([*inflater.feed(data), *inflater.finish()])


def sha256(data: bytes) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


def make_tar(
    files: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
    links: Mapping[str, str] | None = None,
    kind: bytes = tarfile.SYMTYPE,
) -> bytes:
    """A tar of files, in their order, then of links (name to target)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items() if isinstance(files, Mapping) else files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    return buffer.getvalue()


def make_layer(text: str) -> bytes:
    return make_tar({"file": text.encode()})


def make_config(
    layers: Iterable[bytes], config: Json | None = None, *, architecture: str = "", **keys: object
) -> bytes:
    """A configuration for these (uncompressed) layers."""
    layers = list(layers)
    document = {
        "architecture": architecture or host_platform().architecture,
        "os": "linux",
        "created": "2024-05-06T07:08:09.123456789Z",
        "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"], **(config or {})},
        "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
        "history": [
            {"created": "2024-05-06T07:08:09Z", "created_by": f"step {number}"}
            for number in range(len(layers))
        ],
        **keys,
    }
    return json.dumps(document).encode()


def docker_files(
    layers: Iterable[bytes],
    names: Iterable[str] = ("busybox:latest",),
    config: bytes | None = None,
    compress: Callable[[bytes], bytes] = bytes,
) -> dict[str, bytes]:
    """The files of a docker-archive as docker save wrote them up to version 24."""
    layers = list(layers)
    config = config if config is not None else make_config(layers)
    files = {f"{sha256(layer)[7:]}/layer.tar": compress(layer) for layer in layers}
    manifest = {
        "Config": f"{sha256(config)[7:]}.json",
        "RepoTags": list(names) or None,
        "Layers": [f"{sha256(layer)[7:]}/layer.tar" for layer in layers],
    }
    files[manifest["Config"]] = config  # type: ignore[index]
    return {**files, "manifest.json": json.dumps([manifest]).encode()}


def descriptor(data: bytes, kind: str = "manifest.v1+json", **keys: object) -> Json:
    return {
        "mediaType": f"application/vnd.oci.image.{kind}",
        "digest": sha256(data),
        "size": len(data),
        **keys,
    }


def blob(data: bytes) -> dict[str, bytes]:
    return {f"blobs/sha256/{sha256(data)[7:]}": data}


def oci_manifest(layers: Iterable[bytes], config: bytes) -> bytes:
    """A manifest of these layers, as they are in the archive."""
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor(config, "config.v1+json"),
            "layers": [descriptor(layer, "layer.v1.tar") for layer in layers],
        }
    ).encode()


def oci_index(descriptors: Iterable[Json]) -> bytes:
    return json.dumps({"schemaVersion": 2, "manifests": list(descriptors)}).encode()


def oci_files(
    layers: Iterable[bytes],
    annotations: Json | None = None,
    compress: Callable[[bytes], bytes] = bytes,
) -> dict[str, bytes]:
    """The files of an OCI layout with one image."""
    layers = list(layers)
    config = make_config(layers)
    packed = [compress(layer) for layer in layers]
    manifest = oci_manifest(packed, config)
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    files["index.json"] = oci_index([descriptor(manifest, annotations=annotations or {})])
    for data in (*packed, config, manifest):
        files |= blob(data)
    return files


async def stream(data: bytes, size: int = 8192) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def collect(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


def layers_of(archive: Path, directory: Path) -> list[Path]:
    """Take the layers out of a docker archive, lowest first; return their files in ``directory``."""
    with tarfile.open(archive) as tar:

        def read(name: str) -> bytes:
            member = tar.extractfile(name)
            assert member is not None
            return member.read()

        (image,) = json.loads(read("manifest.json"))
        paths = []
        for number, name in enumerate(image["Layers"]):
            paths.append(directory / f"layer{number}.tar")
            paths[-1].write_bytes(read(name))
        return paths

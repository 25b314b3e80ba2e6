# SPDX-License-Identifier: Apache-2.0
"""Manifests: what is taken, what is refused and why; refusals of registries in words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.distribution import manifests
from proa.distribution.errors import RegistryFailed, parse_refusal
from proa.distribution.manifests import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    Manifest,
    encode_manifest,
    is_foreign,
    parse_manifest,
)
from proa.model.ids import Digest
from proa.model.registry import Descriptor

DIGEST = Digest("sha256:" + "ab" * 32)
LAYER = {"mediaType": manifests.DOCKER_LAYER, "digest": DIGEST, "size": 3}
CONFIG = {"mediaType": manifests.DOCKER_CONFIG, "digest": DIGEST, "size": 2}

Json = dict[str, Any]  # Any: JSON documents


def manifest(kind: str = DOCKER_MANIFEST, **keys: object) -> Json:
    return {"schemaVersion": 2, "mediaType": kind, "config": CONFIG, "layers": [LAYER], **keys}


def parse(document: object, kind: str = "") -> Manifest | Index:
    return parse_manifest(json.dumps(document).encode(), kind)


def test_a_manifest_of_both_kinds() -> None:
    for kind in (DOCKER_MANIFEST, OCI_MANIFEST):
        found = parse(manifest(kind), f"{kind}; charset=utf-8")
        assert isinstance(found, Manifest)
        assert (found.media_type, found.layers[0].size) == (kind, 3)
    bare = parse({key: value for key, value in manifest().items() if key != "mediaType"}, "application/json")
    assert bare.media_type == OCI_MANIFEST


def test_an_index_leaves_attestations_out() -> None:
    for kind, entry_kind in ((DOCKER_LIST, DOCKER_MANIFEST), (OCI_INDEX, OCI_MANIFEST)):
        entry = {"mediaType": entry_kind, "digest": DIGEST, "size": 9}
        arm = {**entry, "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}}
        attestation = {**entry, "platform": {"os": "unknown", "architecture": "unknown"}}
        other = {**entry, "mediaType": "application/x"}
        found = parse({"schemaVersion": 2, "manifests": [arm, attestation, other]}, kind)
        assert isinstance(found, Index)
        assert [one.platform for one in found.entries] == [("linux", "arm64", "v8")]


@pytest.mark.parametrize(
    ("document", "kind", "message"),
    [
        ([], "", "invalid manifest"),
        ({}, "", "unsupported manifest media type"),
        ({"schemaVersion": 1}, "", "schema 1 support is disabled"),
        (manifest(), manifests.SCHEMA_1[0], "schema 1 support is disabled"),
        (manifest(), OCI_MANIFEST, "calls itself"),
        (manifest(layers=[{**LAYER, "digest": "sha256:../../etc/passwd"}]), "", "unsupported digest"),
        (manifest(layers=[{**LAYER, "digest": "sha512:" + "ab" * 64}]), "", "unsupported digest"),
        (manifest(layers=[{**LAYER, "size": -1}]), "", "has a size of -1"),
        (manifest(layers=[{**LAYER, "size": 1 << 60}]), "", "has a size of"),
        (manifest(layers=[{**LAYER, "size": 1 << 70}]), "", "invalid manifest"),
        (manifest(layers=[LAYER] * 501), "", "501 layers"),
        (manifest(layers=[{**LAYER, "mediaType": "text/html"}]), "", "unsupported media type text/html"),
        (manifest(config={**CONFIG, "mediaType": "application/vnd.cncf.helm"}), "", "it is not an image"),
        (manifest(manifests=[LAYER]), "", "unsupported manifest media type"),
        ({"manifests": [LAYER] * 1001}, OCI_INDEX, "1001 entries"),
    ],
)
def test_what_is_refused(document: object, kind: str, message: str) -> None:
    with pytest.raises(RegistryFailed, match=message):
        parse(document, kind)


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(RegistryFailed):
        parse_manifest(data, OCI_MANIFEST)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(RegistryFailed):
        parse_manifest(b"[" * 100_000, OCI_MANIFEST)


def test_what_is_written_can_be_read() -> None:
    layer = Descriptor(media_type=manifests.DOCKER_LAYER, digest=DIGEST, size=3)
    config = Descriptor(media_type=manifests.DOCKER_CONFIG, digest=DIGEST, size=2)
    found = parse_manifest(encode_manifest(config, [layer]), DOCKER_MANIFEST)
    assert found == Manifest(media_type=DOCKER_MANIFEST, config=config, layers=(layer,))


def test_foreign_layers_are_known_by_kind_and_addresses() -> None:
    kind = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    found = parse(manifest(layers=[{**LAYER, "mediaType": kind, "urls": ["https://a/b"]}, LAYER]))
    assert isinstance(found, Manifest)
    assert [is_foreign(layer) for layer in found.layers] == [True, False]


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (
            404,
            {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no \x1b[31mred"}]},
            "manifest unknown: no  [31mred",
        ),
        (401, {"errors": [{"code": "DENIED"}]}, "denied: denied"),
        (401, {"details": "incorrect username or password"}, "unauthorized: incorrect username or password"),
        (401, b"", "unauthorized: authentication required"),
        (403, {}, "denied: requested access to the resource is denied"),
        (503, b"<html>", "unknown: received unexpected HTTP status: 503 Service Unavailable"),
        (599, {}, "unknown: received unexpected HTTP status: 599"),
    ],
)
def test_refusals_in_words(status: int, body: object, text: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert str(parse_refusal(status, data)) == text

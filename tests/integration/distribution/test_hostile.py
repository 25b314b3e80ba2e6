# SPDX-License-Identifier: Apache-2.0
"""Registries that lie, stall, flood and lead astray: a clear error each time, and nothing is left."""

from __future__ import annotations

import json
import random

import anyio
import pytest

from proa.distribution.errors import RegistryFailed
from proa.distribution.manifests import DOCKER_LAYER, DOCKER_MANIFEST, OCI_INDEX, SCHEMA_1
from proa.distribution.timings import Timings
from proa.model.errors import EngineError, InvalidParameter
from tests.integration.distribution.conftest import IMPATIENT, TIMINGS, Daemon, Harbour
from tests.support.fake_registry import FakeRegistry, Misdeed, Seen, Stream, answer, describe, says
from tests.support.images import COMPRESSORS, make_config, make_layer, make_tar, sha256

pytestmark = pytest.mark.anyio

LAYER = make_layer("one")
BLOB = COMPRESSORS["gzip"](LAYER)
BIG = make_tar({"big": random.Random(2).randbytes(1_500_000)})
BIG_BLOB = COMPRESSORS["gzip"](BIG)


def endless(head: bytes, piece: bytes, pause_s: float = 0) -> Misdeed:
    async def misdeed(seen: Seen, stream: Stream) -> None:
        await stream.send(head)
        while True:
            await stream.send(piece)
            await anyio.sleep(pause_s)

    return misdeed


async def silence(seen: Seen, stream: Stream) -> None:
    await anyio.sleep_forever()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"10000\r\n" + b"x" * 65536 + b"\r\n"
LONG = answer(200, Content_Length=str(1 << 40))
LOOP = says(307, Location="/v2/a/manifests/loop")

MANIFEST_MISDEEDS: dict[str, tuple[Misdeed, str]] = {
    "endless": (endless(CHUNKED, CHUNK), "is larger than 4194304 bytes"),
    "endless headers": (endless(b"HTTP/1.1 200 OK\r\n", b"X: " + b"y" * 1000 + b"\r\n"), "malformed|EOF|Got"),
    "silent": (silence, "nothing came for 0.3 s"),
    "slow head": (endless(b"HTTP/1.1 2", b"", 0.1), "nothing came for 0.3 s"),
    "slow body": (endless(LONG, b"x", 0.05), "takes longer than 0.3 s|nothing came"),
    "no HTTP": (endless(b"\x00\x01garbage\r\n\r\n", b""), "malformed HTTP response|EOF"),
    "hangs up": (says(200, b"{}", Content_Length="100"), "unexpected EOF"),
    "redirect loop": (LOOP, "stopped after 10 redirects"),
    "redirect nowhere": (says(302), "a redirect leads nowhere"),
    "redirect to a file": (says(302, Location="file:///etc/passwd"), "a redirect leads nowhere"),
    "redirect with a space": (says(302, Location="/v2/a HTTP/1.1"), "invalid URL"),
    "redirect to rubbish": (says(302, Location="http://[::1"), "a redirect leads nowhere"),
    "malformed JSON": (says(200, b'{"schemaVersion": 2,', Content_Type=DOCKER_MANIFEST), "invalid manifest"),
    "deep JSON": (says(200, b"[" * 200_000, Content_Type=DOCKER_MANIFEST), "invalid manifest"),
    "an HTML page": (says(200, b"<html>", Content_Type="text/html"), "invalid manifest"),
    "schema 1": (says(200, b'{"schemaVersion": 1}', Content_Type=SCHEMA_1[0]), "schema 1 support"),
    "nothing": (says(204), "received unexpected HTTP status: 204|invalid"),
    "a lone 100": (says(100), "EOF|nothing came|malformed|disconnected"),
    "unknown challenge": (says(401, WWW_Authenticate="Magic x=1"), "not known"),
    "no challenge": (says(401), "not known"),
    "many requests": (says(429, b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "later"}]}'), "later"),
    "broken": (says(500, b"x" * 1_000_000), "500 Internal Server Error"),
    "forbidden": (says(403), "pull access denied for"),
}  # fmt: skip


def timings(kind: str) -> Timings:
    """Wait for a moment only, where the misdeed is to make us wait."""
    return IMPATIENT if kind.startswith(("silent", "slow")) else TIMINGS


@pytest.mark.parametrize("kind", MANIFEST_MISDEEDS)
async def test_manifests(harbour: Harbour, registry: FakeRegistry, kind: str) -> None:
    misdeed, message = MANIFEST_MISDEEDS[kind]
    registry.misdeeds["/v2/a/manifests/"] = misdeed
    async with harbour.daemon(timings=timings(kind)) as daemon:
        with pytest.raises(EngineError, match=message):
            await daemon.pull(f"{registry.host}/a")
        assert daemon.told == [], "the answer has not begun: the error is a status"
        assert daemon.is_clean


BLOB_MISDEEDS: dict[str, tuple[Misdeed, str]] = {
    "another content": (says(200, bytes(len(BLOB))), "filesystem layer verification failed for digest"),
    "too long": (says(200, BLOB + b"x"), "is longer than the"),
    "endless": (endless(CHUNKED, CHUNK), "is longer than the"),
    "too short": (says(200, BLOB[:-1]), "ended 1 bytes early"),
    "always cut": (says(200, BLOB[:50], Content_Length=str(len(BLOB))), "unexpected EOF|another range"),
    "not there": (says(404), "unknown"),
    "silent": (silence, "nothing came for 0.3 s"),
    "slow": (endless(LONG, b"\0", 0.05), "the transfer is too slow|nothing came"),
    "another range": (says(206, BLOB, Content_Range="bytes 7-9/10"), "another range than was asked for"),
    "a range without end": (says(206, BLOB, Content_Range=f"bytes {'9' * 5000}-9/9"), "another range"),
    "no range": (says(206, BLOB), "another range than was asked for"),
    "broken": (says(503), "503 Service Unavailable"),
    "redirect loop": (says(307, Location="/v2/a/blobs/loop"), "stopped after 10 redirects|unknown"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BLOB_MISDEEDS)
async def test_blobs(harbour: Harbour, registry: FakeRegistry, kind: str) -> None:
    misdeed, message = BLOB_MISDEEDS[kind]
    registry.add_image("a", "1", [BIG] if kind == "slow" else [LAYER])
    registry.misdeeds[registry.blob_path("a", BIG_BLOB if kind == "slow" else BLOB)] = misdeed
    async with harbour.daemon(timings=timings(kind)) as daemon:
        with pytest.raises(EngineError, match=message):
            await daemon.pull(f"{registry.host}/a")
        assert daemon.is_clean
        left = daemon.root / "blobs" / "partial"
        assert sum(path.stat().st_size for path in left.iterdir()) <= len(BIG_BLOB)
    registry.misdeeds.clear()
    async with harbour.daemon() as daemon:
        await daemon.pull(f"{registry.host}/a")
        assert daemon.files("partial") == set()


async def test_a_manifest_that_is_not_its_digest(daemon: Daemon, registry: FakeRegistry) -> None:
    registry.add_image("a", "1", [LAYER])
    digest = "sha256:" + "ab" * 32
    registry.manifests["a", digest] = registry.manifests["a", "1"]
    with pytest.raises(RegistryFailed, match=f"manifest verification failed for digest {digest}"):
        await daemon.pull(f"{registry.host}/a", digest)


async def test_an_index_that_leads_to_another_manifest(daemon: Daemon, registry: FakeRegistry) -> None:
    one = registry.add_image("a", "x", [LAYER])
    registry.add_index("a", "1", {"linux/amd64": one, "linux/arm64": one})
    registry.manifests["a", one] = (DOCKER_MANIFEST, b'{"schemaVersion": 2}')
    with pytest.raises(RegistryFailed, match="manifest verification failed"):
        await daemon.pull(f"{registry.host}/a")


async def test_an_index_of_indexes_without_end(daemon: Daemon, registry: FakeRegistry) -> None:
    inner = registry.add_image("a", "x", [LAYER])
    for tag in ("2", "3", "4", "1"):
        kind, data = registry.manifests["a", inner]
        entry = {**describe(data, kind), "platform": {"os": "linux", "architecture": "amd64"}}
        inner = registry.add_manifest("a", tag, {"schemaVersion": 2, "manifests": [entry]}, OCI_INDEX)
    with pytest.raises(RegistryFailed, match="go too deep"):
        await daemon.pull(f"{registry.host}/a", platform="linux/amd64")


CONFIGS = {
    "not JSON": (b"{", "image configuration"),
    "no root": (b"{}", "no RootFS key"),
    "too few layers": (make_config([]), "layers from manifest don't match image configuration"),
    "another layer": (make_config([make_layer("other")]), "has diff id"),
    "for Windows": (make_config([LAYER], os="windows"), "windows"),
    "odd digests": (b'{"rootfs": {"diff_ids": ["sha256:../x"]}}', "invalid digest"),
}


@pytest.mark.parametrize("kind", CONFIGS)
async def test_configurations(daemon: Daemon, registry: FakeRegistry, kind: str) -> None:
    config, message = CONFIGS[kind]
    registry.blobs |= {sha256(config): config, sha256(BLOB): BLOB}
    document = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": describe(config, "application/vnd.docker.container.image.v1+json"),
        "layers": [describe(BLOB, DOCKER_LAYER)],
    }
    registry.add_manifest("a", "1", document, DOCKER_MANIFEST)
    with pytest.raises(InvalidParameter, match=message):
        await daemon.pull(f"{registry.host}/a")
    assert daemon.is_clean


async def test_a_size_that_lies_does_no_harm_to_what_is_here(daemon: Daemon, registry: FakeRegistry) -> None:
    """Another image names a layer's blob with another size, for a layer that is not here."""
    registry.add_image("a", "1", [LAYER])
    await daemon.pull(f"{registry.host}/a")
    config = make_config([make_layer("other")])
    registry.blobs[sha256(config)] = config
    for size in (1, len(BLOB) - 1, len(BLOB) + 1):
        layer = {**describe(BLOB, DOCKER_LAYER), "size": size}
        document = {"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "layers": [layer]}
        document["config"] = describe(config, "application/vnd.docker.container.image.v1+json")
        registry.add_manifest("b", "1", document, DOCKER_MANIFEST)
        with pytest.raises(RegistryFailed, match="does not have"):
            await daemon.pull(f"{registry.host}/b")
    assert daemon.images.store.content.read(sha256(BLOB), 1 << 20) == BLOB


async def test_a_configuration_that_is_huge(daemon: Daemon, registry: FakeRegistry) -> None:
    config = describe(b"{}", "application/vnd.docker.container.image.v1+json")
    document = {"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": {**config, "size": 1 << 30}}
    registry.add_manifest("a", "1", document, DOCKER_MANIFEST)
    with pytest.raises(RegistryFailed, match="has 1073741824 bytes, more than"):
        await daemon.pull(f"{registry.host}/a")


@pytest.mark.parametrize(
    "url",
    ["http://example.com/l", "https://localhost/l", "https://169.254.169.254/l", "file:///etc/passwd", "x"],
)
async def test_foreign_layers_lead_to_no_place_of_ours(
    daemon: Daemon, registry: FakeRegistry, url: str
) -> None:
    registry.add_image("a", "1", [LAYER])
    document = json.loads(registry.manifests["a", "1"][1])
    kind = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    document["layers"][0] |= {"mediaType": kind, "urls": [url]}
    registry.add_manifest("a", "1", document, DOCKER_MANIFEST)
    await daemon.pull(f"{registry.host}/a")  # the registry has it after all
    await daemon.images.remove(f"{registry.host}/a:1", used_by=lambda image_id: [])
    del registry.blobs[sha256(BLOB)]
    with pytest.raises(RegistryFailed, match="refusing to fetch a foreign layer"):
        await daemon.pull(f"{registry.host}/a")


async def test_a_list_of_tags_that_leads_out(daemon: Daemon, registry: FakeRegistry) -> None:
    registry.misdeeds["/v2/a/tags"] = says(200, b'{"tags": ["../../b", "1"]}')
    with pytest.raises(InvalidParameter, match="invalid tag format"):
        await daemon.pull(f"{registry.host}/a", "")
    registry.misdeeds["/v2/a/tags"] = says(200, b'{"tags": ["1"]}', Link='</v2/a/tags/list>; rel="next"')
    with pytest.raises(RegistryFailed, match="the list of tags does not end"):
        await daemon.pull(f"{registry.host}/a", "")

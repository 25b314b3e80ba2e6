# SPDX-License-Identifier: Apache-2.0
"""Pushes: what is sent and what is not, under which manifest, with which rights, and where it may not go."""

from __future__ import annotations

import json

import anyio
import pytest

from proa.distribution.errors import RegistryFailed
from proa.distribution.manifests import DOCKER_LAYER, DOCKER_MANIFEST, OCI_MANIFEST
from proa.model.errors import EngineError, InvalidParameter, NotFound
from proa.model.registry import Credentials
from tests.integration.distribution.conftest import Daemon
from tests.support.fake_registry import FakeRegistry, Seen, Stream, answer, says
from tests.support.images import inflate, make_layer, sha256

pytestmark = pytest.mark.anyio

LAYERS = [make_layer("one"), make_layer("two")]
ANN = Credentials(username="ann", password="secret")


async def test_a_loaded_image_goes_out_packed_and_comes_back(daemon: Daemon, registry: FakeRegistry) -> None:
    name = f"{registry.host}/a/b"
    await daemon.load(f"{name}:1", LAYERS)
    await daemon.push(name)
    kind, data = registry.manifests["a/b", "1"]
    document = json.loads(data)
    assert (kind, document["mediaType"]) == (DOCKER_MANIFEST, DOCKER_MANIFEST)
    assert [layer["mediaType"] for layer in document["layers"]] == [DOCKER_LAYER] * 2
    assert [inflate(registry.blobs[layer["digest"]]) for layer in document["layers"]] == LAYERS
    ids = [sha256(layer)[7:19] for layer in LAYERS]
    assert daemon.told[0] == {"status": f"The push refers to repository [{name}]"}
    assert [line["id"] for line in daemon.told if line.get("status") == "Preparing"] == ids[::-1]
    assert daemon.statuses.count("Pushed") == 2
    assert daemon.told[-2]["status"] == f"1: digest: {sha256(data)} size: {len(data)}"
    assert daemon.told[-1] == {
        "progressDetail": {},
        "aux": {"Tag": "1", "Digest": sha256(data), "Size": len(data)},
    }
    assert daemon.images.get(f"{name}:1").repo_digests == (f"{name}@{sha256(data)}",)
    blobs = daemon.files("sha256")
    assert not {layer["digest"][7:] for layer in document["layers"]} & blobs, "what was packed is gone"
    puts = len([seen for seen in registry.seen if seen.method == "PUT"])
    await daemon.push(name)
    assert daemon.statuses.count("Layer already exists") == 2
    assert len([seen for seen in registry.seen if seen.method == "PUT"]) == puts + 1, "the manifest only"
    assert registry.manifests["a/b", "1"][1] == data


@pytest.mark.parametrize("compress", ["plain", "gzip", "zstd"])
async def test_what_was_pulled_keeps_its_digest(
    daemon: Daemon, registry: FakeRegistry, compress: str
) -> None:
    digest = registry.add_image("a", "1", LAYERS, compress=compress)
    await daemon.pull(f"{registry.host}/a")
    blobs = dict(registry.blobs)
    registry.blobs.clear()
    await daemon.images.tag(f"{registry.host}/a:1", f"{registry.host}/c", "2")
    await daemon.push(f"{registry.host}/c", "2")
    assert registry.manifests["c", "2"] == registry.manifests["a", digest]
    assert registry.blobs == blobs


async def test_mounting(daemon: Daemon, registry: FakeRegistry) -> None:
    digest = registry.add_image("a", "1", LAYERS)
    await daemon.pull(f"{registry.host}/a")
    document = json.loads(registry.manifests["a", "1"][1])
    registry.mountable = {document["layers"][0]["digest"]}
    registry.blobs.clear()
    await daemon.images.tag(f"{registry.host}/a:1", f"{registry.host}/c", "1")
    await daemon.push(f"{registry.host}/c")
    assert daemon.statuses.count("Mounted from a") == 1
    assert daemon.statuses.count("Pushed") == 1, "one the registry would not mount"
    asked = [seen.query for seen in registry.requests_to("/v2/c/blobs/uploads/") if "mount" in seen.query]
    assert {query["from"][0] for query in asked} == {"a"}
    assert sha256(registry.manifests["c", "1"][1]) == digest


async def test_all_tags(daemon: Daemon, registry: FakeRegistry) -> None:
    for tag in ("1", "2"):
        await daemon.load(f"{registry.host}/a:{tag}", [make_layer(tag)])
    await daemon.push(f"{registry.host}/a", "")
    assert {tag for _, tag in registry.manifests if ":" not in tag} == {"1", "2"}


@pytest.mark.parametrize(
    ("name", "tag", "error", "message"),
    [
        ("a", "1", NotFound, "An image does not exist locally with the tag: a"),
        ("{host}/here", "2", NotFound, "tag does not exist: {host}/here:2"),
        ("{host}/here@sha256:" + "ab" * 32, "", InvalidParameter, "cannot push a digest reference"),
        ("../x", "1", InvalidParameter, "invalid reference format"),
        ("{host}/here", "../x", InvalidParameter, "invalid tag format"),
    ],
)
async def test_what_is_not_here(
    daemon: Daemon, registry: FakeRegistry, name: str, tag: str, error: type[EngineError], message: str
) -> None:
    await daemon.load(f"{registry.host}/here:1", LAYERS)
    with pytest.raises(error, match=message.format(host=registry.host)):
        await daemon.push(name.format(host=registry.host), tag)
    assert registry.seen == []


class TestRights:
    async def test_the_scopes_of_a_push_and_a_mount(self, daemon: Daemon, registry: FakeRegistry) -> None:
        registry.users["ann"] = "secret"
        registry.realm = f"{registry.url}/token"
        registry.add_image("a", "1", LAYERS)
        await daemon.pull(f"{registry.host}/a", credentials=ANN)
        await daemon.images.tag(f"{registry.host}/a:1", f"{registry.host}/c", "1")
        registry.mountable = set(registry.blobs)
        registry.blobs.clear()
        await daemon.push(f"{registry.host}/c", credentials=ANN)
        scopes = [seen.query["scope"] for seen in registry.requests_to("/token")]
        assert ["repository:c:pull,push"] in scopes
        assert ["repository:c:pull,push", "repository:a:pull"] in scopes

    async def test_refused(self, daemon: Daemon, registry: FakeRegistry) -> None:
        registry.users["ann"] = "secret"
        await daemon.load(f"{registry.host}/a:1", LAYERS)
        with pytest.raises(RegistryFailed, match="no basic auth credentials"):
            await daemon.push(f"{registry.host}/a")
        wrong = Credentials(username="ann", password="wrong")
        with pytest.raises(RegistryFailed, match="unauthorized: authentication required"):
            await daemon.push(f"{registry.host}/a", credentials=wrong)
        registry.misdeeds["/v2/a/blobs/"] = says(403)
        with pytest.raises(RegistryFailed, match="denied: requested access to the resource is denied"):
            await daemon.push(f"{registry.host}/a", credentials=ANN)


class TestHostile:
    async def test_an_upload_that_breaks_is_begun_again(self, daemon: Daemon, registry: FakeRegistry) -> None:
        await daemon.load(f"{registry.host}/a:1", LAYERS[:1])
        left = [1, 1]

        async def break_off(seen: Seen, stream: Stream) -> None:
            if seen.method != "PUT" or not left:
                await registry.behave(seen, stream)
                return
            left.pop()
            await stream.send(answer(503))

        registry.misdeeds["/v2/a/blobs/uploads/one"] = break_off
        await daemon.push(f"{registry.host}/a")
        assert daemon.statuses.count("Retrying in 0 seconds") == 2
        assert ("a", "1") in registry.manifests

    @pytest.mark.parametrize(
        ("location", "message"),
        [
            ("", "does not say where to upload to"),
            ("file:///etc/passwd", "does not say where to upload to"),
            ("http://[::1", "does not say where to upload to"),
        ],
    )
    async def test_uploads_that_lead_nowhere(
        self, daemon: Daemon, registry: FakeRegistry, location: str, message: str
    ) -> None:
        await daemon.load(f"{registry.host}/a:1", LAYERS)
        registry.misdeeds["/v2/a/blobs/uploads/"] = says(202, Location=location)
        with pytest.raises(RegistryFailed, match=message):
            await daemon.push(f"{registry.host}/a")

    async def test_an_upload_elsewhere_takes_no_credentials_along(
        self, daemon: Daemon, registry: FakeRegistry
    ) -> None:
        registry.users["ann"] = "secret"
        await daemon.load(f"{registry.host}/a:1", LAYERS[:1])
        async with FakeRegistry().running() as elsewhere:
            registry.misdeeds["/v2/a/blobs/uploads/"] = says(202, Location=f"{elsewhere.url}/put?x=1")
            elsewhere.misdeeds["/put"] = says(201)
            await daemon.push(f"{registry.host}/a", credentials=ANN)
            assert elsewhere.seen
            assert all("authorization" not in seen.headers for seen in elsewhere.seen)

    @pytest.mark.parametrize("status", [200, 202, 404, 413, 500])
    async def test_odd_answers(self, daemon: Daemon, registry: FakeRegistry, status: int) -> None:
        await daemon.load(f"{registry.host}/a:1", LAYERS)
        registry.misdeeds["/v2/a/blobs/uploads/one"] = says(status)
        with pytest.raises(RegistryFailed, match=str(status)):
            await daemon.push(f"{registry.host}/a")
        assert ("a", "1") not in registry.manifests
        assert daemon.files("ingest") == set()

    async def test_a_client_that_leaves(self, daemon: Daemon, registry: FakeRegistry) -> None:
        await daemon.load(f"{registry.host}/a:1", LAYERS)
        begun = anyio.Event()

        async def stall(seen: Seen, stream: Stream) -> None:
            if seen.method == "PUT":
                begun.set()
                await anyio.sleep_forever()
            await stream.send(answer(204))

        registry.misdeeds["/v2/a/blobs/uploads/one"] = stall
        async with anyio.create_task_group() as group:
            group.start_soon(daemon.push, f"{registry.host}/a")
            await begun.wait()
            group.cancel_scope.cancel()
        assert any(seen.method == "DELETE" for seen in registry.seen), "the upload is given up"
        assert daemon.files("ingest") == set()
        assert daemon.images.get(f"{registry.host}/a:1").repo_digests == ()


async def test_the_kind_of_manifest_stays(daemon: Daemon, registry: FakeRegistry) -> None:
    registry.add_image("a", "x", LAYERS)
    document = json.loads(registry.manifests["a", "x"][1]) | {"mediaType": OCI_MANIFEST}
    document["annotations"] = {"a": "b"}
    digest = registry.add_manifest("a", "1", document, OCI_MANIFEST)
    await daemon.pull(f"{registry.host}/a")
    registry.manifests.clear()
    await daemon.push(f"{registry.host}/a")
    assert registry.manifests["a", "1"][0] == OCI_MANIFEST
    assert f"1: digest: {digest} size: {len(registry.manifests['a', '1'][1])}" in daemon.statuses

# SPDX-License-Identifier: Apache-2.0
"""Pulls as they should go: platforms, digests, resuming, sharing, mirrors, certificates, proxies."""

from __future__ import annotations

import random
import ssl

import anyio
import pytest

from proa.distribution.errors import RegistryFailed
from proa.model.errors import InvalidParameter, NotFound
from proa.model.registry import RegistrySettings
from tests.integration.distribution.conftest import TIMINGS, Daemon, Harbour
from tests.support.fake_registry import FakeRegistry, Seen, Stream, answer, says, tunnel_to
from tests.support.images import COMPRESSORS, make_layer, make_tar, sha256
from tests.support.registry import make_certificate

pytestmark = pytest.mark.anyio

LAYERS = [make_layer("one"), make_layer("two")]
BIG = make_tar({"big": random.Random(1).randbytes(3_000_000)})
BIG_BLOB = COMPRESSORS["gzip"](BIG)


async def test_the_messages_are_dockers(daemon: Daemon, registry: FakeRegistry) -> None:
    digest = registry.add_image("a/b", "1", LAYERS)
    name = f"{registry.host}/a/b"
    await daemon.pull(name)
    ids = [sha256(COMPRESSORS["gzip"](layer))[7:19] for layer in LAYERS]
    assert daemon.told[0] == {"status": "Pulling from a/b", "id": "1"}
    for id in ids:
        said = [line["status"] for line in daemon.told if line.get("id") == id]
        assert [status for status in said if status != "Downloading"] == [
            *("Pulling fs layer", "Verifying Checksum", "Download complete"),
            *("Extracting", "Extracting", "Pull complete"),
        ]
    assert daemon.statuses[-2:] == [f"Digest: {digest}", f"Status: Downloaded newer image for {name}:1"]
    image = daemon.images.get(f"{name}:1")
    assert (image.references, image.repo_digests) == ((f"{name}:1",), (f"{name}@{digest}",))
    assert daemon.files("partial") == set()
    await daemon.pull(name)
    assert daemon.statuses == [
        "Pulling from a/b",
        f"Digest: {digest}",
        f"Status: Image is up to date for {name}:1",
    ]
    pulled = [event for event in daemon.bus.recent() if event.action == "pull"]
    assert [(one.actor_id, one.attributes) for one in pulled] == [(f"{name}:1", {"name": name})] * 2


async def test_layers_that_are_here_are_not_fetched(daemon: Daemon, registry: FakeRegistry) -> None:
    registry.add_image("a", "1", LAYERS)
    registry.add_image("b", "1", [*LAYERS, make_layer("three")], compress="zstd")
    await daemon.pull(f"{registry.host}/a")
    await daemon.pull(f"{registry.host}/b")
    assert daemon.statuses.count("Already exists") == 2
    assert daemon.statuses.count("Pull complete") == 1
    assert len(daemon.images.get(f"{registry.host}/b:1").layers) == 3


@pytest.mark.parametrize("compress", ["plain", "gzip", "zstd"])
async def test_compressions(daemon: Daemon, registry: FakeRegistry, compress: str) -> None:
    registry.add_image("a", "1", LAYERS, compress=compress)
    await daemon.pull(f"{registry.host}/a")
    assert set(daemon.layers.stored) == {sha256(layer) for layer in LAYERS}


async def test_the_platform_chooses(daemon: Daemon, registry: FakeRegistry) -> None:
    name = f"{registry.host}/a"
    arm = registry.add_image("a", "arm", LAYERS[:1], architecture="arm64")
    amd = registry.add_image("a", "amd", LAYERS[1:], architecture="amd64")
    index = registry.add_index("a", "1", {"linux/arm64/v8": arm, "linux/amd64": amd})
    await daemon.pull(name, platform="linux/amd64")
    assert daemon.images.get(f"{name}:1").architecture == "amd64"
    assert f"Digest: {index}" in daemon.statuses
    await daemon.pull(name, platform="linux/arm64")
    assert daemon.images.get(f"{name}:1").architecture == "arm64"
    assert daemon.statuses[-1] == f"Status: Downloaded newer image for {name}:1"
    with pytest.raises(NotFound, match="no matching manifest for linux/riscv64 in the manifest list entries"):
        await daemon.pull(name, platform="linux/riscv64")
    await daemon.pull(name, "arm", platform="linux/amd64")
    assert daemon.statuses[-1].startswith("WARNING: image with reference")


async def test_by_digest(daemon: Daemon, registry: FakeRegistry) -> None:
    digest = registry.add_image("a", "1", LAYERS)
    name = f"{registry.host}/a"
    await daemon.pull(name, digest)
    assert daemon.told[0] == {"status": "Pulling from a", "id": digest}
    assert daemon.images.get(f"{name}@{digest}").references == ()
    await daemon.pull(f"{name}@{digest}", "")
    assert daemon.statuses[-1] == f"Status: Image is up to date for {name}@{digest}"


async def test_all_tags(daemon: Daemon, registry: FakeRegistry) -> None:
    for tag in ("1", "2"):
        registry.add_image("a", tag, [make_layer(tag)])
    await daemon.pull(f"{registry.host}/a", "")
    assert len(daemon.images.list()) == 2
    with pytest.raises(NotFound, match="not found: manifest unknown"):
        await daemon.pull(f"{registry.host}/a", "3")


async def test_an_empty_image(daemon: Daemon, registry: FakeRegistry) -> None:
    registry.add_image("a", "1", [])
    await daemon.pull(f"{registry.host}/a")
    assert daemon.images.get(f"{registry.host}/a:1").layers == ()


async def test_three_layers_at_once(daemon: Daemon, registry: FakeRegistry) -> None:
    layers = [make_layer(str(number)) for number in range(6)]
    registry.add_image("a", "1", layers)
    running, most, full = 0, 0, anyio.Event()

    async def count(seen: Seen, stream: Stream) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            full.set()
        await full.wait()
        await registry.behave(seen, stream)
        running -= 1

    for layer in layers:
        registry.misdeeds[registry.blob_path("a", COMPRESSORS["gzip"](layer))] = count
    await daemon.pull(f"{registry.host}/a")
    assert most == 3
    assert daemon.statuses.count("Waiting") == 3


@pytest.mark.parametrize("name", ["../a", "localhost:5/A", "a//b", "localhost:5/..", "a b", "", "x" * 300])
async def test_names_that_are_none(daemon: Daemon, name: str) -> None:
    with pytest.raises(InvalidParameter):
        await daemon.pull(name)
    with pytest.raises(InvalidParameter):
        await daemon.pull("localhost:5/a", "../1")


class TestResuming:
    async def test_after_a_broken_connection(self, daemon: Daemon, registry: FakeRegistry) -> None:
        """The server breaks off twice; what came is not asked for again."""
        registry.add_image("a", "1", [BIG])
        path = registry.blob_path("a", BIG_BLOB)
        breaks = [1_000_000, 2_000_000]

        async def break_off(seen: Seen, stream: Stream) -> None:
            start = int(seen.headers.get("range", "bytes=0-")[6:-1])
            if not breaks:
                await registry.behave(seen, stream)
                return
            end = breaks.pop(0)
            await stream.send(
                answer(
                    206 if start else 200,
                    Content_Length=str(len(BIG_BLOB) - start),
                    Content_Range=f"bytes {start}-{len(BIG_BLOB) - 1}/{len(BIG_BLOB)}",
                )
            )
            await stream.send(BIG_BLOB[start:end])
            registry.served[path] += end - start

        registry.misdeeds[path] = break_off
        await daemon.pull(f"{registry.host}/a")
        assert len(registry.requests_to(path)) == 3
        assert registry.served[path] == len(BIG_BLOB)
        assert daemon.statuses.count("Retrying in 0 seconds") == 2

    async def test_after_a_cancelled_pull_and_a_new_daemon(
        self, harbour: Harbour, registry: FakeRegistry
    ) -> None:
        registry.add_image("a", "1", [LAYERS[0], BIG])
        path = registry.blob_path("a", BIG_BLOB)
        half = len(BIG_BLOB) // 2
        came = anyio.Event()

        async def stall(seen: Seen, stream: Stream) -> None:
            await stream.send(answer(200, Content_Length=str(len(BIG_BLOB))) + BIG_BLOB[:half])
            registry.served[path] += half
            came.set()
            await anyio.sleep_forever()

        registry.misdeeds[path] = stall
        async with harbour.daemon(timings=TIMINGS) as daemon, anyio.create_task_group() as group:
            group.start_soon(daemon.pull, f"{registry.host}/a")
            await came.wait()
            partial = daemon.root / "blobs" / "partial" / sha256(BIG_BLOB)[7:]
            while not partial.exists() or partial.stat().st_size < 1_000_000:  # noqa: ASYNC110 (a file)
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()
        registry.misdeeds.clear()
        async with harbour.daemon() as daemon:
            assert daemon.is_clean
            assert len(daemon.files("partial")) == 2
            await daemon.pull(f"{registry.host}/a")
            assert daemon.files("partial") == set()
        assert registry.served[path] <= len(BIG_BLOB)
        small = registry.blob_path("a", COMPRESSORS["gzip"](LAYERS[0]))
        assert len(registry.requests_to(small)) == 1, "what had come whole is not asked for again"

    async def test_a_prune_forgets_what_nobody_resumed(self, daemon: Daemon, registry: FakeRegistry) -> None:
        registry.add_image("a", "1", LAYERS)

        async def refuse_when_another_came(seen: Seen, stream: Stream) -> None:
            partial = daemon.root / "blobs" / "partial"
            while not any(path.stat().st_size for path in partial.iterdir()):  # noqa: ASYNC110 (a file)
                await anyio.sleep(0.01)
            await says(404)(seen, stream)

        registry.misdeeds[registry.blob_path("a", COMPRESSORS["gzip"](LAYERS[1]))] = refuse_when_another_came
        with pytest.raises(RegistryFailed, match="unknown"):
            await daemon.pull(f"{registry.host}/a")
        _, freed = await daemon.images.prune({}, used_by=lambda image_id: [])
        assert daemon.files("partial") == set()
        assert freed > 0

    async def test_a_server_that_knows_no_ranges(self, daemon: Daemon, registry: FakeRegistry) -> None:
        registry.add_image("a", "1", [BIG])
        path = registry.blob_path("a", BIG_BLOB)
        partials = daemon.images.store.content.partials
        partials.path(sha256(BIG_BLOB)).write_bytes(BIG_BLOB[:1000])
        registry.misdeeds[path] = says(200, BIG_BLOB)
        await daemon.pull(f"{registry.host}/a")
        assert registry.requests_to(path)[0].headers["range"] == "bytes=1000-"

    async def test_a_partial_file_that_is_damaged(self, daemon: Daemon, registry: FakeRegistry) -> None:
        registry.add_image("a", "1", [BIG])
        partials = daemon.images.store.content.partials
        partials.path(sha256(BIG_BLOB)).write_bytes(bytes(1000))
        await daemon.pull(f"{registry.host}/a")
        assert daemon.statuses[-1].startswith("Status: Downloaded newer image")

    async def test_a_range_that_is_refused(self, daemon: Daemon, registry: FakeRegistry) -> None:
        registry.add_image("a", "1", [BIG])
        path = registry.blob_path("a", BIG_BLOB)
        daemon.images.store.content.partials.path(sha256(BIG_BLOB)).write_bytes(BIG_BLOB[:1000])

        async def refuse(seen: Seen, stream: Stream) -> None:
            if "range" in seen.headers:
                await stream.send(answer(416))
            else:
                await registry.behave(seen, stream)

        registry.misdeeds[path] = refuse
        await daemon.pull(f"{registry.host}/a")


class TestSharing:
    async def test_two_pulls_fetch_once(self, daemon: Daemon, registry: FakeRegistry) -> None:
        registry.add_image("a", "1", [BIG])
        registry.add_image("a", "2", [BIG, LAYERS[0]])
        async with anyio.create_task_group() as group:
            for tag in ("1", "2", "1"):
                group.start_soon(daemon.pull, f"{registry.host}/a", tag)
        assert registry.served[registry.blob_path("a", BIG_BLOB)] == len(BIG_BLOB)
        assert len(daemon.images.list()) == 2
        assert daemon.layers.added.count(sha256(BIG)) >= 1

    async def test_another_takes_over_when_one_leaves(self, daemon: Daemon, registry: FakeRegistry) -> None:
        registry.add_image("a", "1", [BIG])
        path = registry.blob_path("a", BIG_BLOB)
        came = anyio.Event()

        async def stall(seen: Seen, stream: Stream) -> None:
            del registry.misdeeds[path]
            await stream.send(answer(200, Content_Length=str(len(BIG_BLOB))) + BIG_BLOB[:1000])
            came.set()
            await anyio.sleep_forever()

        registry.misdeeds[path] = stall
        async with anyio.create_task_group() as group, anyio.create_task_group() as first:
            first.start_soon(daemon.pull, f"{registry.host}/a")
            await came.wait()
            group.start_soon(daemon.pull, f"{registry.host}/a")
            await anyio.wait_all_tasks_blocked()
            first.cancel_scope.cancel()
        assert daemon.images.get(f"{registry.host}/a:1").layers == (sha256(BIG),)


class TestWays:
    async def test_a_mirror(self, harbour: Harbour, registry: FakeRegistry) -> None:
        """Docker Hub's images come from the mirror; what it does not have is asked for elsewhere."""
        registry.add_image("library/alpine", "1", LAYERS)
        settings = RegistrySettings(mirrors=(f"{registry.url}/",), certs_dirs=())
        environment = {"HTTPS_PROXY": "http://localhost:1"}  # Docker Hub is out of reach, on any machine
        async with harbour.daemon(settings=settings, environment=environment) as daemon:
            await daemon.pull("alpine")
            assert daemon.told[0] == {"status": "Pulling from library/alpine", "id": "1"}
            assert daemon.images.get("alpine:1").references == ("alpine:1",)
            registry.add_image("library/debian", "1", [make_layer("debian")])
            registry.blobs.clear()  # a mirror that has only half of an image is as good as none
            with pytest.raises(RegistryFailed, match=r"registry-1\.docker\.io/v2/library/debian/manifests/1"):
                await daemon.pull("debian")

    async def test_certificates(self, harbour: Harbour) -> None:
        certificate, key = harbour.root / "server.crt", harbour.root / "server.key"
        make_certificate(certificate, key)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(certificate)
        context.verify_mode = ssl.CERT_REQUIRED
        async with FakeRegistry().running(context) as registry:
            registry.add_image("a", "1", LAYERS)
            directory = harbour.root / "certs.d" / registry.host
            directory.mkdir(parents=True)
            settings = RegistrySettings(certs_dirs=(harbour.root / "certs.d",))
            async with harbour.daemon(settings=settings) as daemon:
                (directory / "client.key").write_bytes(key.read_bytes())
                with pytest.raises(InvalidParameter, match=r"missing client certificate client\.cert"):
                    await daemon.pull(f"{registry.host}/a")
                (directory / "client.cert").write_bytes(certificate.read_bytes())
                await daemon.pull(f"{registry.host}/a")
                other = harbour.root / "other"
                other.mkdir()
                make_certificate(other / "ca.crt", other / "key")
                (directory / "ca.crt").write_bytes((other / "ca.crt").read_bytes())
                with pytest.raises(RegistryFailed, match="failed to verify certificate"):
                    await daemon.pull(f"{registry.host}/a")
                (directory / "ca.crt").write_bytes(certificate.read_bytes())
                await daemon.pull(f"{registry.host}/a")

    async def test_a_tunnel_and_the_certificate_behind_it(self, harbour: Harbour) -> None:
        """A registry that is not on the loopback is verified; HTTPS goes through a proxy by CONNECT."""
        certificate, key = harbour.root / "server.crt", harbour.root / "server.key"
        make_certificate(certificate, key, name="registry.test")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        settings = RegistrySettings(certs_dirs=(harbour.root / "certs.d",))
        async with FakeRegistry().running(context) as registry, FakeRegistry().running() as proxy:
            registry.add_image("a", "1", LAYERS)
            proxy.misdeeds["registry.test:443"] = tunnel_to(registry.port)
            async with harbour.daemon(settings=settings, environment={"HTTPS_PROXY": proxy.url}) as daemon:
                with pytest.raises(RegistryFailed, match="tls: failed to verify certificate: x509"):
                    await daemon.pull("registry.test/a")
                assert registry.seen == []
                directory = harbour.root / "certs.d" / "registry.test"
                directory.mkdir(parents=True)
                (directory / "ca.crt").write_bytes(certificate.read_bytes())
                await daemon.pull("registry.test/a")

    async def test_a_proxy(self, harbour: Harbour, registry: FakeRegistry) -> None:
        """An insecure registry in plain HTTP, by a proxy that gets whole URLs."""
        registry.add_image("a", "1", LAYERS)

        async def relay(seen: Seen, stream: Stream) -> None:
            target = seen.target.removeprefix("http://registry.test:80").removeprefix("http://registry.test")
            inner = Seen(method=seen.method, target=target, headers=seen.headers, body=b"")
            await registry.behave(inner, stream)

        registry.misdeeds["/"] = relay
        settings = RegistrySettings(insecure=("registry.test",), certs_dirs=())
        environment = {"HTTP_PROXY": registry.url, "HTTPS_PROXY": "http://localhost:1"}
        async with harbour.daemon(settings=settings, environment=environment) as daemon:
            await daemon.pull("registry.test/a")
            assert all(seen.target.startswith("http://registry.test") for seen in registry.seen)

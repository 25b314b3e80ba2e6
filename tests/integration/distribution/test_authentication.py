# SPDX-License-Identifier: Apache-2.0
"""Who gets to see what of a user."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncIterator

import pytest

from proa.distribution.errors import RegistryFailed
from proa.model.errors import InvalidParameter, NotFound, Unauthenticated
from proa.model.registry import Credentials, RegistrySettings
from tests.integration.distribution.conftest import Daemon, Harbour
from tests.support.fake_registry import FakeRegistry, says, tunnel_to
from tests.support.images import COMPRESSORS, make_layer
from tests.support.registry import make_certificate

pytestmark = pytest.mark.anyio

LAYER = make_layer("one")
BLOB = COMPRESSORS["gzip"](LAYER)
ANN = Credentials(username="ann", password="secret")
WRONG = Credentials(username="ann", password="wrong")


@pytest.fixture
async def registry(registry: FakeRegistry) -> FakeRegistry:
    registry.users["ann"] = "secret"
    registry.add_image("a", "1", [LAYER])
    return registry


@pytest.fixture
async def bearer(registry: FakeRegistry) -> FakeRegistry:
    registry.realm = f"{registry.url}/token"
    return registry


@pytest.fixture
async def elsewhere() -> AsyncIterator[FakeRegistry]:
    """A server of somebody else's."""
    async with FakeRegistry().running() as elsewhere:
        yield elsewhere


def secrets_seen(registry: FakeRegistry) -> set[str]:
    """Everything that a server was told and that should have been kept from it."""
    wanted = ("ann:secret", "secret", "refresh-ann")
    encoded = [base64.b64encode(word.encode()).decode().rstrip("=") for word in wanted]
    found = set()
    for seen in registry.seen:
        text = f"{seen.target} {seen.headers} {seen.body.decode('latin-1')}"
        found |= {word for word in (*wanted, *encoded) if word in text}
        if "authorization" in seen.headers:
            found.add("authorization")
    return found


class TestBasic:
    async def test_asked_for(self, daemon: Daemon, registry: FakeRegistry) -> None:
        await daemon.pull(f"{registry.host}/a", credentials=ANN)
        first = registry.requests_to("/v2/a/manifests/1")[0]
        assert "authorization" not in first.headers, "nothing is told before it is asked"

    async def test_missing_and_wrong(self, daemon: Daemon, registry: FakeRegistry) -> None:
        with pytest.raises(RegistryFailed, match='manifests/1": no basic auth credentials'):
            await daemon.pull(f"{registry.host}/a")
        with pytest.raises(NotFound, match=r"pull access denied .* may require 'docker login'"):
            await daemon.pull(f"{registry.host}/a", credentials=WRONG)

    async def test_those_of_another_registry_stay_here(self, daemon: Daemon, registry: FakeRegistry) -> None:
        theirs = Credentials(username="ann", password="secret", server="https://index.docker.io/v1/")
        with pytest.raises(RegistryFailed, match="no basic auth credentials"):
            await daemon.pull(f"{registry.host}/a", credentials=theirs)
        assert secrets_seen(registry) == set()


class TestBearer:
    async def test_by_password(self, daemon: Daemon, bearer: FakeRegistry) -> None:
        await daemon.pull(f"{bearer.host}/a", credentials=ANN)
        (asked,) = bearer.requests_to("/token")
        assert asked.query["scope"] == ["repository:a:pull"]
        assert asked.query["service"] == ["fake"]
        for seen in bearer.requests_to("/v2/a/"):
            assert "Basic" not in seen.headers.get("authorization", "")

    async def test_by_identity_token(self, daemon: Daemon, bearer: FakeRegistry) -> None:
        await daemon.pull(f"{bearer.host}/a", credentials=Credentials(identity_token="refresh-ann"))
        assert b"grant_type=refresh_token" in bearer.requests_to("/token")[0].body

    async def test_by_registry_token(self, daemon: Daemon, bearer: FakeRegistry) -> None:
        bearer.tokens["given"] = ["repository:a:pull"]
        await daemon.pull(f"{bearer.host}/a", credentials=Credentials(registry_token="given"))
        assert bearer.requests_to("/token") == []

    async def test_refused(self, daemon: Daemon, bearer: FakeRegistry) -> None:
        with pytest.raises(NotFound, match=r"pull access denied for .*incorrect username or password"):
            await daemon.pull(f"{bearer.host}/a", credentials=WRONG)

    async def test_a_token_that_ends_in_between(self, daemon: Daemon, bearer: FakeRegistry) -> None:
        """The registry forgets its tokens while the manifest is read: another is asked for."""

        async def forget(seen: object, stream: object) -> None:
            del bearer.misdeeds["/v2/a/blobs"]
            bearer.tokens.clear()
            await says(401, WWW_Authenticate=f'Bearer realm="{bearer.realm}"')(seen, stream)  # type: ignore[arg-type]

        bearer.misdeeds["/v2/a/blobs"] = forget
        await daemon.pull(f"{bearer.host}/a", credentials=ANN)
        assert len(bearer.requests_to("/token")) >= 2

    @pytest.mark.parametrize(
        "realm",
        ["http://example.com/token", "http://127.0.0.2:1/token", "file:///etc/passwd", "//x", "https://u@x/"],
    )
    async def test_realms_that_get_nothing(self, daemon: Daemon, registry: FakeRegistry, realm: str) -> None:
        registry.realm = realm
        with pytest.raises(RegistryFailed, match=r"refusing to ask for a token|invalid token realm"):
            await daemon.pull(f"{registry.host}/a", credentials=ANN)
        assert secrets_seen(registry) == set()

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"token": "a b"}', b'{"token": "a\\r\\n"}'])
    async def test_answers_without_a_token(self, daemon: Daemon, bearer: FakeRegistry, body: bytes) -> None:
        bearer.misdeeds["/token"] = says(200, body)
        with pytest.raises(RegistryFailed, match="token"):
            await daemon.pull(f"{bearer.host}/a", credentials=ANN)

    async def test_a_token_server_that_sends_us_on(
        self, daemon: Daemon, bearer: FakeRegistry, elsewhere: FakeRegistry
    ) -> None:
        bearer.misdeeds["/token"] = says(307, Location=f"{elsewhere.url}/token")
        elsewhere.users["ann"] = "secret"
        for credentials in (ANN, Credentials(identity_token="refresh-ann")):
            with pytest.raises((RegistryFailed, NotFound)):
                await daemon.pull(f"{bearer.host}/a", credentials=credentials)
        assert secrets_seen(elsewhere) == set()


class TestElsewhere:
    @pytest.mark.parametrize("kind", ["basic", "bearer"])
    async def test_a_redirect_takes_no_credentials_along(
        self, daemon: Daemon, registry: FakeRegistry, elsewhere: FakeRegistry, kind: str
    ) -> None:
        """Blobs lie in another store, as with most clouds."""
        if kind == "bearer":
            registry.realm = f"{registry.url}/token"
        path = registry.blob_path("a", BLOB)
        registry.misdeeds[path] = says(307, Location=f"{elsewhere.url}{path}?signature=x%2Fy")
        elsewhere.blobs = registry.blobs
        await daemon.pull(f"{registry.host}/a", credentials=ANN)
        assert secrets_seen(elsewhere) == set()
        assert elsewhere.seen[0].target.endswith("?signature=x%2Fy"), "a signed address stays as it is"

    async def test_a_mirror_gets_no_credentials(self, harbour: Harbour, elsewhere: FakeRegistry) -> None:
        elsewhere.users["ann"] = "secret"
        elsewhere.add_image("library/a", "1", [LAYER])
        settings = RegistrySettings(mirrors=(elsewhere.url,), certs_dirs=())
        environment = {"HTTPS_PROXY": "http://localhost:1"}  # Docker Hub is out of reach, on any machine
        async with harbour.daemon(settings=settings, environment=environment) as daemon:
            with pytest.raises(RegistryFailed):
                await daemon.pull("a", credentials=ANN)
        assert elsewhere.seen
        assert secrets_seen(elsewhere) == set()

    async def test_no_way_from_tls_to_plain_http(self, harbour: Harbour, elsewhere: FakeRegistry) -> None:
        certificate, key = harbour.root / "server.crt", harbour.root / "server.key"
        make_certificate(certificate, key, name="registry.test")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        async with FakeRegistry().running(context) as registry, FakeRegistry().running() as proxy:
            proxy.misdeeds["registry.test:443"] = tunnel_to(registry.port)
            settings = RegistrySettings(insecure=("registry.test",), certs_dirs=())
            environment = {"HTTPS_PROXY": proxy.url}
            async with harbour.daemon(settings=settings, environment=environment) as daemon:
                for target, message in (
                    ("http://example.com/", "refusing a redirect from https"),
                    (f"https://{elsewhere.host}/", "refusing a redirect to"),
                    ("https://169.254.169.254/", "refusing a redirect to"),
                ):
                    registry.misdeeds["/v2/a"] = says(302, Location=target)
                    with pytest.raises(RegistryFailed, match=message):
                        await daemon.pull("registry.test/a", credentials=ANN)
        assert elsewhere.seen == []


class TestLogin:
    async def test_basic(self, daemon: Daemon, registry: FakeRegistry) -> None:
        ann = Credentials(username="ann", password="secret", server=registry.host)
        done = await daemon.registries.log_in(ann)
        assert (done.status, done.identity_token) == ("Login Succeeded", "")
        wrong = Credentials(username="ann", password="wrong", server=registry.url)
        with pytest.raises(Unauthenticated, match="failed with status: 401 Unauthorized"):
            await daemon.registries.log_in(wrong)

    async def test_bearer_gives_an_identity_token(self, daemon: Daemon, bearer: FakeRegistry) -> None:
        done = await daemon.registries.log_in(
            Credentials(username="ann", password="secret", server=bearer.host)
        )
        assert done.identity_token == "refresh-ann"
        assert bearer.requests_to("/token")[0].query["offline_token"] == ["true"]
        with pytest.raises(Unauthenticated, match="unauthorized: incorrect username or password"):
            await daemon.registries.log_in(Credentials(username="ann", password="wrong", server=bearer.host))
        again = await daemon.registries.log_in(Credentials(identity_token="refresh-ann", server=bearer.host))
        assert again.status == "Login Succeeded"

    async def test_nobody_there(self, daemon: Daemon) -> None:
        with pytest.raises(RegistryFailed, match="dial tcp localhost:1"):
            await daemon.registries.log_in(Credentials(username="a", password="b", server="localhost:1"))


async def test_search(daemon: Daemon, registry: FakeRegistry) -> None:
    found = [{"name": "box", "star_count": 3, "is_official": True}, {"name": "b2", "star_count": 1}]
    registry.misdeeds["/v1/search"] = says(200, json.dumps({"results": found}).encode())

    async def search(filters: dict[str, str], limit: int | None = None) -> list[str]:
        wanted = {name: (value,) for name, value in filters.items()}
        results = await daemon.registries.search(
            f"{registry.host}/box", limit=limit, filters=wanted, credentials=ANN
        )
        return [result.name for result in results]

    assert await search({}) == ["box", "b2"]
    assert registry.requests_to("/v1/search")[0].query == {"q": ["box"], "n": ["25"]}
    assert await search({"stars": "2"}) == ["box"]
    assert await search({"is-official": "false"}) == ["b2"]
    for wrong in ({"stars": "x"}, {"is-official": "maybe"}, {"colour": "red"}):
        with pytest.raises(InvalidParameter, match="filter"):
            await search(wrong)
    with pytest.raises(InvalidParameter, match="outside the range of"):
        await search({}, limit=101)
    registry.misdeeds["/v1/search"] = says(200, b"<html>")
    with pytest.raises(RegistryFailed, match="invalid answer to a search"):
        await search({})


async def test_distribution(daemon: Daemon, registry: FakeRegistry) -> None:
    found = await daemon.registries.inspect(f"{registry.host}/a:1", ANN)
    assert found.descriptor.size == len(registry.manifests["a", "1"][1])
    assert found.platforms[0][0] == "linux"
    with pytest.raises(NotFound, match="manifest unknown"):
        await daemon.registries.inspect(f"{registry.host}/a:2", ANN)

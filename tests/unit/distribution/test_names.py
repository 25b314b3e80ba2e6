# SPDX-License-Identifier: Apache-2.0
"""Endpoints, whose credentials go where, proxies, challenges."""

from __future__ import annotations

import pytest

from proa.distribution.challenge import parse_challenges
from proa.distribution.endpoints import (
    credentials_for,
    find_endpoints,
    is_internal,
    is_loopback,
    login_domain,
)
from proa.distribution.proxies import choose_proxy
from proa.distribution.registries import Registries
from proa.model.errors import InvalidParameter
from proa.model.registry import Credentials, RegistrySettings

pytestmark = pytest.mark.anyio

SETTINGS = RegistrySettings(
    mirrors=("https://mirror.example/", "http://127.0.0.1:5/"),
    insecure=("old.example:5000", "lab.example", "10.0.0.0/8"),
)


async def test_mirrors_are_asked_first_and_for_docker_hub_only() -> None:
    found = await find_endpoints("docker.io", SETTINGS)
    assert [(one.url, one.is_mirror, one.is_insecure) for one in found] == [
        ("https://mirror.example", True, False),
        ("http://127.0.0.1:5", True, True),
        ("https://registry-1.docker.io", False, False),
    ]
    assert [one.url for one in await find_endpoints("10.1.2.3", SETTINGS)] == ["https://10.1.2.3"]


@pytest.mark.parametrize(
    ("domain", "insecure"),
    [
        ("localhost:5000", True),
        ("127.9.9.9", True),
        ("[::1]:5000", True),
        ("old.example:5000", True),
        ("OLD.example:5000", True),
        ("lab.example:77", True),
        ("10.1.2.3:5000", True),
        ("11.1.2.3", False),
    ],
)
async def test_insecure(domain: str, insecure: bool) -> None:
    assert (await find_endpoints(domain, SETTINGS))[0].is_insecure is insecure


@pytest.mark.parametrize(
    ("server", "domain", "kept"),
    [
        ("", "r:5000", True),
        ("r:5000", "r:5000", True),
        ("https://r:5000/v2/", "r:5000", True),
        ("R:5000", "r:5000", True),
        ("https://index.docker.io/v1/", "docker.io", True),
        ("docker.io", "docker.io", True),
        ("https://index.docker.io/v1/", "r:5000", False),
        ("r", "r:5000", False),
        ("r:5000", "docker.io", False),
        ("r:5000.evil.example", "r:5000", False),
    ],
)
def test_credentials_stay_with_their_registry(server: str, domain: str, kept: bool) -> None:
    credentials = Credentials(username="ann", password="secret", server=server)
    assert bool(credentials_for(domain, credentials)) is kept


def test_secrets_are_not_shown() -> None:
    text = repr(Credentials(username="ann", password="se1", identity_token="se2", registry_token="se3"))
    assert "se" not in text.replace("server", "").replace("username", "")


def test_login_domains() -> None:
    servers = ["", "https://index.docker.io/v1/", "https://r:5/v2/", "r:5"]
    assert [login_domain(one) for one in servers] == ["docker.io", "docker.io", "r:5", "r:5"]


def test_this_machine() -> None:
    assert all(map(is_loopback, ["localhost", "a.localhost:3", "127.0.0.1", "[::1]:5", "0.0.0.0:5"]))
    assert not any(map(is_loopback, ["localhost.example", "10.0.0.1", "example"]))
    assert all(map(is_internal, ["169.254.169.254", "10.0.0.1:80", "[fe80::1]", "192.168.1.1"]))
    assert not any(map(is_internal, ["example.com", "8.8.8.8"]))


@pytest.mark.parametrize(
    ("url", "environment", "proxy"),
    [
        ("https://r/v2/", {}, None),
        ("https://r/v2/", {"HTTPS_PROXY": "http://p:3128"}, "http://p:3128"),
        ("https://r/v2/", {"https_proxy": "p:3128"}, "http://p:3128"),
        ("http://r/v2/", {"HTTPS_PROXY": "http://p:3128"}, None),
        ("https://localhost:5/", {"HTTPS_PROXY": "http://p:3128"}, None),
        ("https://r/v2/", {"HTTPS_PROXY": "http://p", "NO_PROXY": "*"}, None),
        ("https://r:5/v2/", {"HTTPS_PROXY": "http://p", "NO_PROXY": "x, r:5"}, None),
        ("https://a.r.org/", {"HTTPS_PROXY": "http://p", "no_proxy": "r.org"}, None),
        ("https://ar.org/", {"HTTPS_PROXY": "http://p", "no_proxy": "r.org"}, "http://p"),
        ("https://r.org/", {"HTTPS_PROXY": "http://p", "no_proxy": ".r.org"}, "http://p"),
        ("https://10.2.3.4/", {"HTTPS_PROXY": "http://p", "no_proxy": "10.0.0.0/8"}, None),
        ("https://11.2.3.4/", {"HTTPS_PROXY": "http://p", "no_proxy": "10.0.0.0/8"}, "http://p"),
    ],
)
def test_proxies(url: str, environment: dict[str, str], proxy: str | None) -> None:
    assert choose_proxy(url, environment) == proxy


def test_a_proxy_of_another_kind_is_named() -> None:
    with pytest.raises(InvalidParameter, match="HTTPS_PROXY must be"):
        choose_proxy("https://r/", {"HTTPS_PROXY": "socks5://p"})


def test_challenges() -> None:
    header = 'Bearer realm="https://auth/token",service="reg \\"x\\"",scope="repository:a:pull,push"'
    (bearer,) = parse_challenges([header])
    assert (bearer.scheme, bearer.parameters["service"]) == ("bearer", 'reg "x"')
    assert bearer.parameters["scope"] == "repository:a:pull,push"
    two = parse_challenges(['Basic realm="a", Bearer realm=b', "Negotiate"])
    assert [one.scheme for one in two] == ["basic", "bearer", "negotiate"]
    assert parse_challenges(["", "=,=", '"'])[:0] == []
    assert parse_challenges(["Basic " + "x" * 100_000]) is not None


def test_proxies_are_shown_without_passwords() -> None:
    environment = {"HTTP_PROXY": "http://user:secret@p:3128/", "https_proxy": "http://q", "NO_PROXY": "a,b"}
    shown = Registries(RegistrySettings(), environment=environment).proxies()
    assert shown == ["http://xxxxx:xxxxx@p:3128/", "http://q", "a,b"]


@pytest.mark.parametrize("server", ["[", "https://[::1", "a b", "x:port", "x:99999", "\x7f", "-", "u@host"])
async def test_what_is_no_host(server: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid registry endpoint"):
        await find_endpoints(login_domain(server), RegistrySettings())

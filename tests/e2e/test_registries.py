# SPDX-License-Identifier: Apache-2.0
"""Debian's docker-registry, with the docker command and with ours: login, push, pull, run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.registry import BINARY, Registry

pytestmark = pytest.mark.skipif(BINARY is None, reason="docker-registry is not installed")

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Plain HTTP, for everybody."""
    registry = Registry(tmp_path_factory.mktemp("plain"))
    registry.start()
    yield registry
    registry.stop()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """TLS, for Ann."""
    registry = Registry(tmp_path_factory.mktemp("locked"), is_tls=True, users={"ann": "secret"})
    registry.start()
    yield registry
    registry.stop()


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A docker configuration of the test's own."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    return tmp_path / "docker" / "config.json"


@pytest.fixture
def image(daemon: Daemon) -> Iterator[str]:
    """A path of this test's own; its images are removed afterwards."""
    path = f"t-{id(daemon):x}/box"
    yield path
    names = daemon.docker("images", "--format", "{{.Repository}}:{{.Tag}}").out.split()
    for name in names:
        if path in name:
            daemon.docker("rmi", "-f", name, check=False)


def clear(daemon: Daemon, *names: str) -> None:
    daemon.docker("rmi", "-f", *names)


def test_push_pull_and_run(daemon: Daemon, plain: Registry, image: str) -> None:
    name = f"{plain.host}/{image}:1"
    daemon.docker("tag", "busybox", name)
    pushed = daemon.docker("push", name).out
    assert f"The push refers to repository [{plain.host}/{image}]" in pushed
    assert ": Pushed\n" in pushed
    (digest,) = set(DIGEST.findall(pushed))
    assert "Layer already exists" in daemon.docker("push", name).out
    other = f"{plain.host}/{image}2:1"
    daemon.docker("tag", name, other)
    assert f"Mounted from {image}" in daemon.docker("push", other).out
    clear(daemon, name, other)
    ran = daemon.docker("run", "--rm", name, "echo", "hello")
    assert ran.out == "hello\n"
    assert f"Unable to find image '{name}' locally" in ran.err
    assert f"Status: Downloaded newer image for {name}" in ran.err
    assert f"Image is up to date for {name}" in daemon.docker("pull", name).out
    inspected = json.loads(daemon.docker("inspect", name).out)[0]
    assert f"{plain.host}/{image}@{digest}" in inspected["RepoDigests"]
    assert digest in daemon.docker("push", name).out, "the digest survives"
    by_digest = f"{plain.host}/{image}@{digest}"
    assert f"Digest: {digest}" in daemon.docker("pull", by_digest).out
    assert daemon.docker("run", "--rm", by_digest, "echo", "again").out == "again\n"
    assert json.loads(daemon.docker("manifest", "inspect", "--insecure", name).out)["schemaVersion"] == 2


def test_a_new_image_is_packed_and_comes_back(daemon: Daemon, plain: Registry, image: str) -> None:
    """An import has neither a manifest nor a packed layer; a second push finds what the first has packed."""
    name = f"{plain.host}/{image}:new"
    exported = daemon.base / "root.tar"
    daemon.docker("save", "-o", str(exported), "busybox")
    daemon.docker("import", str(exported), name)
    first = daemon.docker("push", name).out
    assert ": Pushed\n" in first
    assert "Layer already exists" in daemon.docker("push", name).out
    before = json.loads(daemon.docker("inspect", name).out)[0]["RootFS"]
    clear(daemon, name)
    assert DIGEST.findall(daemon.docker("pull", name).out) == DIGEST.findall(first)
    assert json.loads(daemon.docker("inspect", name).out)[0]["RootFS"] == before


def test_a_digest_survives_although_the_blobs_differ(
    daemon: Daemon, plain: Registry, locked: Registry, image: str
) -> None:
    """The image is here uncompressed; the registry's manifest speaks of packed layers."""
    name, second = f"{plain.host}/{image}:x", f"{plain.host}/{image}2:x"
    archive = daemon.base / "x.tar"
    daemon.docker("save", "-o", str(archive), "busybox")
    daemon.docker("import", str(archive), name)
    (digest,) = set(DIGEST.findall(daemon.docker("push", name).out))
    daemon.docker("pull", name)
    daemon.docker("tag", name, second)
    pushed = daemon.docker("push", second).out
    assert "Mounted from" in pushed
    assert digest in pushed
    elsewhere = f"{locked.host}/{image}:x"
    daemon.docker("tag", name, elsewhere)
    daemon.docker("login", "-u", "ann", "--password-stdin", locked.host, stdin="secret")
    assert ": Pushed" in daemon.docker("push", elsewhere).out


def test_users(daemon: Daemon, locked: Registry, image: str, config: Path) -> None:
    name = f"{locked.host}/{image}:1"
    daemon.docker("tag", "busybox", name)
    anonymous = daemon.docker("push", name, check=False)
    assert (anonymous.status, "no basic auth credentials" in anonymous.err) == (1, True)
    wrong = daemon.docker("login", "-u", "ann", "--password-stdin", locked.host, stdin="no", check=False)
    assert (wrong.status, "401 Unauthorized" in wrong.err) == (1, True)
    assert (
        "Login Succeeded"
        in daemon.docker("login", "-u", "ann", "--password-stdin", locked.host, stdin="secret").out
    )
    assert ": Pushed" in daemon.docker("push", name).out
    clear(daemon, name)
    assert daemon.proa("run", "--rm", name, "echo", "hi").out == "hi\n", "one login serves both commands"
    unknown = daemon.docker("pull", f"{locked.host}/{image}:2", check=False)
    assert "not found: manifest unknown" in unknown.err
    assert daemon.proa("logout", locked.host).out == f"Removing login credentials for {locked.host}\n"
    assert daemon.docker("pull", name, check=False).status == 1
    assert json.loads(config.read_text())["auths"] == {}


def test_our_own_command(daemon: Daemon, locked: Registry, image: str) -> None:
    name = f"{locked.host}/{image}"
    daemon.proa("login", "-u", "ann", "--password-stdin", locked.host, stdin="secret\n")
    daemon.proa("tag", "busybox", name)
    assert "Using default tag: latest" in daemon.proa("push", name).out
    clear(daemon, name)
    never = daemon.proa("run", "--rm", "--pull", "never", name, "true", check=False)
    assert (never.status, f"No such image: {name}:latest" in never.err) == (125, True)
    assert daemon.proa("pull", "-q", name).out == f"{name}:latest\n"
    always = daemon.proa("run", "--rm", "--pull", "always", name, "echo", "x")
    assert (always.out, f"Image is up to date for {name}:latest" in always.err) == ("x\n", True)


def test_what_is_not_there(daemon: Daemon, plain: Registry, image: str) -> None:
    name = f"{plain.host}/{image}:none"
    pulled = daemon.docker("pull", name, check=False)
    assert (pulled.status, pulled.err) == (
        1,
        f"Error response from daemon: manifest for {name} not found: manifest unknown: manifest unknown\n",
    )
    pushed = daemon.docker("push", name, check=False)
    assert pushed.status == 1
    assert f"An image does not exist locally with the tag: {plain.host}/{image}" in pushed.err
    nobody = daemon.docker("pull", "localhost:1/x", check=False)
    assert 'Get "https://localhost:1/v2/": dial tcp localhost:1:' in nobody.err


def test_info(daemon: Daemon) -> None:
    registries = json.loads(daemon.docker("info", "--format", "{{json .RegistryConfig}}").out)
    assert registries["InsecureRegistryCIDRs"] == ["::1/128", "127.0.0.0/8"]
    assert "Insecure Registries: ::1/128 127.0.0.0/8" in daemon.proa("info").out

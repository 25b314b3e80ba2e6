# SPDX-License-Identifier: Apache-2.0
"""Login, logout, pull, push, search: the calls, the configuration file, the credential programs."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest

from proa.cli import credentials
from proa.wire.registries import AuthConfig, decode_auth
from tests.support.canned_daemon import CannedDaemon, reply
from tests.unit.cli.conftest import Proa, sent

LOGGED_IN = reply(200, b'{"Status": "Login Succeeded", "IdentityToken": ""}')
HELPER = """#!/bin/sh
# Keeps what it is told in a file, and logs what it is asked.
echo "$1" >>"$HOME/asked"
case $1 in
get) read key; cat "$HOME/kept" && exit; echo "credentials not found in native keychain"; exit 1 ;;
store) cat >"$HOME/kept" ;;
erase) rm -f "$HOME/kept" ;;
esac
"""


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "docker" / "config.json"


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A credential program called ``box``."""
    directory = tmp_path / "bin"
    directory.mkdir()
    program = directory / "docker-credential-box"
    program.write_text(HELPER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    return tmp_path / "kept"


def write(path: Path, document: Any) -> None:  # Any: JSON
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document))


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def auth_sent(daemon: CannedDaemon) -> AuthConfig:
    header = {name.lower(): value for name, value in daemon.requests[-1].headers.items()}.get(
        "x-registry-auth", ""
    )
    return decode_auth(header)


def progress(*messages: dict[str, object]) -> bytes:
    return reply(200, b"".join(json.dumps(message).encode() + b"\r\n" for message in messages))


class TestLogin:
    def test_keeps_what_else_is_in_the_file(
        self, proa: Proa, daemon: CannedDaemon, config: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(config, {"detachKeys": "ctrl-a", "auths": {"https://r:5000/v2/": {"auth": encoded("old:one")}}})
        daemon.answers["POST /auth"] = LOGGED_IN
        ended = proa("login", "-u", "ann", "-p", "se:cret", "R:5000")
        assert (ended.status, ended.out) == (0, "Login Succeeded\n")
        assert "stored unencrypted" in ended.err
        assert sent(daemon, "/auth") == {"username": "ann", "password": "se:cret", "serveraddress": "r:5000"}
        assert json.loads(config.read_text()) == {
            "detachKeys": "ctrl-a",
            "auths": {"r:5000": {"auth": encoded("ann:se:cret")}},
        }
        assert config.stat().st_mode & 0o777 == 0o600

    def test_an_identity_token_replaces_the_password(
        self, proa: Proa, daemon: CannedDaemon, config: Path
    ) -> None:
        daemon.answers["POST /auth"] = reply(200, b'{"Status": "Login Succeeded", "IdentityToken": "tok"}')
        assert proa("login", "-u", "ann", "-p", "secret").status == 0
        entry = json.loads(config.read_text())["auths"]["https://index.docker.io/v1/"]
        assert entry == {"auth": encoded("ann:"), "identitytoken": "tok"}
        assert credentials.find("https://index.docker.io/v1/") == AuthConfig(
            username="ann", identitytoken="tok", serveraddress="https://index.docker.io/v1/"
        )

    def test_a_refusal_changes_nothing(self, proa: Proa, daemon: CannedDaemon, config: Path) -> None:
        daemon.answers["POST /auth"] = reply(401, b'{"message": "unauthorized"}')
        ended = proa("login", "-u", "ann", "-p", "wrong", "r:5000")
        assert (ended.status, ended.out) == (1, "")
        assert "Error response from daemon: unauthorized" in ended.err
        assert not config.exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["-p", "x", "--password-stdin", "r"], "mutually exclusive"),
            (["--password-stdin", "r"], "Must provide --username"),
            (["r"], "Cannot perform an interactive login from a non TTY device"),
        ],
    )
    def test_wrong_use(
        self, proa: Proa, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO())
        ended = proa("login", *arguments)
        assert ended.status == 1
        assert message in ended.err

    def test_a_program_keeps_them(self, proa: Proa, daemon: CannedDaemon, config: Path, helper: Path) -> None:
        write(config, {"credsStore": "nowhere", "credHelpers": {"r:5000": "box"}})
        daemon.answers["POST /auth"] = LOGGED_IN
        assert proa("login", "-u", "ann", "-p", "secret", "r:5000").status == 0
        assert json.loads(helper.read_text()) == {
            "ServerURL": "r:5000",
            "Username": "ann",
            "Secret": "secret",
        }
        assert json.loads(config.read_text())["auths"] == {"r:5000": {}}
        assert credentials.find("r:5000") == AuthConfig(
            username="ann", password="secret", serveraddress="r:5000"
        )
        assert proa("logout", "r:5000").out == "Removing login credentials for r:5000\n"
        assert credentials.find("r:5000") is None

    def test_a_program_that_is_missing_is_named(self, proa: Proa, config: Path) -> None:
        write(config, {"credsStore": "nowhere"})
        ended = proa("pull", "alpine")
        assert (ended.status, "docker-credential-nowhere is not installed" in ended.err) == (1, True)
        write(config, {"credsStore": "../box"})
        assert "the name of a credential helper is wrong" in proa("pull", "alpine").err

    def test_a_broken_file_is_named(self, proa: Proa, config: Path) -> None:
        config.parent.mkdir()
        config.write_text("{")
        assert f"cannot read {config}" in proa("pull", "alpine").err
        write(config, {"auths": {"r:1": {"auth": "%"}}})
        assert "auth is not base64" in proa("pull", "r:1/a").err


class TestPullAndPush:
    def test_credentials_go_to_their_registry_only(
        self, proa: Proa, daemon: CannedDaemon, config: Path
    ) -> None:
        write(config, {"auths": {"r:5000": {"auth": encoded("ann:secret")}}})
        daemon.answers["POST /images/create"] = progress({"status": "Status: done"})
        assert proa("pull", "r:5000/a/b").status == 0
        assert auth_sent(daemon) == AuthConfig(username="ann", password="secret", serveraddress="r:5000")
        assert "fromImage=r%3A5000%2Fa%2Fb&tag=latest" in daemon.requests[-1].target
        for other in ("r/a", "alpine", "r:5001/a"):
            assert proa("pull", other).status == 0
            assert auth_sent(daemon) == AuthConfig()

    def test_lines(self, proa: Proa, daemon: CannedDaemon) -> None:
        daemon.answers["POST /images/create"] = progress(
            {"status": "Pulling from library/alpine", "id": "latest"},
            {"status": "Pulling fs layer", "progressDetail": {}, "id": "abc"},
            {"status": "Downloading", "progressDetail": {"current": 1, "total": 2}, "id": "abc"},
            {"status": "Status: Downloaded newer image for alpine:latest"},
        )
        assert proa("pull", "alpine").out.splitlines() == [
            "Using default tag: latest",
            "latest: Pulling from library/alpine",
            "abc: Pulling fs layer",
            "Status: Downloaded newer image for alpine:latest",
            "docker.io/library/alpine:latest",
        ]
        assert proa("pull", "-q", "alpine").out == "docker.io/library/alpine:latest\n"

    def test_bars_on_a_terminal(
        self, proa: Proa, daemon: CannedDaemon, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        daemon.answers["POST /images/create"] = progress(
            {"status": "Pulling from [a]", "id": "1"},
            {"status": "Pulling fs layer", "progressDetail": {}, "id": "abc"},
            {"status": "Downloading", "progressDetail": {"current": 1, "total": 2}, "id": "abc"},
            {"status": "Pull complete", "progressDetail": {}, "id": "abc"},
            {"status": "Status: " + "x" * 300},
        )
        out = proa("pull", "r:1/a:1").out
        assert "1: Pulling from [a]" in out
        assert "abc: Pull complete" in out
        assert "x" * 300 in out, "what is told is not wrapped"

    def test_an_error_in_the_stream(self, proa: Proa, daemon: CannedDaemon) -> None:
        message: dict[str, object] = {"error": "unexpected EOF", "errorDetail": {"message": "unexpected EOF"}}
        daemon.answers["POST /images/create"] = progress({"status": "a"}, message)
        ended = proa("pull", "alpine:3")
        assert (ended.status, ended.err) == (1, "Error response from daemon: unexpected EOF\n")

    def test_a_digest_stays_whole(self, proa: Proa, daemon: CannedDaemon) -> None:
        daemon.answers["POST /images/create"] = progress({"status": "a"})
        digest = "sha256:" + "ab" * 32
        assert proa("pull", f"alpine@{digest}").out.endswith(f"docker.io/library/alpine@{digest}\n")
        assert daemon.requests[-1].target.endswith(f"fromImage=alpine%40sha256%3A{'ab' * 32}")

    def test_push(self, proa: Proa, daemon: CannedDaemon) -> None:
        daemon.answers["POST /images/r:5000/a/push"] = progress(
            {"status": "Pushed", "progressDetail": {}, "id": "abc"},
            {"progressDetail": {}, "aux": {"Tag": "1", "Digest": "sha256:1", "Size": 3}},
        )
        assert proa("push", "r:5000/a:1").out == "abc: Pushed\n"
        assert daemon.requests[-1].target.endswith("/images/r:5000/a/push?tag=1")
        assert proa("push", "-a", "r:5000/a").status == 0
        assert daemon.requests[-1].target.endswith("/push")

    def test_search(self, proa: Proa, daemon: CannedDaemon) -> None:
        found = [{"name": "box", "description": "x" * 60, "star_count": 7, "is_official": True}]
        daemon.answers["GET /images/search"] = reply(200, json.dumps(found).encode())
        out = proa("search", "box").out
        assert out.split()[:4] == ["NAME", "DESCRIPTION", "STARS", "OFFICIAL"]
        assert out.split()[4:] == ["box", "x" * 44 + "…", "7", "[OK]"]

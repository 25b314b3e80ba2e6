# SPDX-License-Identifier: Apache-2.0
"""Git repositories in builds: as a source of ADD, and as a context."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import PROA, Daemon, Result
from tests.support.git_server import GitServer, commit, git


@pytest.fixture
def tag(daemon: Daemon) -> Iterator[str]:
    tag = f"g-{uuid.uuid4().hex[:12]}"
    yield tag
    daemon.docker("rmi", "-f", tag, check=False)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    (tmp_path / "served").mkdir()
    with GitServer(tmp_path / "served") as server:
        yield server


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A repository: one file, a program, a link, a directory; a tag on its first commit."""
    source = tmp_path / "source"
    commit(
        source, {"f": "one\n", "dir/inner": "deep\n", "run.sh": "#!/bin/sh\n", ".gitattributes": "f text\n"}
    )
    (source / "run.sh").chmod(0o755)
    (source / "link").symlink_to("f")
    (source / "out").symlink_to("/etc")
    commit(source, {})
    git(source, "tag", "-a", "-m", "t", "v1")
    commit(source, {"f": "two\n"})
    return source


def build(daemon: Daemon, tag: str, tmp_path: Path, text: str, *options: str, check: bool = True) -> Result:
    directory = tmp_path / "context"
    directory.mkdir(exist_ok=True)
    (directory / "Dockerfile").write_text(text)
    return daemon.proa("build", "-t", tag, *options, str(directory), check=check)


def run(daemon: Daemon, tag: str, command: str) -> str:
    return daemon.docker("run", "--rm", "--network", "none", tag, "sh", "-c", command).out


def test_add(daemon: Daemon, server: GitServer, source: Path, tag: str, tmp_path: Path) -> None:
    url = server.publish(source, "r.git")
    first = git(source, "rev-parse", "v1^{commit}")
    text = (
        f"FROM busybox\nADD {url} /all\nADD {url}#v1 /tag\nADD {url}#{first}:dir /part/\n"
        f"ADD --keep-git-dir=true --chown=7:8 {url}#main /kept\nADD --checksum={first} {url}#v1 /sum\n"
    )
    build(daemon, tag, tmp_path, text)
    names = "cat /all/f /tag/f /part/inner /sum/f; ls -A /all; ls -d /kept/.git; "
    owners = "stat -c '%u:%g %a' /all/f /all/run.sh /kept/f; readlink /all/link; readlink /all/out"
    out = run(daemon, tag, names + owners)
    assert out.split() == [
        *("two", "one", "deep", "one", ".gitattributes", "dir", "f", "link", "out", "run.sh"),
        *("/kept/.git", "0:0", "644", "0:0", "755", "7:8", "644", "f", "/etc"),
    ]
    server.asked.clear()
    build(daemon, tag, tmp_path, text)
    assert len(server.asked) <= 2 * 4, "names are looked up, and nothing is fetched"
    commit(source, {"f": "three\n"})
    server.publish(source, "r.git")
    build(daemon, tag, tmp_path, text)
    assert run(daemon, tag, "cat /all/f /tag/f").split() == ["three", "one"], "a branch moves, a tag does not"


def test_submodules_and_dumb_servers(
    daemon: Daemon, server: GitServer, source: Path, tag: str, tmp_path: Path
) -> None:
    url = server.publish(source, "r.git")
    outer = tmp_path / "outer"
    commit(outer, {"o": "outer\n"})
    git(outer, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", url, "sub")
    commit(outer, {})
    outer_url = server.publish(outer, "outer.git")
    text = f"FROM busybox\nADD {outer_url} /o\n"
    build(daemon, tag, tmp_path, text)
    assert run(daemon, tag, "cat /o/o /o/sub/f; find /o -name .git").split() == ["outer", "two"]
    server.is_dumb = True
    build(daemon, tag, tmp_path, text, "--no-cache")
    assert run(daemon, tag, "cat /o/o /o/sub/f; find /o -name .git").split() == ["outer", "two"]


def test_contexts(daemon: Daemon, server: GitServer, source: Path, tag: str) -> None:
    commit(source, {"dir/Dockerfile": "FROM busybox\nCOPY . /c\n", "dir/.dockerignore": "Dockerfile\n"})
    url = server.publish(source, "r.git")
    daemon.proa("build", "-t", tag, f"{url}#main:dir")
    assert run(daemon, tag, "ls -A /c").split() == [".dockerignore", "inner"]
    os.environ["DOCKER_BUILDKIT"] = "0"
    daemon.docker("build", "-t", tag, f"{url}#main:dir")
    lost = daemon.proa("build", "-t", tag, url, check=False)
    assert lost.status == 1
    assert "Cannot locate specified Dockerfile: Dockerfile" in lost.err


def test_private_repositories(
    daemon: Daemon, server: GitServer, source: Path, tag: str, tmp_path: Path
) -> None:
    url = server.publish(source, "r.git")
    server.token = "basic " + base64.b64encode(b"x-access-token:s3cret").decode()
    text = f"FROM busybox\nADD {url} /all\n"
    refused = build(daemon, tag, tmp_path, text, check=False)
    assert refused.status == 1
    assert "failed to fetch remote" in refused.err
    (tmp_path / "token").write_text("s3cret\n")
    build(daemon, tag, tmp_path, text, "--secret", f"id=GIT_AUTH_TOKEN,src={tmp_path}/token")
    assert "s3cret" not in json.dumps(daemon.docker("history", "--no-trunc", tag).out)


@pytest.mark.parametrize(
    ("source_text", "message"),
    [
        ("{url}#nosuch", "repository does not contain ref nosuch"),
        ("{url}#main:nosuch", "no such directory in the repository: nosuch"),
        ("{url}#main:out", "no such directory in the repository: out"),
        ("{url}#main:../x", "invalid git subdirectory"),
        ("{url}#--upload-pack=x", "invalid git ref"),
        ("{url}#" + "0" * 40, "failed to fetch remote"),
        ("--checksum=0123 {url}#main", "expected checksum to match 0123, got "),
        ("{base}/nosuch.git", "failed to fetch remote"),
        ("{url} f", "takes no other source beside it"),
        ("ssh://-oProxyCommand=x/r.git", "invalid git address"),
        ("file:///etc/r.git", "file:"),
        ("ext::sh", "ext::sh"),
        ("http://127.0.0.1:1/r.git", "failed to fetch remote"),
        ("ssh://git@127.0.0.1:1/r.git", "Connection refused"),
        ("git@127.0.0.1:r.git", "Connection refused"),
    ],
)
def test_refusals(
    daemon: Daemon, server: GitServer, source: Path, tag: str, tmp_path: Path, source_text: str, message: str
) -> None:
    url = server.publish(source, "r.git")
    words = source_text.format(url=url, base=server.url)
    done = build(daemon, tag, tmp_path, f"FROM busybox\nADD {words} /x/\n", check=False)
    assert done.status == 1
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_hostile_repository(
    daemon: Daemon, server: GitServer, source: Path, tag: str, tmp_path: Path
) -> None:
    secret = tmp_path / "local.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(source), str(secret))
    commit(
        source,
        {".gitmodules": f'[submodule "s"]\n\tpath = s\n\turl = file://{secret}\n\tupdate = !touch /work/x\n'},
    )
    git(source, "update-index", "--add", "--cacheinfo", f"160000,{git(source, 'rev-parse', 'HEAD')},s")
    git(source, "commit", "--quiet", "-m", "module")
    url = server.publish(source, "evil.git")
    done = build(daemon, tag, tmp_path, f"FROM busybox\nADD {url} /x\n", check=False)
    assert done.status == 1
    assert "failed to fetch remote" in done.err


def test_a_build_that_is_called_off_leaves_nothing(
    daemon: Daemon, server: GitServer, tag: str, tmp_path: Path
) -> None:
    """Its server never answers; git, its helpers and the place where they worked go with the client."""
    server.holds = True
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(f"FROM busybox\nADD {server.url}/r.git /x\n")
    command = [str(PROA), "--host", daemon.host, "build", "-t", tag, str(context)]
    client = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert server.is_asked.wait(30)
    scratch = daemon.data_root / "build" / "scratch"
    assert list(scratch.iterdir())
    client.send_signal(signal.SIGINT)
    client.wait(30)
    deadline = time.monotonic() + 30
    while list(scratch.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list(scratch.iterdir())
    assert not any("git-remote" in text for text in command_lines())


def command_lines() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_text()

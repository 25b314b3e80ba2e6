# SPDX-License-Identifier: Apache-2.0
"""``proa build --build-context``: what stands in place of images and stages."""

from __future__ import annotations

import io
import json
import tarfile
import threading
import uuid
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, Result
from tests.support.git_server import GitServer, commit


@pytest.fixture
def tag(daemon: Daemon) -> Iterator[str]:
    tag = f"c-{uuid.uuid4().hex[:12]}"
    yield tag
    daemon.docker("rmi", "-f", tag, check=False)


def build(daemon: Daemon, tag: str, tmp_path: Path, text: str, *options: str, check: bool = True) -> Result:
    directory = tmp_path / "context"
    directory.mkdir(exist_ok=True)
    (directory / "Dockerfile").write_text(text)
    (directory / "own").write_text("own\n")
    return daemon.proa("build", "-t", tag, *options, str(directory), check=check)


def run(daemon: Daemon, tag: str, command: str) -> str:
    return daemon.docker("run", "--rm", "--network", "none", tag, "sh", "-c", command).out


def test_directories(daemon: Daemon, tag: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(f"{name}\n")
    (tmp_path / "two" / "left-out").write_text("")
    (tmp_path / "two" / ".dockerignore").write_text("left-out\n")
    text = (
        "FROM busybox AS over\nRUN false\nFROM busybox\nCOPY --from=ONE . /one\nCOPY --from=over . /two\n"
        "RUN --mount=from=one,target=/m,rw cat /m/f > /seen && touch /m/x\nCOPY . /own\n"
    )
    options = ["--build-context", f"one={tmp_path}/one", "--build-context", f"over={tmp_path}/two"]
    build(daemon, tag, tmp_path, text, *options)
    out = run(daemon, tag, "cat /one/f /two/f /seen /own/own; ls -A /two /own; stat -c %u /one/f")
    assert out.split() == [
        *("one", "two", "one", "own", "/own:", "Dockerfile", "own", "/two:", ".dockerignore", "f", "0")
    ]
    (tmp_path / "one" / "f").write_text("changed\n")
    build(daemon, tag, tmp_path, text, *options)
    assert run(daemon, tag, "cat /one/f /seen").split() == ["changed", "changed"], "it is in the key"
    base = build(daemon, tag, tmp_path, "FROM one\nRUN true\n", *options, check=False)
    assert base.status == 1
    assert "one is a named context of files" in base.err


def test_images_and_stages(daemon: Daemon, tag: str, tmp_path: Path) -> None:
    text = (
        "FROM busybox AS first\nRUN echo first > /f\nFROM nosuch.invalid/x:1 AS base\nRUN echo base > /b\n"
        "FROM base\nCOPY --from=other /f /f\n"
    )
    options = ["--build-context", "nosuch.invalid/x:1=docker-image://busybox"]
    build(daemon, tag, tmp_path, text, *options, "--build-context", "other=target:first")
    assert run(daemon, tag, "cat /f /b").split() == ["first", "base"]
    lost = build(daemon, tag, tmp_path, text, *options, "--build-context", "other=target:none", check=False)
    assert "context other: there is no stage none above" in lost.err
    same = "docker.io/library/busybox=docker-image://busybox:latest"
    build(daemon, tag, tmp_path, "FROM busybox:latest\nRUN true\n", "--build-context", same)


def test_addresses(daemon: Daemon, tag: str, tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        info = tarfile.TarInfo("d/f")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"far\n"))
    (served / "a.tar").write_bytes(archive.getvalue())
    (served / "text").write_text("no archive")
    commit(tmp_path / "source", {"sub/g": "git\n"})
    handler = partial(SimpleHTTPRequestHandler, directory=str(served))
    with GitServer(served) as git, ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        repository = git.publish(tmp_path / "source", "r.git")
        text = "FROM busybox\nCOPY --from=tar d/f /f\nCOPY --from=repo . /r\n"
        options = ["--build-context", f"tar={url}/a.tar", "--build-context", f"repo={repository}#:sub"]
        build(daemon, tag, tmp_path, text, *options)
        wrong = build(
            daemon, tag, tmp_path, text, *options[2:], "--build-context", f"tar={url}/text", check=False
        )
        server.shutdown()
    assert run(daemon, tag, "cat /f /r/g").split() == ["far", "git"]
    assert "is no archive" in wrong.err


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x", "invalid context value: x, expected key=value"),
        ("x=/proc/nosuch", 'path "/proc/nosuch" not found'),
        ("x=docker-image://A B", "invalid reference format"),
        ("x=oci-layout://d", 'path "oci-layout://d" not found'),
    ],
)
def test_refusals(daemon: Daemon, tag: str, tmp_path: Path, value: str, message: str) -> None:
    done = build(daemon, tag, tmp_path, "FROM busybox\n", "--build-context", value, check=False)
    assert done.status == 1
    assert message in done.err


def test_entitlements(daemon: Daemon, tag: str, tmp_path: Path) -> None:
    caps = "grep CapEff /proc/self/status"
    text = f"FROM busybox\nRUN {caps} > /one\nRUN {{flag}} {caps} > /two\n"
    for flag, word in (("--security=insecure", "security.insecure"), ("--network=host", "network.host")):
        refused = build(daemon, tag, tmp_path, text.format(flag=flag), check=False)
        assert refused.status == 1
        assert word in refused.err
    build(daemon, tag, tmp_path, text.format(flag="--security=insecure"), "--allow", "security.insecure")
    ordinary, more = run(daemon, tag, "cat /one /two").splitlines()
    assert int(more.split()[1], 16) > int(ordinary.split()[1], 16)
    again = build(daemon, tag, tmp_path, text.format(flag="--security=insecure"), check=False)
    assert again.status == 1, "also when it is in the cache"
    build(daemon, tag, tmp_path, text.format(flag="--network=host"), "--allow", "network.host")
    wrong = build(daemon, tag, tmp_path, text, "--allow", "everything", check=False)
    assert "unknown entitlement everything" in wrong.err


def test_caches_begin_with_a_tree(daemon: Daemon, tag: str, tmp_path: Path) -> None:
    text = (
        "FROM busybox AS seed\nRUN mkdir -p /s/d && echo {seed} > /s/d/f "
        "&& chown 7:8 /s/d/f && ln -s /etc/passwd /s/l\n"
        "FROM busybox\nRUN --mount=type=cache,id={tag},target=/c,from=seed,source={source} "
        "cat /c/d/f > /out; stat -c %u:%g /c/d/f >> /out; readlink /c/l >> /out; echo more >> /c/d/f\n"
    )
    build(daemon, tag, tmp_path, text.format(seed="one", tag=tag, source="/s"))
    assert run(daemon, tag, "cat /out").split() == ["one", "7:8", "/etc/passwd"]
    build(daemon, tag, tmp_path, text.format(seed="one", tag=tag, source="/s") + "RUN true\n", "--no-cache")
    build(daemon, tag, tmp_path, text.format(seed="two", tag=tag, source="s"))
    assert run(daemon, tag, "cat /out").split() == ["two", "7:8", "/etc/passwd"]
    told = tmp_path / "metadata"
    done = build(daemon, tag, tmp_path, "FROM busybox\n", "--progress=quiet", "--metadata-file", str(told))
    assert json.loads(told.read_text()) == {
        "containerimage.config.digest": done.out.strip(),
        "image.name": tag,
    }
    for source, message in (("/nosuch", "not found"), ("/s/d/f", "not a directory")):
        lost = build(daemon, tag, tmp_path, text.format(seed="one", tag=tag, source=source), check=False)
        assert lost.status == 1
        assert f"mount source {source}: {message}" in lost.err


def test_files_are_written_out(daemon: Daemon, tag: str, tmp_path: Path) -> None:
    text = "FROM busybox AS make\nRUN mkdir /o && echo made > /o/f\nFROM scratch\nCOPY --from=make /o /d\n"
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "Dockerfile").write_text(text)
    arguments = ("build", "--progress=quiet", str(tmp_path / "context"), "-o")
    before = daemon.docker("ps", "-aq").out, daemon.docker("images", "-aq").out
    daemon.proa(*arguments, str(tmp_path / "out"))
    assert (tmp_path / "out" / "d" / "f").read_text() == "made\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["d"]
    daemon.proa(*arguments, f"type=tar,dest={tmp_path}/out.tar")
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert tar.getnames() == ["d", "d/f"]
    assert (daemon.docker("ps", "-aq").out, daemon.docker("images", "-aq").out) == before
    daemon.proa(*arguments, f"type=local,dest={tmp_path}/again", "-t", tag)
    assert daemon.docker("images", "-q", tag).out, "what has a name stays"
    for value, message in (
        ("type=oci,dest=x", "type=oci is not supported"),
        ("type=local", "dest is required"),
    ):
        wrong = daemon.proa(*arguments, value, check=False)
        assert wrong.status == 1
        assert message in wrong.err

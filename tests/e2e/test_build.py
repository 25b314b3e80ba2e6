# SPDX-License-Identifier: Apache-2.0
"""``docker build`` and ``proa build``: what people write in Dockerfiles, on busybox."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon, Result
from tests.support.host_state import count_host_state
from tests.support.registry import BINARY, Registry

Build = Callable[..., Result]
RANDOM = "cat /proc/sys/kernel/random/uuid"


@pytest.fixture
def tag(daemon: Daemon) -> Iterator[str]:
    """An image name that is taken away after the test."""
    tag = f"b-{uuid.uuid4().hex[:12]}"
    yield tag
    daemon.docker("rmi", "-f", tag, check=False)


@pytest.fixture
def build(daemon: Daemon, tag: str, tmp_path: Path) -> Build:
    """Build a Dockerfile with these files (by name: text, or a mode and text) by the docker CLI's own
    builder, or with ours."""
    os.environ["DOCKER_BUILDKIT"] = "0"

    def run(
        dockerfile: str,
        *options: str,
        files: Mapping[str, str | bytes] | None = None,
        check: bool = True,
        ours: bool = False,
    ) -> Result:
        (tmp_path / "Dockerfile").write_text(dockerfile)
        for name, content in (files or {}).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        command = daemon.proa if ours else daemon.docker
        return command("build", "-t", tag, *options, str(tmp_path), check=check)

    return run


def run(daemon: Daemon, tag: str, command: str) -> str:
    return daemon.docker("run", "--rm", "--network", "none", tag, "sh", "-c", command).out


def config(daemon: Daemon, tag: str) -> dict[str, Any]:  # Any: JSON
    document = json.loads(daemon.docker("image", "inspect", tag).out)
    found: dict[str, Any] = document[0]["Config"]
    return found


def test_an_ordinary_image(daemon: Daemon, build: Build, tag: str) -> None:
    done = build(
        'ARG BASE=busybox\nFROM $BASE\nARG WHO=you\nENV GREETING="hello $WHO" X=1\nWORKDIR /app\nCOPY . .\n'
        "RUN echo $GREETING > out && cat out\nEXPOSE 80 53/udp\nUSER 1000:1000\nSTOPSIGNAL SIGINT\n"
        'VOLUME ["/data"]\nLABEL a="b c"\nHEALTHCHECK --interval=5s CMD true\nENTRYPOINT ["cat"]\n'
        'CMD ["out"]\n',
        "--build-arg", "WHO=me", "--label", "extra=1", "--build-arg", "NOBODY=x",
        files={"a": "A", "sub/b": "B", ".dockerignore": "*.log\n!keep.log\n", "x.log": "", "keep.log": ""},
    )  # fmt: skip
    assert "Step 7/16 : RUN echo $GREETING > out && cat out\n ---> Running in " in done.out
    assert "\nhello me\n" in done.out
    assert "\nRemoving intermediate container " in done.out
    assert "[Warning] One or more build-args [NOBODY] were not consumed" in done.out
    assert done.out.splitlines()[-1] == f"Successfully tagged {tag}:latest"
    assert daemon.docker("run", "--rm", tag).out == "hello me\n"
    out = daemon.docker(
        "run", "--rm", "--entrypoint", "sh", tag, "-c", "id -u; pwd; ls -A . sub; ls -d /data"
    ).out
    assert out.split() == (
        "1000 /app .: .dockerignore Dockerfile a keep.log out sub sub: b /data".split()
    )  # fmt: skip
    found = config(daemon, tag)
    assert found["Env"] == [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "GREETING=hello me", "X=1"
    ]  # fmt: skip
    assert found["Labels"] == {**(config(daemon, "busybox")["Labels"] or {}), "a": "b c", "extra": "1"}
    assert sorted(found["ExposedPorts"]) == ["53/udp", "80/tcp"]
    assert (found["StopSignal"], found["User"], found["Volumes"]) == ("SIGINT", "1000:1000", {"/data": {}})
    assert daemon.docker("ps", "-aq", "--filter", f"ancestor={tag}").out == ""


def test_the_cache(daemon: Daemon, build: Build, tag: str) -> None:
    text = f"FROM busybox\nLABEL who=one\nRUN {RANDOM} > /a\nCOPY f /f\nRUN {RANDOM} > /b\n"
    files = {"f": "1"}
    build(text, "--no-cache", files=files)
    first = {name: run(daemon, tag, f"cat /{name}") for name in "ab"}
    image = daemon.docker("images", "-q", tag).out
    assert build(text, files=files).out.count("---> Using cache") == 3
    assert daemon.docker("images", "-q", tag).out == image, "the same build is the same image"
    daemon.restart()
    done = build(text, files={"f": "2"})
    assert run(daemon, tag, "cat /a") == first["a"], "the cache survives the daemon"
    assert run(daemon, tag, "cat /b") != first["b"], "and knows what is copied"
    assert done.out.count("---> Using cache") == 1
    build(text.replace("one", "two"), files=files)
    assert run(daemon, tag, "cat /b") == first["b"], "a label is nothing a RUN depends on"
    build(text, "--no-cache", files=files)
    assert run(daemon, tag, "cat /a") != first["a"]


def test_stages(daemon: Daemon, build: Build, tag: str) -> None:
    text = (
        "FROM busybox AS one\nRUN echo 1 > /one\n"
        "FROM busybox AS broken\nRUN false\n"
        "FROM one AS two\nRUN echo 2 > /two\n"
        "FROM busybox\nCOPY --from=one /one /\nCOPY --from=2 /one /two /both/\n"
        "RUN --mount=from=two,target=/m cat /m/two /m/one > /three\n"
    )
    done = build(text)
    assert "RUN false" not in done.out, "a stage that nothing needs is not built"
    assert run(daemon, tag, "cat /one /both/* /three; test ! -e /m").split() == ["1", "1", "2", "2", "1"]
    build(text, "--target", "one")
    assert run(daemon, tag, "cat /one; test ! -e /both") == "1\n"
    assert (
        "failed to reach build target nosuch in Dockerfile"
        in build(text, "--target", "nosuch", check=False).err
    )


def test_stages_are_built_at_the_same_time(build: Build, tag: str) -> None:
    stage = (
        "FROM busybox AS {me}\n"
        "RUN --mount=type=cache,id={tag},target=/c touch /c/{me}; "
        "until test -e /c/{other}; do sleep 0.05; done; touch /{me}\n"
    )
    one, two = (stage.format(tag=tag, me=me, other=other) for me, other in (("one", "two"), ("two", "one")))
    done = build(f"{one}{two}FROM busybox\nCOPY --from=one /one /\nCOPY --from=two /two /\n")
    steps = [line for line in done.out.splitlines() if line.startswith("Step ")]
    assert [step.split()[1] for step in steps] == [f"{number}/7" for number in range(1, 8)], "told in order"


def test_copies(daemon: Daemon, build: Build, tag: str) -> None:
    files = {"d/x": "x", "d/e/y": "y", "d/e/z.md": "z", "f": "f"}
    done = build(
        "FROM busybox\nRUN mkdir -m 1777 /sticky && chown 5:6 /sticky && ln -s /real /link && mkdir /real\n"
        "COPY d /dir\nCOPY d/* f /several/\nCOPY --chown=12:34 --chmod=640 f /owned/deep/f\n"
        "COPY --chown=nobody:1 f /named\nCOPY f /sticky/\nCOPY f /link/\nCOPY --link f /linked/f\n"
        "COPY --parents ./d/e/y f /p/\nCOPY --parents d/./e/y /q/\n"
        "COPY --exclude=**/*.md --exclude=x d /ex/\n"
        'COPY ["f", "/a name"]\nCOPY --chmod=u=rwx,go=rX d /modes\n'
        "RUN stat -c '%n %u:%g %a' /owned/deep /owned/deep/f /named /sticky /modes /modes/x\n"
        "RUN find /dir /several /sticky /link/ /linked /p /q /ex '/a name' -type f | sort\n",
        files=files,
    )
    for line in (
        "/owned/deep 12:34 755", "/owned/deep/f 12:34 640", "/named 65534:1 644", "/sticky 5:6 1777",
        "/modes 0:0 755", "/modes/x 0:0 755",
    ):  # fmt: skip
        assert f"\n{line}\n" in done.out
    found = done.out[done.out.index("\n/a name") :].split(" ---> ")[0].split("Removing")[0].splitlines()
    assert [line for line in found if line] == [
        "/a name", "/dir/e/y", "/dir/e/z.md", "/dir/x", "/ex/e/y", "/link/f", "/linked/f", "/p/d/e/y", "/p/f",
        "/q/e/y", "/several/f", "/several/x", "/several/y", "/several/z.md", "/sticky/f",
    ]  # fmt: skip
    assert run(daemon, tag, "readlink /link; ls /real").split() == ["/real", "f"], (
        "a link is followed, not hidden"
    )


def test_heredocs_and_shell(daemon: Daemon, build: Build, tag: str) -> None:
    build(
        "FROM busybox\nENV WHO=me\nCOPY <<A <<'B' /x/\nI am $WHO\nA\nI am $WHO\nB\n"
        "RUN <<EOF\nset -e\necho one > /one\ncat > /two <<X\ntwo\nX\nEOF\n"
        "RUN cat <<EOF > /three\nthree\nEOF\n"
        "RUN <<EOF\n#!/bin/cat\nshebang\nEOF\n"
        'SHELL ["/bin/sh", "-ec"]\nRUN echo $- > /four\n'
    )
    out = run(daemon, tag, "cat /x/A /x/B /one /two /three /four; test ! -e /dev/pipes")
    assert out.splitlines() == ["I am me", "I am $WHO", "one", "two", "three", "ce"]


def test_mounts(daemon: Daemon, build: Build, tag: str) -> None:
    text = (
        "FROM busybox\n"
        f"RUN --mount=type=cache,id={tag},target=/c,mode=0700 echo >> /c/log; wc -l < /c/log > /count\n"
        "RUN --mount=type=bind,target=/src cat /src/f > /f; ! touch /src/x\n"
        "RUN --mount=type=bind,source=f,target=/g,rw echo more >> /g && cat /g > /h\n"
        "RUN --mount=type=tmpfs,target=/tmp/t,size=1m df -m /tmp/t | tail -1 > /t && touch /tmp/t/x\n"
        "RUN --mount=type=secret,id=s test ! -e /run/secrets/s\n"
        "RUN --network=none ip link | grep -c '^[0-9]' > /n\n"
    )
    build(text, files={"f": "1\n"})
    build(text, "--no-cache", files={"f": "1\n"})
    out = run(daemon, tag, "cat /count /f /h /n; ls -d /c /src /g /tmp/t /run/secrets 2>/dev/null; cat /f")
    assert out.split() == ["2", "1", "1", "more", "1", "1"], "what was mounted left nothing"
    daemon.docker("builder", "prune", "-f", "--filter", "type=exec.cachemount")
    build(text, "--no-cache", files={"f": "1\n"})
    assert run(daemon, tag, "cat /count").strip() == "1"
    required = "FROM busybox\nRUN --mount=type=secret,id=s,required true\n"
    assert "secret s: not found" in build(required, check=False).err


def test_archives_and_addresses(daemon: Daemon, build: Build, tag: str, tmp_path: Path) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in (("d/one", b"1"), ("two", b"2")):
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.mode = len(content), 7, 0o600
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("hard")
        link.type, link.linkname = tarfile.LNKTYPE, "two"
        tar.addfile(link)
    packed = gzip.compress(archive.getvalue())
    served = tmp_path / "served"
    served.mkdir()
    (served / "file.txt").write_text("from afar")
    handler = partial(SimpleHTTPRequestHandler, directory=str(served))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/file.txt"
        checksum = "sha256:b80b1e2dab9e0bf4b3e6b1cc4c5f5ea2e4b4e5ac2bb1c5e1c2f3b0d4a6e7f809"
        text = (
            f"FROM busybox\nADD a.tgz /un\nADD --unpack=false a.tgz /kept/\nADD f /f\nADD {address} /url/\n"
        )
        build(text, files={"a.tgz": packed, "f": "plain"})
        wrong = build(f"FROM busybox\nADD --checksum={checksum} {address} /x\n", check=False)
        server.shutdown()
    out = run(daemon, tag, "cat /un/d/one /un/hard /f /url/file.txt; stat -c ' %u %a %h' /un/two; ls /kept")
    assert out == "12plainfrom afar 7 600 2\na.tgz\n"
    assert "digest mismatch sha256:" in wrong.err


def test_triggers(daemon: Daemon, build: Build, tag: str) -> None:
    build("FROM busybox\nONBUILD COPY f /f\nONBUILD RUN cat /f > /g\n", files={"f": "x"})
    base = f"{tag}-base"
    daemon.docker("tag", tag, base)
    try:
        done = build(f"FROM {base}\nRUN cat /g\n", files={"f": "y"})
        assert "# Executing 2 build triggers" in done.out
        assert run(daemon, tag, "cat /g") == "y"
        assert config(daemon, tag).get("OnBuild") is None
    finally:
        daemon.docker("rmi", "-f", base)


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("FROM busybox\nFOO\n", 1, "dockerfile parse error on line 2: unknown instruction: FOO"),
        ("FROM busybox\nRUN exit 3\n", 3, "The command '/bin/sh -c exit 3' returned a non-zero code: 3"),
        (
            "FROM busybox\nCOPY no /x\n",
            1,
            "COPY failed: file not found in build context or excluded by .dockerignore",
        ),
        ("FROM busybox\nCOPY ../x /x\n", 1, "COPY failed: forbidden path outside the build context: ../x ()"),
        ("FROM busybox\nCOPY Dockerfile f /x\n", 1, "the destination must be a directory and end with a /"),
        ("FROM busybox\nCOPY --from=nosuch.invalid/x /a /b\n", 1, "nosuch.invalid"),
        ("FROM busybox\nCOPY --chown=nosuch f /b\n", 1, "no such user: nosuch"),
        ("FROM busybox\n\nENV A\n", 1, "dockerfile parse error on line 3: ENV must have two arguments"),
        ("FROM busybox\nRUN --security=insecure true\n", 1, "security.insecure is not allowed"),
        ("FROM busybox\nRUN --network=host true\n", 1, "only allowed in a build with --network=host"),
        ("FROM ${NONE}\n", 1, "base name (${NONE}) should not be blank"),
        ("FROM busybox\nUSER nosuch\nRUN true\n", 1, "unable to find user nosuch"),
    ],
)
def test_failures(daemon: Daemon, build: Build, text: str, status: int, message: str) -> None:
    before = daemon.docker("ps", "-aq").out
    done = build(text, files={"f": "x"}, check=False)
    assert (done.status, message in done.err) == (status, True), done.err
    assert daemon.docker("ps", "-aq").out == before, "no container is left"


@pytest.mark.skipif(BINARY is None, reason="docker-registry is not installed")
def test_the_base_is_pulled(
    daemon: Daemon,
    build: Build,
    tag: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = Registry(tmp_path_factory.mktemp("registry"), users={"ann": "secret"})
    registry.start()
    base = f"{registry.host}/{tag}"
    text = f"FROM {base} AS base\nFROM scratch\nCOPY --from=base /bin/busybox /b\n"
    try:
        monkeypatch.setenv("DOCKER_CONFIG", str(registry.base / "nobody"))
        assert "no basic auth credentials" in build(text, check=False).err
        monkeypatch.setenv("DOCKER_CONFIG", str(registry.base / "ann"))
        daemon.docker("login", "-u", "ann", "-p", "secret", registry.host)
        daemon.docker("tag", "busybox", base)
        daemon.docker("push", base)
        for ours in (False, True):
            daemon.docker("rmi", base)
            done = build(text, "--no-cache", ours=ours)
            assert "Pulling from" in done.out + done.err
        assert "Pulling from" not in build(text).out
        assert "Pulling from" in build(text, "--pull").out
    finally:
        daemon.docker("rmi", "-f", base, check=False)
        registry.stop()


def test_a_step_makes_the_same_layer_in_both_hulls(daemon: Daemon, build: Build, tag: str) -> None:
    text = (
        "FROM busybox\n"
        "RUN mkdir -p /q/d && echo a > /q/f && ln /q/f /q/g && ln -s f /q/l && chown -R 3:4 /q"
        " && touch -d @1000 /q/* /q && touch -h -d @1000 /q/l && uname -r > /dev/stderr\n"
    )
    found = {}
    for hull in ("container", "vm"):
        done = build(text, "--no-cache", "--isolation", hull)
        layers = daemon.docker("image", "inspect", "-f", "{{json .RootFS.Layers}}", tag).out
        found[hull] = (
            layers,
            next(line for line in (done.out + done.err).splitlines() if line[:1].isdigit()),
        )
    assert found["vm"][0] == found["container"][0]
    assert found["vm"][1] != found["container"][1]  # of another kernel


def test_prune(daemon: Daemon, build: Build, tag: str) -> None:
    build(f"FROM busybox\nRUN echo {tag} > /a\n")
    assert build(f"FROM busybox\nRUN echo {tag} > /a\n").out.count("Using cache") == 1
    daemon.docker("rmi", tag)
    records = daemon.docker("system", "df", "-v", "--format", "{{json .BuildCache}}").out
    assert f"echo {tag}" in records or "regular" in records
    assert "Total reclaimed space: 0B" not in daemon.docker("builder", "prune", "-f").out
    assert build(f"FROM busybox\nRUN echo {tag} > /a\n").out.count("Using cache") == 0


def test_cache_from(daemon: Daemon, build: Build, tag: str) -> None:
    text = f"FROM busybox\nRUN {RANDOM} > /{tag}\nLABEL a=b\n"
    build(text)
    known = run(daemon, tag, f"cat /{tag}")
    daemon.docker("builder", "prune", "-af")
    build(text, "--cache-from", tag)
    assert run(daemon, tag, f"cat /{tag}") == known


def test_proa_build(daemon: Daemon, build: Build, tag: str, tmp_path: Path) -> None:
    text = (
        "FROM busybox\nCOPY . /c\nRUN --mount=type=secret,id=s cat /run/secrets/s > /s; echo out; ls -A /c\n"
        "RUN test ! -e /run/secrets\n"
    )
    files = {"a": "A", "b.log": "B", ".dockerignore": "*.log\ntoken\n", "token": "very secret"}
    iid = tmp_path / "id.log"
    done = build(
        text, "--secret", f"id=s,src={tmp_path}/token", "--iidfile", str(iid), files=files, ours=True
    )
    assert iid.read_text() == done.out.strip()
    assert "#3 [3/4] RUN --mount=type=secret" in done.err
    assert run(daemon, tag, "cat /s; echo; ls -A /c").split() == [
        "very",
        "secret",
        ".dockerignore",
        "Dockerfile",
        "a",
    ]
    again = build(text, "--secret", f"id=s,src={tmp_path}/token", ours=True)
    assert again.err.count("CACHED") == 3
    assert build("FROM busybox\nRUN echo hi; exit 4\n", ours=True, check=False).status == 4
    done = daemon.proa("build", "-q", "-", stdin="FROM busybox\nLABEL a=b\n")
    assert done.out.startswith("sha256:")
    refused = build(text, "--ssh", "default", ours=True, check=False)
    assert "SSH agent" in refused.err


def test_builds_leave_nothing(daemon: Daemon, build: Build, tag: str) -> None:
    assert daemon.process is not None
    roots = (daemon.process.pid, daemon.exec_root, daemon.data_root)
    text = (
        "FROM busybox\nCOPY f /f\n"
        "RUN --mount=target=/m,rw --mount=type=cache,id={tag},target=/c touch /m/x /c/x; {end}\n"
    )

    def round_(number: int) -> None:
        for end in ("true", "false"):
            build(text.format(tag=tag, end=end), "--no-cache", files={"f": str(number % 9)}, check=False)
        daemon.docker("rmi", "-f", tag)
        daemon.docker("builder", "prune", "-af")

    for number in range(9):  # one context more than are kept
        round_(number)
    before = settled(*roots)
    for number in range(9, 13):
        round_(number)
    after = settled(*roots)
    more = {key: (before[key], after[key]) for key in before if after[key] > before[key]}
    assert not more, f"more than before: {more}"


def settled(pid: int, *roots: Path) -> Mapping[str, int]:
    """Count when what goes on behind has come to its end: two counts are the same."""
    seen: Mapping[str, int] = {}
    while True:
        last, seen = seen, count_host_state(pid, *roots)
        if last == seen:
            return seen
        time.sleep(1)


def test_a_killed_daemon_leaves_nothing(daemon: Daemon, build: Build, tag: str) -> None:
    before = set(daemon.docker("ps", "-aq").out.split())
    failed: list[Result] = []
    thread = threading.Thread(
        target=lambda: failed.append(build("FROM busybox\nRUN echo begun; sleep 1000\n", check=False))
    )
    thread.start()
    while not set(daemon.docker("ps", "-q").out.split()) - before:
        pass
    daemon.restart(9)
    thread.join(60)
    assert failed and failed[0].status != 0
    assert set(daemon.docker("ps", "-aq").out.split()) <= before, "the step's container went with the build"
    assert build("FROM busybox\nRUN true\n").status == 0

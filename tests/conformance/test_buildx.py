# SPDX-License-Identifier: Apache-2.0
"""buildx 0.13 behind the docker CLI, and Compose 2.26 with its own copy of it: builds by BuildKit's API."""

from __future__ import annotations

import signal
import socket
import subprocess
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.conftest import CLIENTS, run
from tests.support.daemon import Daemon
from tests.support.registry import BINARY, Registry

pytestmark = pytest.mark.client("buildx 0.13")
COMPOSE = str(CLIENTS / "docker-compose-v2")

Build = Callable[..., str]


@pytest.fixture
def environment(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What the CLI needs to find the daemon and the plugin, and nothing that turns BuildKit off."""
    assert (CLIENTS / "docker-config" / "cli-plugins" / "docker-buildx").exists(), "run setup/clients.sh"
    monkeypatch.setenv("DOCKER_HOST", daemon.host)
    monkeypatch.setenv("DOCKER_CONFIG", str(CLIENTS / "docker-config"))
    monkeypatch.setenv("BUILDX_CONFIG", str(tmp_path_factory.mktemp("buildx")))
    monkeypatch.setenv("BUILDKIT_PROGRESS", "plain")
    monkeypatch.delenv("DOCKER_BUILDKIT", raising=False)


@pytest.fixture
def tag(daemon: Daemon) -> Iterator[str]:
    """An image name that is taken away after the test."""
    tag = f"x-{uuid.uuid4().hex[:12]}"
    yield tag
    daemon.docker("rmi", "-f", tag, check=False)


@pytest.fixture
def build(environment: None, tag: str, tmp_path: Path) -> Build:
    """Build a Dockerfile in the test's directory; with ``check=False`` it may fail."""

    def build(dockerfile: str, *options: str, check: bool = True) -> str:
        (tmp_path / "Dockerfile").write_text(dockerfile)
        return run("docker", "build", "-t", tag, *options, str(tmp_path), check=check)

    return build


def test_build(daemon: Daemon, build: Build, tag: str, tmp_path: Path) -> None:
    """docker build: context, .dockerignore, args, target, stages, cached again"""
    for name in ("a", "d/b", "d/skipped.log"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "a").chmod(0o750)
    (tmp_path / "d" / "link").symlink_to("../a")
    (tmp_path / "large").write_bytes(b"large" * 200_000)
    (tmp_path / ".dockerignore").write_text("**/*.log\nDockerfile\n.dockerignore\n")
    text = (
        "FROM busybox AS one\nARG WHO=nobody\nRUN echo hello $WHO | tee /hello\n"
        "FROM busybox AS two\nWORKDIR /app\nCOPY . .\nCOPY --from=one /hello /\nRUN echo made\n"
        "FROM busybox AS other\nRUN exit 9\n"
    )
    options = ["--build-arg", "WHO=me", "--target", "two", "--label", "by=buildx"]
    out = build(text, *options)
    for line in (
        "[internal] load build definition",
        "[two 2/5] WORKDIR /app",
        "hello me",
        "naming to docker.io",
    ):
        assert line in out
    assert "exit 9" not in out
    script = "cat /hello; find . -type f | sort; stat -c '%a %u' a; cat d/link; wc -c < large"
    assert daemon.docker("run", "--rm", tag, "sh", "-c", script).out == (
        "hello me\n./a\n./d/b\n./large\n750 0\na1000000\n"
    )
    image = daemon.docker("image", "inspect", "-f", "{{.Id}} {{.Config.Labels.by}}", tag).out.split()
    again = build(text, *options)
    assert again.count("CACHED") == 5
    assert [daemon.docker("image", "inspect", "-f", "{{.Id}}", tag).out.strip(), "buildx"] == image
    assert build(text, *options, "-q").strip() == image[0]
    (tmp_path / "d" / "b").write_text("d/B")  # as long as it was
    build(text, *options)
    assert daemon.docker("run", "--rm", tag, "cat", "d/b").out == "d/B"


def test_entitlements(build: Build) -> None:
    """docker build: --allow security.insecure, network.host"""
    text = "FROM busybox\nRUN --security=insecure grep CapEff /proc/self/status\n"
    assert "security.insecure is not allowed" in build(text, check=False)
    assert "000001ff" in build(text, "--allow", "security.insecure")
    text = "FROM busybox\nRUN --network=host true\n"
    assert "--network=host is only allowed in a build with" in build(text, check=False)
    build(text, "--allow", "network.host")


def test_a_failing_step(daemon: Daemon, build: Build, tag: str) -> None:
    """docker build: a step that fails, with its output, its line and its exit code"""
    out = build("FROM busybox\nRUN true\nRUN echo words >&2; exit 3\n", check=False)
    assert "words" in out
    assert ">>> RUN echo words >&2; exit 3" in out
    assert out.splitlines()[-1] == (
        'ERROR: failed to solve: process "/bin/sh -c echo words >&2; exit 3" '
        "did not complete successfully: exit code: 3"
    )
    out = build("FROM busybox\nFOO bar\n", check=False)
    assert "dockerfile parse error on line 2: unknown instruction: FOO" in out
    assert daemon.docker("image", "inspect", tag, check=False).status != 0


def test_secrets(daemon: Daemon, build: Build, tag: str, tmp_path: Path) -> None:
    """docker build: --secret"""
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    text = (
        "FROM busybox\nRUN --mount=type=secret,id=tok,required=true wc -c < /run/secrets/tok > /n\n"
        "RUN --mount=type=secret,id=absent test ! -e /run/secrets/absent\n"
    )
    assert "secret tok: not found" in build(text, check=False)
    build(text, "--secret", f"id=tok,src={secret}")
    assert daemon.docker("run", "--rm", tag, "sh", "-c", "cat /n; ls /run").out.split()[0] == "6"


def test_ssh(daemon: Daemon, build: Build, tmp_path: Path) -> None:
    """docker build: --ssh"""
    text = 'FROM busybox\nRUN --mount=type=ssh,required=true test -S "$SSH_AUTH_SOCK" && echo there\n'
    assert "unset ssh forward key default" in build(text, check=False)
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert "there" in build(text, "--ssh", f"default={path}")


def test_no_cache_of_a_stage(build: Build) -> None:
    """docker build: --no-cache-filter"""
    text = (
        "FROM busybox AS one\nRUN echo 1 >/f\nFROM busybox AS Two\nRUN echo 2 >/f\n"
        "FROM busybox\nCOPY --from=one /f /1\nCOPY --from=two /f /2\n"
    )
    build(text)
    assert build(text).count("CACHED") == 4
    again = build(text, "--no-cache-filter", "two")
    assert again.count("CACHED") == 3


def test_output(daemon: Daemon, environment: None, tag: str, tmp_path: Path) -> None:
    """docker build: -o DIRECTORY, type=tar, type=cacheonly"""
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox AS one\nWORKDIR /z\nRUN mkdir a a.b && echo hi >f && ln f a/hard && ln -s f soft && "
        "chmod 4751 f && touch -d 2001-02-03 a.b/x && truncate -s 9M sparse && echo end >>sparse\n"
        "FROM scratch\nCOPY --from=one /z /d\n"
    )
    before = daemon.docker("images", "-aq").out
    out = tmp_path / "out"
    run("docker", "build", "-o", str(out), str(tmp_path))
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*")) == [
        "d", "d/a", "d/a.b", "d/a.b/x", "d/a/hard", "d/f", "d/soft", "d/sparse",
    ]  # fmt: skip
    file = out / "d" / "f"
    assert (file.read_text(), file.stat().st_mode & 0o7777, file.stat().st_nlink) == ("hi\n", 0o4751, 2)
    assert (out / "d" / "soft").readlink() == Path("f")
    assert time.gmtime((out / "d/a.b/x").stat().st_mtime).tm_year == 2001
    assert (out / "d/sparse").stat().st_size == (9 << 20) + 4
    run("docker", "build", "-o", f"type=tar,dest={tmp_path / 'o.tar'}", str(tmp_path))
    with tarfile.open(tmp_path / "o.tar") as tar:
        assert sorted(tar.getnames()) == sorted(str(path.relative_to(out)) for path in out.rglob("*"))
    run("docker", "build", "-o", "type=cacheonly", str(tmp_path))
    assert daemon.docker("images", "-aq").out == before
    refused = run("docker", "build", "-o", "/proc/nosuch", str(tmp_path), check=False)
    assert "mkdir /proc/nosuch: no such file or directory" in refused
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    run("docker", "build", "-o", str(tmp_path / "empty"), str(tmp_path))
    assert list((tmp_path / "empty").iterdir()) == []


def test_standard_input(daemon: Daemon, environment: None, tag: str, tmp_path: Path) -> None:
    """docker build: a Dockerfile or an archive on standard input"""
    (tmp_path / "Dockerfile").write_text("FROM busybox\nCOPY f /f\nRUN cat /f\n")
    (tmp_path / "f").write_text("in the archive\n")
    archive = subprocess.run(["tar", "-cz", "-C", tmp_path, "."], check=True, stdout=subprocess.PIPE).stdout
    for data, options in ((archive, ["-"]), (b"FROM busybox\nRUN echo $((6*7))", ["-"])):
        done = subprocess.run(
            ["docker", "build", "-t", tag, *options], input=data, capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stderr.decode()
        assert b"in the archive" in done.stderr or b"42" in done.stderr


def test_options(build: Build) -> None:
    """docker build: --add-host, --ulimit, --shm-size, --network"""
    out = build(
        "FROM busybox\nRUN grep -e there -e 'host$' /etc/hosts; ulimit -n; df /dev/shm | tail -n 1\n"
        "RUN ls /sys/class/net\n",
        "--add-host", "there:1.2.3.4", "--add-host", "host:host-gateway",
        "--ulimit", "nofile=123", "--shm-size", "1m", "--network", "none",
    )  # fmt: skip
    for line in ("1.2.3.4\tthere", "123", "1024"):
        assert line in out
    assert "eth0" not in out
    assert "\thost\n" in out


def test_named_contexts(build: Build, tmp_path: Path) -> None:
    """docker build: --build-context with a directory or an image"""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "f").write_text("from the other one\n")
    text = "FROM base\nCOPY --from=files f /f\nRUN cat /f\n"
    names = [f"files={tmp_path / 'more'}", "base=docker-image://busybox"]
    assert "from the other one" in build(
        text, *(word for name in names for word in ("--build-context", name))
    )


@pytest.mark.skipif(BINARY is None, reason="no docker-registry: setup/docker-registry.sh")
def test_a_private_base(
    daemon: Daemon, environment: None, tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docker build: a base image is pulled with the user's credentials; --pull; --push"""
    registry = Registry(tmp_path / "registry", users={"ann": "secret"})
    registry.start()
    base = f"{registry.host}/base"
    (tmp_path / "plugin" / "cli-plugins").mkdir(parents=True)
    plugin = CLIENTS / "docker-config" / "cli-plugins" / "docker-buildx"
    (tmp_path / "plugin" / "cli-plugins" / "docker-buildx").symlink_to(plugin)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "plugin"))
    (tmp_path / "Dockerfile").write_text(f"FROM {base}\nRUN true\n")
    command = ["docker", "build", "-t", f"{base}:made", str(tmp_path)]
    try:
        assert "no basic auth credentials" in run(*command, check=False)
        run("docker", "login", "-u", "ann", "-p", "secret", registry.host)
        run("docker", "tag", "busybox", base)
        run("docker", "push", base)
        run("docker", "rmi", base)
        run(*command, "--pull", "--push")
        run("docker", "rmi", f"{base}:made")
        run("docker", "pull", f"{base}:made")
    finally:
        daemon.docker("rmi", "-f", base, f"{base}:made", check=False)
        registry.stop()


def test_cancelled(daemon: Daemon, environment: None, tmp_path: Path) -> None:
    """docker build: Ctrl-C leaves nothing"""
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo running && sleep 600\n")
    with subprocess.Popen(
        ["docker", "build", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as client:
        guard = threading.Timer(60, client.kill)
        guard.start()
        assert client.stdout is not None
        for line in client.stdout:
            if line.endswith(" running\n"):
                client.send_signal(signal.SIGINT)
        guard.cancel()
    assert client.returncode not in (0, -signal.SIGKILL)
    deadline = time.monotonic() + 20
    while daemon.docker("ps", "-aq", "--filter", "ancestor=busybox").out:
        assert time.monotonic() < deadline, "the step's container is there yet"
        time.sleep(0.05)


def test_bake(daemon: Daemon, environment: None, tmp_path: Path) -> None:
    """buildx bake, du, prune, ls"""
    (tmp_path / "docker-bake.json").write_text(
        '{"group": {"default": {"targets": ["a", "b"]}}, "target": {'
        '"a": {"dockerfile-inline": "FROM busybox\\nRUN echo a > /a", "tags": ["bake-a"]},'
        '"b": {"dockerfile-inline": "FROM busybox\\nRUN echo b > /b", "tags": ["bake-b"]}}}'
    )
    run("docker", "buildx", "bake", cwd=tmp_path)
    for name in "ab":
        assert daemon.docker("run", "--rm", f"bake-{name}", "cat", f"/{name}").out == f"{name}\n"
    daemon.docker("rmi", "-f", "bake-a", "bake-b")
    assert "RUN echo a" in run("docker", "buildx", "du", "--verbose").replace("/bin/sh -c ", "RUN ")
    assert "running" in run("docker", "buildx", "ls")
    assert "Total:" in run("docker", "buildx", "prune", "-af")
    assert "echo a" not in run("docker", "buildx", "du", "--verbose")


def test_compose(daemon: Daemon, environment: None, tag: str, tmp_path: Path) -> None:
    """Compose 2.26: build and up --build"""
    (tmp_path / "f").write_text("f\n")
    (tmp_path / "Dockerfile").write_text(
        'FROM busybox\nARG A\nCOPY f /\nRUN echo $A > /a\nCMD ["cat", "/f", "/a"]\n'
    )
    (tmp_path / "compose.yaml").write_text(
        f"name: {tag}\nservices: {{web: {{image: {tag}, build: {{context: ., args: {{A: '7'}}}}}}}}\n"
    )
    try:
        assert "exporting to image" in run(COMPOSE, "build", cwd=tmp_path)
        out = run(COMPOSE, "up", "--build", cwd=tmp_path)
        assert "CACHED" in out
        assert "web-1  | 7" in out
    finally:
        run(COMPOSE, "down", cwd=tmp_path)


def test_without_the_plugin(
    daemon: Daemon, environment: None, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docker build of a CLI without buildx: the classic builder, with the CLI's warning"""
    monkeypatch.setenv("DOCKER_CONFIG", "/nonexistent")
    done = subprocess.run(
        ["docker", "build", "-t", tag, "-"], input=b"FROM busybox\nRUN echo classic\n", capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"DEPRECATED: The legacy builder" in done.stderr
    assert b"Step 2/2 : RUN echo classic" in done.stdout

# SPDX-License-Identifier: Apache-2.0
"""The dev container CLI: what editors run to work inside a container."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import CLIENTS, run
from tests.support.daemon import DOCKER, Daemon

PROGRAM = CLIENTS / "node_modules" / ".bin" / "devcontainer"

pytestmark = pytest.mark.client("@devcontainers/cli 0.80.0")

IMAGE = {
    "name": "test",
    "image": "busybox:latest",
    "updateRemoteUserUID": False,  # it builds an image
    "containerEnv": {"A": "b"},
    "postCreateCommand": "echo created >/created",
    "runArgs": ["--init", "--memory", "64m"],
}
COMPOSE = """
services:
  app:
    image: busybox
    command: sleep 600
    volumes: [".:/workspace"]
    stop_grace_period: 1s
"""

Devcontainer = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path, daemon: Daemon) -> Iterator[Path]:
    """A workspace whose container is removed after the test."""
    (tmp_path / ".devcontainer").mkdir()
    yield tmp_path
    for label in (f"devcontainer.local_folder={tmp_path}", "com.docker.compose.service=app"):
        identifiers = daemon.docker("ps", "-aq", "--filter", f"label={label}").out.split()
        if identifiers:
            daemon.docker("rm", "-fv", *identifiers)


@pytest.fixture
def devcontainer(folder: Path, docker_host: str) -> Devcontainer:
    compose = str(CLIENTS / "docker-compose-v2")

    def call(command: str, *arguments: str) -> str:
        options = [
            "--workspace-folder",
            str(folder),
            "--docker-path",
            DOCKER,
            "--docker-compose-path",
            compose,
        ]
        return run(str(PROGRAM), command, *options, *arguments, timeout_s=120)

    return call


def configure(folder: Path, **configuration: Any) -> None:  # Any: JSON
    (folder / ".devcontainer" / "devcontainer.json").write_text(json.dumps(configuration))


def outcome(output: str) -> dict[str, str]:
    """The JSON line that ``up`` ends with."""
    found: dict[str, str] = json.loads(output[output.rindex('{"outcome"') :].splitlines()[0])
    return found


def test_image(devcontainer: Devcontainer, folder: Path) -> None:
    """up with an image, exec, commands after creation, up again finds it"""
    configure(folder, **IMAGE)
    first = outcome(devcontainer("up"))
    assert first["outcome"] == "success"
    (folder / "file").write_text("shared\n")
    output = devcontainer("exec", "sh", "-c", "echo $A; cat /created file")
    assert output.splitlines()[-3:] == ["b", "created", "shared"]
    assert outcome(devcontainer("up"))["containerId"] == first["containerId"]


def test_removed(devcontainer: Devcontainer, folder: Path) -> None:
    """up --remove-existing-container"""
    configure(folder, **IMAGE)
    first = outcome(devcontainer("up"))
    assert outcome(devcontainer("up", "--remove-existing-container"))["containerId"] != first["containerId"]


def test_compose(devcontainer: Devcontainer, folder: Path) -> None:
    """up with a compose file"""
    (folder / "docker-compose.yml").write_text(COMPOSE)
    configure(
        folder,
        name="test",
        dockerComposeFile="../docker-compose.yml",
        service="app",
        workspaceFolder="/workspace",
        updateRemoteUserUID=False,
    )
    assert outcome(devcontainer("up"))["outcome"] == "success"
    assert "docker-compose.yml" in devcontainer("exec", "ls", "/workspace")


def test_dockerfile(devcontainer: Devcontainer, folder: Path) -> None:
    """up with a Dockerfile"""
    (folder / ".devcontainer" / "Dockerfile").write_text("FROM busybox\nRUN echo built >/x\n")
    configure(folder, name="test", build={"dockerfile": "Dockerfile"}, updateRemoteUserUID=False)
    assert outcome(devcontainer("up"))["outcome"] == "success"
    assert "built" in devcontainer("exec", "cat", "/x")

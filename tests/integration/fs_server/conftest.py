# SPDX-License-Identifier: Apache-2.0
"""Builds fs-server once, and mounts what it exports on this host as a guest would.

The relay stands in for the guest agent: the kernel's FUSE client is the same code in a guest.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.fs_server.guest import Guest

SOURCES = Path(__file__).parents[3] / "fs-server"


@pytest.fixture(scope="session")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with fs-server, fs-server-checked (sanitizers) and relay."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("needs root and /dev/fuse")
    build = tmp_path_factory.mktemp("fs-server")
    subprocess.run(["make", "-s", "-C", SOURCES, f"BUILD={build}"], check=True)
    subprocess.run(["make", "-s", "-C", SOURCES, f"BUILD={build}", "checked"], check=True)
    relay = Path(__file__).with_name("relay.c")
    subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-o", build / "relay", relay], check=True)
    return build


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's name, open to every user."""
    with tempfile.TemporaryDirectory(prefix="fs") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture
def mount_exports(binaries: Path, short_directory: Path) -> Iterator[Callable[..., Guest]]:
    """A function that mounts exports, writable ones first; ``files_limit`` is its RLIMIT_NOFILE."""
    with contextlib.ExitStack() as stack:

        def mount(*, rw: list[Path], ro: list[Path] | None = None, files_limit: int = 0) -> Guest:
            name = str(len(list(short_directory.iterdir())))
            guest = Guest(binaries, short_directory / name, rw=rw, ro=ro or [], files_limit=files_limit)
            stack.callback(guest.close)
            return guest

        yield mount


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory on the host."""
    directory = tmp_path / "shared"
    directory.mkdir(mode=0o777)
    directory.chmod(0o777)
    return directory


@pytest.fixture
def guest(mount_exports: Callable[..., Guest], shared: Path) -> Path:
    """The same directory as the guest sees it."""
    return mount_exports(rw=[shared]).root / "0"

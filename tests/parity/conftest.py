# SPDX-License-Identifier: Apache-2.0
"""One daemon whose containers are virtual machines unless they say otherwise.

``make parity`` runs all of these tests with either default; any other run takes those marked ``sample``.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parity.plugin import HULL
from tests.support.daemon import Daemon


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sample: runs without make parity, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if HULL:
        return
    here = Path(__file__).parent
    left = [item for item in items if here in item.path.parents and not item.get_closest_marker("sample")]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    daemon = Daemon(options=("--default-isolation", HULL or "vm"))
    daemon.start()
    try:
        daemon.load_busybox()
        yield daemon
    finally:
        daemon.clean()


@pytest.fixture
def name(daemon: Daemon) -> Iterator[str]:
    """A container name that is taken away after the test."""
    name = f"p-{uuid.uuid4().hex[:12]}"
    yield name
    daemon.docker("rm", "-f", "-v", name, check=False)


@pytest.fixture(scope="session")
def sleeper(daemon: Daemon) -> Iterator[str]:
    """A container that idles, for all tests that leave it as it is."""
    daemon.docker("run", "-d", "--name", "sleeper", "-m", "128m", "-h", "boat", "busybox", "sleep", "10000")
    yield "sleeper"
    daemon.docker("rm", "-f", "sleeper", check=False)

# SPDX-License-Identifier: Apache-2.0
"""One daemon for all end-to-end tests; each test names what it makes after itself and takes it away."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.support.daemon import Daemon

HULLS = ("container", "vm")


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    daemon.start()
    try:
        daemon.load_busybox()
        yield daemon
    finally:
        daemon.clean()


@pytest.fixture(params=HULLS)
def hull(request: pytest.FixtureRequest) -> str:
    """The same test in both hulls: the value of --isolation."""
    return str(request.param)


@pytest.fixture
def name(daemon: Daemon) -> Iterator[str]:
    """A container name that is taken away after the test."""
    name = f"t-{uuid.uuid4().hex[:12]}"
    yield name
    daemon.docker("rm", "-f", "-v", name, check=False)

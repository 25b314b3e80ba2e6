# SPDX-License-Identifier: Apache-2.0
"""A daemon to be mistreated, and the check that it has left nothing behind."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.fault.footprint import assert_unchanged, footprint_at_rest
from tests.support.daemon import Daemon

HULLS = ("container", "vm")


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    daemon.start()
    try:
        daemon.load_busybox()
        for hull in HULLS:  # what stays from the first of each: mounted layers, a memory template
            daemon.docker("run", "--rm", "--isolation", hull, "busybox", "true")
        yield daemon
    finally:
        if daemon.process is None:  # a test that failed while it was down
            daemon.start()
        daemon.clean()


@pytest.fixture(params=HULLS)
def hull(request: pytest.FixtureRequest) -> str:
    """The value of --isolation."""
    return str(request.param)


@pytest.fixture
def name(daemon: Daemon) -> Iterator[str]:
    """A container name that is taken away after the test."""
    name = f"f-{uuid.uuid4().hex[:12]}"
    yield name
    daemon.docker("rm", "-f", "-v", name, check=False)


@pytest.fixture
def unchanged(daemon: Daemon) -> Iterator[None]:
    """After the test all is as it was before."""
    before = footprint_at_rest(daemon)
    yield
    assert_unchanged(daemon, before)

# SPDX-License-Identifier: Apache-2.0
"""A client connected to a daemon of canned answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from proa.client.client import Client
from tests.support.canned_daemon import CannedDaemon, canned_daemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[CannedDaemon]:
    with canned_daemon(tmp_path / "s") as daemon:
        yield daemon


@pytest.fixture
def client(daemon: CannedDaemon) -> Iterator[Client]:
    with Client(f"unix://{daemon.path}") as connected:
        yield connected

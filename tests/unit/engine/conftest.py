# SPDX-License-Identifier: Apache-2.0
"""A daemon in memory for each test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proa.engine import restarts
from tests.support.engine import Ground

SHM = Path("/dev/shm")


@pytest.fixture
def make_ground() -> Iterator[Callable[[], Ground]]:
    """Grounds in memory: closing a database on a disk waits for it."""
    roots: list[Path] = []

    def make() -> Ground:
        roots.append(Path(tempfile.mkdtemp(prefix="proa-", dir=SHM if SHM.is_dir() else None)))
        return Ground(roots[-1])

    yield make
    for root in roots:
        shutil.rmtree(root)


@pytest.fixture
def ground(make_ground: Callable[[], Ground]) -> Ground:
    return make_ground()


@pytest.fixture
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restarts follow at once."""
    monkeypatch.setattr(restarts, "FIRST_DELAY_S", 0.0)

# SPDX-License-Identifier: Apache-2.0
"""A daemon in memory for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from proa.engine import restarts
from tests.support.engine import Ground


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


@pytest.fixture
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restarts follow at once."""
    monkeypatch.setattr(restarts, "FIRST_DELAY_S", 0.0)

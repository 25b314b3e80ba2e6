# SPDX-License-Identifier: Apache-2.0
"""Fixtures every test may use."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The daemon runs on asyncio only (decision 0002)."""
    return "asyncio"

# SPDX-License-Identifier: Apache-2.0
"""One suite, every runtime."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.contract.hulls import NAMES, Hull, open_hull, skip_without, unpack_root


@pytest.fixture(scope="session")
def busybox_root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pc-root-") as name:
        (Path(name) / "root").mkdir()
        yield unpack_root(Path(name) / "root")


@pytest.fixture(params=NAMES)
async def hull(request: pytest.FixtureRequest) -> AsyncIterator[Hull]:
    skip_without(request.param)
    root = Path("/") if request.param == "fake" else request.getfixturevalue("busybox_root")
    base = Path(tempfile.mkdtemp(prefix="pc-", dir="/tmp"))  # short: unix sockets have paths of 107 bytes
    (base / "x").mkdir()
    try:
        async with open_hull(request.param, base, root) as hull:
            async with hull.daemon():
                yield hull
            assert await hull.clean() == []
    finally:
        shutil.rmtree(base, ignore_errors=True)

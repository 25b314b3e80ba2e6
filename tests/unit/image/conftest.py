# SPDX-License-Identifier: Apache-2.0
"""An image store on a fake layer store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from proa.host.database import Database
from proa.image.images import Images
from tests.support.images import FakeLayers, stream


class Rig:
    """Images with what they stand on. ``reopen`` is a new daemon on the same files."""

    def __init__(self, root: Path, db: Database) -> None:
        self.root = root
        self.db = db
        self.layers = FakeLayers()
        self.events: list[tuple[str, str, dict[str, str]]] = []
        self.progress: list[dict[str, object]] = []
        self.images = self._make()

    def _make(self) -> Images:
        return Images(
            db=self.db,
            root=self.root,
            layers=self.layers,
            events=lambda action, image_id, attributes: self.events.append((action, image_id, attributes)),
        )

    async def load(self, archive: bytes) -> list[str]:
        return list(
            await self.images.load(stream(archive), on_progress=lambda line: self.progress.append(dict(line)))
        )

    async def reopen(self) -> Images:
        self.images = self._make()
        await self.images.open()
        return self.images

    def files(self) -> set[str]:
        """Every blob and every file being written."""
        blobs = self.root / "blobs"
        return {str(path.relative_to(blobs)) for path in blobs.rglob("*") if path.is_file()}


MakeRig = Callable[[], Awaitable[Rig]]


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[MakeRig]:
    """Opening is asynchronous, so a test awaits ``make_rig()``."""
    with Database(tmp_path / "engine.db") as db:

        async def make() -> Rig:
            rig = Rig(tmp_path, db)
            await rig.images.open()
            return rig

        yield make

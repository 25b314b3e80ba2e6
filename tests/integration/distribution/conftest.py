# SPDX-License-Identifier: Apache-2.0
"""The use cases of registries on a real image store (its layers in memory), against fake registries."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from proa.distribution.registries import Registries as Client
from proa.distribution.timings import Timings
from proa.engine.events import EventBus
from proa.engine.registries import Registries
from proa.host.database import Database
from proa.image.images import Images
from proa.model.registry import ANONYMOUS, Credentials, RegistrySettings
from tests.support.fake_registry import FakeRegistry
from tests.support.images import FakeLayers, docker_files, make_tar, stream

ENOUGH_S = 30.0  # a test that takes longer hangs
TIMINGS = Timings(connect_s=20, idle_s=20, document_s=20, window_s=20, tries=3, pause_s=0)
IMPATIENT = Timings(
    connect_s=20, idle_s=0.3, document_s=0.3, window_s=0.3, min_bytes=1000, tries=3, pause_s=0
)


class Daemon:
    """What a daemon has of registries, on the files in ``root``."""

    def __init__(
        self,
        root: Path,
        db: Database,
        *,
        settings: RegistrySettings | None = None,
        environment: Mapping[str, str] | None = None,
        timings: Timings = TIMINGS,
    ) -> None:
        self.root = root
        self.layers = FakeLayers()
        self.images = Images(db=db, root=root, layers=self.layers)
        self.bus = EventBus()
        client = Client(
            settings or RegistrySettings(certs_dirs=()), environment=environment or {}, timings=timings
        )
        self.registries = Registries(client=client, images=self.images, events=self.bus)
        self.told: list[dict[str, object]] = []

    async def pull(
        self, name: str, tag: str = "1", *, platform: str = "", credentials: Credentials = ANONYMOUS
    ) -> None:
        self.told = []
        with anyio.fail_after(ENOUGH_S):
            await self.registries.pull(
                name,
                tag,
                platform=platform,
                credentials=credentials,
                on_progress=lambda line: self.told.append(dict(line)),
            )

    async def push(self, name: str, tag: str = "1", *, credentials: Credentials = ANONYMOUS) -> None:
        self.told = []
        with anyio.fail_after(ENOUGH_S):
            await self.registries.push(
                name,
                tag,
                platform="",
                credentials=credentials,
                on_progress=lambda line: self.told.append(dict(line)),
            )

    async def load(self, name: str, layers: list[bytes]) -> None:
        """Bring in an image from an archive, its layers uncompressed and without a manifest."""
        archive = make_tar(docker_files(layers, names=[name]))
        await self.images.load(stream(archive), on_progress=lambda line: None)

    @property
    def statuses(self) -> list[str]:
        return [str(line.get("status", "")) for line in self.told]

    def files(self, directory: str) -> set[str]:
        return {path.name for path in (self.root / "blobs" / directory).iterdir()}

    @property
    def is_clean(self) -> bool:
        """Whether nothing but interrupted downloads is there."""
        return not (self.images.list(all=True) or self.files("sha256") or self.files("ingest"))


class Harbour:
    """Makes daemons, one after the other, on the same files; and registries."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @asynccontextmanager
    async def daemon(
        self,
        *,
        settings: RegistrySettings | None = None,
        environment: Mapping[str, str] | None = None,
        timings: Timings = TIMINGS,
    ) -> AsyncIterator[Daemon]:
        with Database(self.root / "engine.db") as db:
            daemon = Daemon(self.root, db, settings=settings, environment=environment, timings=timings)
            await daemon.images.open()
            yield daemon


@pytest.fixture
def harbour(tmp_path: Path) -> Harbour:
    return Harbour(tmp_path)


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry().running() as registry:
        yield registry


@pytest.fixture
async def daemon(harbour: Harbour) -> AsyncIterator[Daemon]:
    async with harbour.daemon() as daemon:
        yield daemon

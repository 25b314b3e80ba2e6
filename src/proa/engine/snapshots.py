# SPDX-License-Identifier: Apache-2.0
"""Snapshots of running containers, with their memory: made, listed, gone on with, moved to another host.

A snapshot is kept apart from the container that it is of. To restore one is to make a container that goes on
from there, as ``forking`` makes a copy; the other, if it is still there, is left alone.

Source: docs/reference/containers-proa.yaml; docs/decisions/0042-fork-and-snapshots.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import anyio.to_thread
import msgspec
from msgspec.structs import replace as replace_struct

from proa.engine.container import Container
from proa.engine.creation import Created, check_config
from proa.engine.forking import Forking
from proa.engine.isolation import Hulls
from proa.engine.launcher import Launcher
from proa.engine.refusals import check_supported
from proa.engine.registry import Registry, decode_record, encode_record
from proa.image.images import Images
from proa.model.errors import DataLoss, InvalidParameter
from proa.model.ids import Digest
from proa.model.task import TaskSpec
from proa.network.networks import Networks
from proa.runtime.seam import SAVED_PARTS, Runtime, SavingRuntime, Task
from proa.storage.snapshots import FORMAT, Manifest, file_digest
from proa.storage.snapshots import Snapshots as SnapshotStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One as it is listed. ``size`` is what its removal would free, in bytes."""

    name: str
    container_id: str
    container_name: str
    image: str
    created_at_ns: int
    size: int


class Snapshots:
    """The use cases."""

    def __init__(
        self,
        *,
        store: SnapshotStore,
        registry: Registry,
        hulls: Hulls,
        launcher: Launcher,
        forking: Forking,
        networks: Networks,
        images: Images,
    ) -> None:
        self._images = images
        self._store = store
        self._registry = registry
        self._hulls = hulls
        self._launcher = launcher
        self._forking = forking
        self._networks = networks

    def list(self, container: str = "") -> Sequence[Snapshot]:
        """Return all, or those of a container (by name or beginning of its id), the oldest first."""
        found = [self._shown(name) for name in self._store.whole()]
        return [
            one
            for one in found
            if not container or one.container_name == container or one.container_id.startswith(container)
        ]

    async def create(self, ref: str, name: str = "") -> Snapshot:
        """Save a running container, which goes on. "" lets proa choose the name.

        Raises NoSuchContainer, WrongState, FeatureMissing, NameInUse, InvalidParameter; then nothing is left.
        """
        container = self._registry.get(ref)
        runtime = self._launcher.get_forking(container)
        task = self._forking.get_running(container)
        name = name or self._free_name(container)
        self._store.check_new(name)
        async with self._store.making() as directory:
            machine = await runtime.save(task, directory)
            manifest = Manifest(
                format=FORMAT,
                created_at_ns=time.time_ns(),
                container=json.loads(encode_record(container)),
                machine=dict(machine),
                layers=await _digests(await self._launcher.layer_files(container)),
                parts=await self._store.digest(directory, SAVED_PARTS),
            )
            await self._store.complete(directory, name, manifest)
        return self._shown(name)

    async def restore(self, snapshot: str, name: str = "") -> Created:
        """Make a container that goes on from there; "" gives it the name of the one that was saved.

        Everything is checked before anything goes on. Raises NotFound, NoSuchImage, DataLoss, NameInUse,
        InvalidParameter.
        """
        manifest = self._store.get(snapshot)
        saved = self._readable(manifest)
        name = name or saved.name
        self._registry.check_name(name.removeprefix("/"))
        self._images.get(saved.image_id)
        self._launcher.get_forking(saved)
        directory = await self._store.checked(snapshot, SAVED_PARTS)

        async def begin(runtime: Runtime, spec: TaskSpec) -> Task:
            container = self._registry.get(spec.id)
            if await _digests(await self._launcher.layer_files(container)) != manifest.layers:
                raise InvalidParameter(
                    f"the image {container.image_ref} has other layers here than when the snapshot was made"
                )
            assert isinstance(runtime, SavingRuntime)  # checked above
            return await runtime.load(directory, manifest.machine, spec)

        return await self._forking.bring_up(saved, name, begin)

    async def remove(self, name: str) -> None:
        """Remove one; what was restored from it goes on. Raises NotFound."""
        await self._store.remove(name)

    def export(self, name: str) -> AsyncIterator[bytes]:
        """Yield an archive with all that another host needs but the image. Raises NotFound."""
        self._store.get(name)
        return self._store.export(name)

    async def import_(self, stream: AsyncIterator[bytes], name: str = "") -> Snapshot:
        """Take in an archive; "" gives it the name of the container that was saved, with a number.

        Raises InvalidParameter for what is no whole archive, NameInUse; then nothing is left.
        """
        if name:
            self._store.check_new(name)
        async with self._store.making() as directory, self._store.making() as aside:
            async with await anyio.open_file(aside / "archive", "wb") as file:
                async for piece in stream:
                    await file.write(piece)
            manifest = await self._store.take_in(aside / "archive", directory, SAVED_PARTS)
            try:
                saved = decode_record(msgspec.json.encode(manifest.container))
            except (msgspec.ValidationError, ValueError) as error:
                raise InvalidParameter(f"the container of the snapshot makes no sense: {error}") from error
            name = name or self._free_name(saved)
            self._store.check_new(name)
            await self._store.complete(directory, name, manifest)
        return self._shown(name)

    # --- machinery ---

    def _readable(self, manifest: Manifest) -> Container:
        """Return the record of what was saved, checked as a request is: it may come from elsewhere."""
        try:
            saved = decode_record(msgspec.json.encode(manifest.container))
        except (msgspec.ValidationError, ValueError) as error:
            raise DataLoss(f"the container of the snapshot makes no sense: {error}") from error
        check_supported(saved.host_config)
        check_config(saved.config, saved.host_config)
        self._hulls.judge(saved.runtime, saved.host_config, saved.mounts)
        networking = {
            name: replace_struct(settings, network_id=self._networks.get(name).id)
            for name, settings in saved.networking.items()
        }
        return replace(saved, networking=networking, links=(), ids=None, for_build=False)

    def _free_name(self, container: Container) -> str:
        taken = set(self._store.names())
        return next(
            name for number in range(1, len(taken) + 2) if (name := f"{container.name}-{number}") not in taken
        )

    def _shown(self, name: str) -> Snapshot:
        manifest = self._store.get(name)
        container = manifest.container
        return Snapshot(
            name=name,
            container_id=str(container.get("id", "")),
            container_name=str(container.get("name", "")),
            image=str(container.get("image_ref", "")),
            created_at_ns=manifest.created_at_ns,
            size=self._store.size_of(name),
        )


async def _digests(files: Mapping[Digest, Path]) -> dict[str, str]:
    try:
        return await anyio.to_thread.run_sync(
            lambda: {str(layer): file_digest(path) for layer, path in files.items()}
        )
    except OSError as error:
        raise DataLoss(f"a layer of the image cannot be read: {error}") from error

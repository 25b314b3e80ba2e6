# SPDX-License-Identifier: Apache-2.0
"""Makes images of containers. Source: Engine API, ImageCommit.

A running container is frozen while its files are read and no longer. A daemon that dies meanwhile leaves it
frozen, with a note in its record (``passing_pause``), and the next one thaws it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
from msgspec.structs import replace as replace_struct

from proa.engine.container import Container, State
from proa.engine.creation import event_attributes
from proa.engine.events import EventBus
from proa.engine.files import MOUNT_POINTS, Files
from proa.engine.lifecycle import Lifecycle
from proa.image.committing import CommitRequest, LayerTar
from proa.image.images import Images
from proa.model.config import ContainerConfig, HealthConfig
from proa.model.errors import EngineError, WrongState
from proa.model.ids import Digest
from proa.storage.files import trees
from proa.storage.rootfs import Roots


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitQuery:
    """What POST /commit asks. ``config`` None: the container's own."""

    repository: str = ""
    tag: str = ""
    comment: str = ""
    author: str = ""
    pause: bool = True
    changes: Sequence[str] = ()
    config: ContainerConfig | None = None


class Commits:
    """The use case of commit."""

    def __init__(
        self, *, files: Files, lifecycle: Lifecycle, images: Images, roots: Roots, events: EventBus
    ) -> None:
        self._files = files
        self._lifecycle = lifecycle
        self._images = images
        self._roots = roots
        self._events = events

    async def commit(self, ref: str, query: CommitQuery) -> Digest:
        """Make an image of a container's changes; return its id.

        :raises InvalidParameter: a name or an instruction is wrong; nothing was made.
        :raises Conflict: the container is being removed.
        """
        async with self._files.hold(ref) as container:
            base_config = query.config or container.config
            # Before anything is frozen: what is asked for may make no sense.
            config = self._images.apply_changes(base_config, query.changes)
            request = CommitRequest(
                base=container.image_id,
                config=_portable(merge_committed(config, container.config)),
                repository=query.repository,
                tag=query.tag,
                author=query.author,
                comment=query.comment,
                created_by=" ".join(_words(container.config.cmd)),
            )

            async def write_layer(out: int) -> LayerTar:
                with self._roots.open_below(container.layers) as below:
                    # A guest that stood still could not give its files: there the workload alone is frozen.
                    pauses = query.pause and not self._files.is_guests(container)
                    async with (
                        self._files.open_upper(container, freeze=query.pause) as upper,
                        self._frozen(container, wanted=pauses),
                    ):
                        packed = await trees.pack_upper(upper, below, out, ignored=MOUNT_POINTS)
                return LayerTar(
                    diff_id=packed.diff_id, size_bytes=packed.size_bytes, is_empty=packed.is_empty
                )

            image_id, name = await self._images.commit(request, write_layer)
        self._events.publish(
            "container",
            "commit",
            container.id,
            {**event_attributes(container), "comment": query.comment, "imageID": image_id, "imageRef": name},
        )
        return image_id

    @asynccontextmanager
    async def _frozen(self, container: Container, *, wanted: bool) -> AsyncIterator[None]:
        if not wanted or container.state is not State.RUNNING:
            yield
            return
        try:
            await self._lifecycle.pause(container.id, passing=True)
        except WrongState:  # it has ended meanwhile, or somebody else has paused it
            yield
            return
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True), contextlib.suppress(EngineError):
                await self._lifecycle.unpause(container.id)


def merge_committed(config: ContainerConfig, container: ContainerConfig) -> ContainerConfig:
    """Return a commit's configuration with what the container's adds where it says nothing.

    Source: Docker Engine, daemon, merge: a command of one's own goes with an entrypoint of one's own.
    """
    command, entrypoint = config.cmd, config.entrypoint
    if not entrypoint:
        command = command or container.cmd
        entrypoint = container.entrypoint if entrypoint is None else entrypoint
    known = {entry.partition("=")[0] for entry in config.env or ()}
    added = [entry for entry in container.env or () if entry.partition("=")[0] not in known]
    return replace_struct(
        config,
        user=config.user or container.user,
        exposed_ports={**(container.exposed_ports or {}), **(config.exposed_ports or {})} or None,
        env=[*(config.env or ()), *added] or None,
        labels={**(container.labels or {}), **(config.labels or {})} or None,
        cmd=command,
        entrypoint=entrypoint,
        healthcheck=_merge_health(config.healthcheck, container.healthcheck),
        working_dir=config.working_dir or container.working_dir,
        volumes={**(container.volumes or {}), **(config.volumes or {})} or None,
        stop_signal=config.stop_signal or container.stop_signal,
        stop_timeout=config.stop_timeout if config.stop_timeout is not None else container.stop_timeout,
        shell=config.shell or container.shell,
    )


def _merge_health(wanted: HealthConfig | None, known: HealthConfig | None) -> HealthConfig | None:
    if wanted is None or known is None:
        return wanted or known
    fields = {name: getattr(wanted, name) or getattr(known, name) for name in HealthConfig.__struct_fields__}
    return HealthConfig(**fields)


def _portable(config: ContainerConfig) -> ContainerConfig:
    """Leave out what is one container's own and no image's."""
    return replace_struct(
        config,
        hostname="",
        domainname="",
        attach_stdin=False,
        attach_stdout=False,
        attach_stderr=False,
        tty=False,
        open_stdin=False,
        stdin_once=False,
        image="",
        network_disabled=False,
        mac_address="",
    )


def _words(command: list[str] | str | None) -> list[str]:
    return [command] if isinstance(command, str) else command or []
